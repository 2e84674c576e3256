"""Server-side WebSockets for every protocol: back-pressure, stall timeouts, shutdown and close codes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Any, Self

from eardrum.api.asgi import ClientGoneError, Message, Receive, Scope, Send, get_transport
from eardrum.api.auth import KEY_SUBPROTOCOL
from eardrum.api.disconnect import CancelScope
from eardrum.concurrency import Channel, cancel_and_wait
from eardrum.connection_limits import describe_stall, is_closed_by_peer
from eardrum.errors import BusyError, EardrumError, ModelCoolingError, ModelUnloadedError, ShuttingDownError, TooLargeError

MAX_QUEUED_BYTES = 4 << 20
"""Bytes of a client's messages that are queued, two minutes at 16 kHz. Above that the client is not read until there is room."""

CLOSE_CHECK_S = 1.0
"""Interval at which a client that is not read is checked."""

MESSAGE_OVERHEAD_BYTES = 100
"""Approximate memory of a message besides its bytes."""

SHUTDOWN_SEND_TIMEOUT_S = 1.0
"""Seconds in which a client must accept a message while the server shuts down."""

REASON_BYTES = 123
"""Bytes of a reason that fit into a close frame."""


class CloseCode(IntEnum):
    """Close codes of the server."""

    DONE = 1000
    GOING_AWAY = 1001
    REFUSED = 1008
    TOO_LARGE = 1009
    FAILED = 1011
    RESTARTING = 1012
    TRY_LATER = 1013


def get_close_code(error: EardrumError) -> CloseCode:
    """Return the close code for an error that ends a session."""
    match error:
        case ShuttingDownError():
            return CloseCode.RESTARTING
        case BusyError() | ModelCoolingError() | ModelUnloadedError():
            return CloseCode.TRY_LATER
        case TooLargeError():
            return CloseCode.TOO_LARGE
    return CloseCode.REFUSED if error.status < 500 else CloseCode.FAILED


class ServerWebSocket:
    """A WebSocket from its handshake on: `async with ServerWebSocket(...) as socket`, `async for message in socket`, `send_json`.

    A task reads all the time: without reading, neither a disconnect nor a ping would be noticed. While so much is queued that it
    does not, it checks whether the client has closed the connection. A disconnect cancels the work inside the block, and a client
    that accepts nothing for `stall_s` is disconnected. `shutdown` is set when the server shuts down: then the iteration over
    messages ends, `is_shutting_down` is true, and the user of the socket sends its last messages and closes it; a client that
    does not accept them is soon disconnected. Protocols refuse messages of more than `max_message_bytes` with a separate error;
    larger than twice that, a message does not get here.

    Raises:
        ClientGoneError: from every send, and at the end of the block: the client disconnected.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        shutdown: asyncio.Event,
        stall_s: float,
        max_message_bytes: int,
        subprotocol: str | None = None,
    ):
        self._scope = scope
        self._receive = receive
        self._send = send
        self._shutdown = shutdown
        self._stall_s = stall_s
        self._max_message_bytes = max_message_bytes
        # Browsers disconnect when the server accepts none of the subprotocols that they offer.
        self._subprotocol = subprotocol or _choose_subprotocol(scope)
        self._messages = Channel[str | bytes](MAX_QUEUED_BYTES, lambda message: len(message) + MESSAGE_OVERHEAD_BYTES)
        self._closed = False
        self._work = CancelScope()
        self._disconnect_reason = ""
        self._sending: set[asyncio.Timeout] = set()
        self.is_shutting_down = False

    async def __aenter__(self) -> Self:
        if (await self._receive())["type"] != "websocket.connect":
            raise ClientGoneError
        if farewell := self._scope["extensions"].get("eardrum.farewell"):
            farewell["call"]()
        if limit := self._scope["extensions"].get("eardrum.largest"):
            limit["call"](2 * self._max_message_bytes)
        await self._send_message({"type": "websocket.accept", "subprotocol": self._subprotocol})
        self._work.enter()
        self._tasks = (asyncio.create_task(self._read()), asyncio.create_task(self._watch_shutdown()))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._work.is_cancelled and isinstance(error, Exception) and not self._closed:
            with suppress(ClientGoneError):  # the caller logs the error
                await self.close(CloseCode.FAILED, "The server failed on this session; see its log.")
        for task in self._tasks:
            task.cancel()
        self._work.exit(error, self._disconnect_reason)
        await cancel_and_wait(*self._tasks)

    def __aiter__(self) -> Self:
        """Iterate over the client's messages, text or bytes."""
        return self

    async def __anext__(self) -> str | bytes:
        return await anext(self._messages)

    async def send_json(self, message: Mapping[str, Any]) -> None:
        """Send a message as JSON."""
        await self._send_message({"type": "websocket.send", "text": json.dumps(message, ensure_ascii=False)})

    async def close(self, code: CloseCode = CloseCode.DONE, reason: str = "") -> None:
        """Send the close frame."""
        self._closed = True
        short = reason.encode()[:REASON_BYTES].decode(errors="ignore")
        await self._send_message({"type": "websocket.close", "code": int(code), "reason": short})

    def ignore_messages(self) -> None:
        """Discard all further messages of the client. A disconnect is still noticed."""
        self._messages.discard()

    async def _read(self) -> None:
        while (message := await self._receive())["type"] == "websocket.receive":
            text = message.get("text")
            self._messages.send_nowait(message["bytes"] if text is None else text)
            if self._messages.is_full and await self._is_closed_before_room():
                break
        if not self._closed:
            self._work.cancel()

    async def _is_closed_before_room(self) -> bool:
        """Wait until the client may be read on. Return True if it closes the connection before, which a transport that is not
        read does not notice."""
        while self._messages.is_full:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_CHECK_S):
                    await self._messages.wait_for_room()
                    return False
            if is_closed_by_peer(get_transport(self._scope)):
                return True
        return False

    async def _watch_shutdown(self) -> None:
        await self._shutdown.wait()
        self.is_shutting_down = True
        self._messages.close()
        self._stall_s = min(self._stall_s, SHUTDOWN_SEND_TIMEOUT_S)
        for limit in self._sending:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time() + self._stall_s)

    async def _send_message(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._stall_s) as limit:
                self._sending.add(limit)
                try:
                    await self._send(message)
                finally:
                    self._sending.discard(limit)
        except TimeoutError:
            self._disconnect_reason = (
                "The client read nothing when the server stopped." if self.is_shutting_down else describe_stall(self._stall_s)
            )
            get_transport(self._scope).abort()
            raise ClientGoneError(self._disconnect_reason) from None
        except OSError as error:
            raise ClientGoneError from error


def _choose_subprotocol(scope: Scope) -> str | None:
    """Choose one of the client's subprotocols; the one that holds an API key only if there is no other."""
    return min(scope.get("subprotocols", ()), key=lambda name: name.startswith(KEY_SUBPROTOCOL), default=None)
