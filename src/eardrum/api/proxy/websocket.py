"""Relays WebSockets between a client and an upstream.

Messages, subprotocols and close codes pass; pings are answered, not relayed. One side is not read until the other has
accepted the previous message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from eardrum.aiohttp_import import aiohttp
from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.proxy import upstream_headers
from eardrum.api.proxy.upstream_headers import WEBSOCKET_HEADERS
from eardrum.api.request_log import get_record
from eardrum.concurrency import run_until_first
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes.supervisor import LeaseIdleTimer
from eardrum.gateway.service import Service

SILENT_S = 60.0
"""Seconds without a message after which a WebSocket no longer keeps its model from being unloaded."""

UNSENDABLE = (1005, 1006, 1015)
"""Close codes that mean peer was none. They must not be sent."""
GOING_AWAY, BROKEN = 1001, 1011
REASON_BYTES = 123


async def relay_websocket(service: Service, model: Model, path: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Connect the client with the model's upstream until either disconnects. The connection counts as a request, and keeps the
    model loaded as long as peer are messages.

    Raises:
        EardrumError: before the WebSocket was accepted.
        ClientGoneError: the client disconnected before.
    """
    get_record(scope).model = model.id
    await receive()  # websocket.connect
    async with AsyncExitStack() as stack:
        async with DisconnectWatcher(scope, receive):
            lease = await stack.enter_async_context(service.lease_model(model))
            headers = upstream_headers.build_headers(service, model, scope, without=WEBSOCKET_HEADERS)
            subprotocols = upstream_headers.select_subprotocols(service, model, scope)
            peer = await lease.upstream.connect_websocket(path, headers, subprotocols)
        idle_timer = LeaseIdleTimer(lease, SILENT_S)
        try:
            await send({"type": "websocket.accept", "subprotocol": peer.protocol})
            if model.entry and model.entry.compat.ignore_websockets:
                idle_timer.stop()
                await stack.aclose()  # the model may be unloaded, which also ends the connection
            await _relay_messages(peer, _watch_traffic(receive, idle_timer), _watch_traffic(send, idle_timer))
        finally:
            idle_timer.stop()
            await peer.close(code=GOING_AWAY)


def _watch_traffic(channel: Callable[..., Awaitable[Any]], idle_timer: LeaseIdleTimer) -> Callable[..., Awaitable[Any]]:
    """Wrap `receive` or `send` so that every message resets the timer."""

    async def record_and_pass(*message: Any) -> Any:
        result = await channel(*message)
        idle_timer.record_activity()
        return result

    return record_and_pass


async def _relay_messages(peer: aiohttp.ClientWebSocketResponse[Any], receive: Receive, send: Send) -> None:
    await run_until_first(_relay_to_upstream(peer, receive), _relay_to_client(peer, send))


async def _relay_to_upstream(peer: aiohttp.ClientWebSocketResponse[Any], receive: Receive) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        try:
            if (text := message.get("text")) is not None:
                await peer.send_str(text)
            else:
                await peer.send_bytes(message["bytes"])
        except ConnectionError:  # the other direction closes the client's WebSocket
            await asyncio.get_running_loop().create_future()
    code = message.get("code", UNSENDABLE[0])
    reason = (message.get("reason") or "").encode()[:REASON_BYTES]
    await peer.close(code=GOING_AWAY if code in UNSENDABLE else code, message=reason)


async def _relay_to_client(peer: aiohttp.ClientWebSocketResponse[Any], send: Send) -> None:
    while True:
        message = await peer.receive()
        if message.type is aiohttp.WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is aiohttp.WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
        else:
            break
    code = peer.close_code or BROKEN
    reason = message.extra if message.type is aiohttp.WSMsgType.CLOSE and message.extra else ""
    if code in UNSENDABLE:
        code, reason = (1000, "") if code == UNSENDABLE[0] else (BROKEN, "The model's upstream broke the connection.")
    await send({"type": "websocket.close", "code": code, "reason": reason})
