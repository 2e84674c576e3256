"""Answers that go on until somebody leaves: the client, or the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from eardrum.api.access import record
from eardrum.api.asgi import Receive, Scope, Send, hang_up, transport
from eardrum.gateway.service import Service
from eardrum.stalling import stalled

Write = Callable[[bytes], Awaitable[None]]

FAREWELL_S = 1.0
"""How long a client has to take in what is left when the server ends."""


async def endless(
    service: Service, scope: Scope, receive: Receive, send: Send, media_type: str, tell: Callable[[Write], Awaitable[None]]
) -> None:
    """Answer with what `tell` writes until the server ends. Nothing is buffered here: a client that takes nothing in for
    `limits.stall_seconds`, or that does not take in the rest when the server ends, is hung up on.
    """
    headers = [(b"content-type", media_type.encode()), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": [*headers, (b"x-content-type-options", b"nosniff")]})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body"})
        return
    transport(scope).set_write_buffer_limits(0)  # a write waits for the one before it to be out

    async def write(data: bytes) -> None:
        try:
            async with asyncio.timeout(service.settings.limits.stall_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            record(scope).note = stalled(service.settings.limits.stall_seconds)
            transport(scope).abort()

    telling = asyncio.ensure_future(tell(write))
    leaving = asyncio.ensure_future(_until_gone(receive))
    over = asyncio.ensure_future(service.events.over.wait())
    try:
        await asyncio.wait({telling, leaving, over}, return_when=asyncio.FIRST_COMPLETED)
        if not leaving.done():
            await _farewell(scope, receive, send, telling)
    finally:
        for task in (telling, leaving, over):
            task.cancel()
        await asyncio.wait({telling, leaving, over})


async def _farewell(scope: Scope, receive: Receive, send: Send, telling: asyncio.Future[None]) -> None:
    """Let the client have the rest, and end the answer properly if it does."""
    try:
        async with asyncio.timeout(FAREWELL_S):
            await asyncio.shield(telling)
            await send({"type": "http.response.body", "body": b"", "more_body": True})
    except TimeoutError:
        await hang_up(scope, receive)
    else:
        await send({"type": "http.response.body"})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
