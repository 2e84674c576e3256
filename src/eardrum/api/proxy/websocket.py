"""Relays WebSockets between a client and an upstream.

Messages, subprotocols and close codes pass; each side answers its own pings. Neither side is read while the other has not
taken the previous message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp

from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.proxy import upstream_headers
from eardrum.api.proxy.upstream_headers import WEBSOCKET_HEADERS
from eardrum.api.request_log import get_record
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes.lease import LeaseIdleTimer
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.external import ExternalUpstream

SILENT_S = 60.0
"""A WebSocket on which nobody has said anything for so long does not keep its model from being unloaded."""

UNSENDABLE = (1005, 1006, 1015)
"""Codes that stand for the absence of one."""
GOING_AWAY, BROKEN = 1001, 1011
REASON_BYTES = 123


async def relay_websocket(service: Service, model: Model, path: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Connect the client with the model's upstream until either hangs up. That is a request, which keeps the model loaded
    as long as something is said.

    Raises:
        EardrumError: before the client was let in.
    """
    get_record(scope).model = model.id
    await receive()  # websocket.connect
    async with AsyncExitStack() as stack:
        lease = await stack.enter_async_context(service.create_lease(model))
        upstream = lease.upstream
        assert isinstance(upstream, ExternalUpstream)
        headers = upstream_headers.build_headers(service, model, scope, without=WEBSOCKET_HEADERS)
        there = await upstream.connect_websocket(path, headers, upstream_headers.select_subprotocols(service, model, scope))
        silence = LeaseIdleTimer(lease, SILENT_S)
        try:
            await send({"type": "websocket.accept", "subprotocol": there.protocol})
            if model.entry and model.entry.compat.ignoreWebsockets:
                silence.stop()
                await stack.aclose()  # it may be unloaded, which ends this too
            await _relay_messages(there, _watch_traffic(receive, silence), _watch_traffic(send, silence))
        finally:
            silence.stop()
            await there.close(code=GOING_AWAY)


def _watch_traffic(way: Callable[..., Awaitable[Any]], silence: LeaseIdleTimer) -> Callable[..., Awaitable[Any]]:
    """The same way, on which everything that passes breaks the silence."""

    async def heard(*message: Any) -> Any:
        passed = await way(*message)
        silence.record_activity()
        return passed

    return heard


async def _relay_messages(there: aiohttp.ClientWebSocketResponse[Any], receive: Receive, send: Send) -> None:
    ways = [asyncio.ensure_future(_relay_to_upstream(there, receive)), asyncio.ensure_future(_relay_to_client(there, send))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            if way.done():
                way.result()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _relay_to_upstream(there: aiohttp.ClientWebSocketResponse[Any], receive: Receive) -> None:
    """What the client says."""
    while (message := await receive())["type"] == "websocket.receive":
        try:
            if (text := message.get("text")) is not None:
                await there.send_str(text)
            else:
                await there.send_bytes(message["bytes"])
        except ConnectionError:  # the other way tells the client
            await asyncio.get_running_loop().create_future()
    code = message.get("code", UNSENDABLE[0])
    reason = (message.get("reason") or "").encode()[:REASON_BYTES]
    await there.close(code=GOING_AWAY if code in UNSENDABLE else code, message=reason)


async def _relay_to_client(there: aiohttp.ClientWebSocketResponse[Any], send: Send) -> None:
    """What the upstream says."""
    while True:
        message = await there.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
        else:
            break
    code = there.close_code or BROKEN
    reason = message.extra if message.type is aiohttp.WSMsgType.CLOSE and message.extra else ""
    if code in UNSENDABLE:
        code, reason = (1000, "") if code == UNSENDABLE[0] else (BROKEN, "The model's server broke off.")
    await send({"type": "websocket.close", "code": code, "reason": reason})
