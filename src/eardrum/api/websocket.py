"""Server-side WebSockets, independent of the protocol spoken on them: back-pressure, stall timeouts, shutdown, close codes."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import Any, Self

from eardrum.api.asgi import ClientGoneError, Message, Receive, Scope, Send, get_transport
from eardrum.api.auth import KEY_SUBPROTOCOL
from eardrum.connection_limits import describe_stall
from eardrum.errors import BusyError, EardrumError, ModelCoolingError, ModelUnloadedError, ShuttingDownError, TooLargeError

MAX_QUEUED_BYTES = 4 << 20
"""Bytes of a client's messages that may wait here: two minutes of 16 kHz. Then it is not read until there is room again."""

MESSAGE_OVERHEAD_BYTES = 100
"""What a message takes besides its bytes, about."""

SHUTDOWN_SEND_TIMEOUT_S = 1.0
"""How long a client has to take in a message when the server ends."""

REASON_BYTES = 123
"""What a closing frame has room for."""


class CloseCode(IntEnum):
    """Why a WebSocket is closed."""

    DONE = 1000
    GOING_AWAY = 1001
    REFUSED = 1008
    TOO_LARGE = 1009
    FAILED = 1011
    RESTARTING = 1012
    TRY_LATER = 1013


def get_close_code(error: EardrumError) -> CloseCode:
    """The code for an error that ends a session."""
    match error:
        case ShuttingDownError():
            return CloseCode.RESTARTING
        case BusyError() | ModelCoolingError() | ModelUnloadedError():
            return CloseCode.TRY_LATER
        case TooLargeError():
            return CloseCode.TOO_LARGE
    return CloseCode.REFUSED if error.status < 500 else CloseCode.FAILED


class ServerWebSocket:
    """A WebSocket from its handshake on: `async with Socket(...) as socket`, then `async for message in socket` and `say`.

    A task reads all the while: who does not read learns neither that the client left nor that it is alive. A client that
    leaves ends the work inside the block, one that takes in nothing for `stall_s` is hung up on. `over` is set when the server
    ends: then the messages end too, `ending` is true, who holds the socket says what is left to say and closes it, and nobody
    waits for a client that takes nothing in. What protocols refuse themselves, with words, are messages of more than `largest`
    bytes; those of more than twice that never get here.

    Raises:
        ClientGoneError: at the end of the block, and from whatever sends: the client left.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        over: asyncio.Event,
        stall_s: float,
        largest: int,
        subprotocol: str | None = None,
    ):
        self._scope = scope
        self._receive = receive
        self._send = send
        self._over = over
        self._stall_s = stall_s
        self._largest = largest
        self._subprotocol = subprotocol or _choose_subprotocol(
            scope
        )  # browsers hang up on a server that takes none of those they offer
        self._waiting: deque[str | bytes] = deque()
        self._size = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._ignores_messages = False
        self._closed = False
        self._disconnected = False
        self._reason = ""
        self._sending: set[asyncio.Timeout] = set()
        self.is_shutting_down = False

    async def __aenter__(self) -> Self:
        working = asyncio.current_task()
        assert working
        self._working: asyncio.Task[object] = working
        if (await self._receive())["type"] != "websocket.connect":
            raise ClientGoneError
        if farewell := self._scope["extensions"].get("eardrum.farewell"):
            farewell["call"]()
        if limit := self._scope["extensions"].get("eardrum.largest"):
            limit["call"](2 * self._largest)
        await self._send_message({"type": "websocket.accept", "subprotocol": self._subprotocol})
        self._tasks = {asyncio.create_task(self._read()), asyncio.create_task(self._watch_shutdown())}
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._disconnected and isinstance(error, Exception) and not self._closed:
            with suppress(ClientGoneError):  # a fault of ours, which somebody else logs
                await self.close(CloseCode.FAILED, "The server failed on this session; its log says why.")
        for task in self._tasks:
            task.cancel()
        if self._disconnected:
            self._working.uncancel()
            raise ClientGoneError(self._reason) from error
        await asyncio.wait(self._tasks)

    def __aiter__(self) -> Self:
        """What the client says, in order: text, or bytes."""
        return self

    async def __anext__(self) -> str | bytes:
        while not self._waiting:
            if self.is_shutting_down:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        message = self._waiting.popleft()
        self._size -= len(message) + MESSAGE_OVERHEAD_BYTES
        if self._size <= MAX_QUEUED_BYTES:
            self._room.set()
        return message

    async def send_json(self, message: Mapping[str, Any]) -> None:
        """Send a message as JSON."""
        await self._send_message({"type": "websocket.send", "text": json.dumps(message, ensure_ascii=False)})

    async def close(self, code: CloseCode = CloseCode.DONE, reason: str = "") -> None:
        """Say goodbye."""
        self._closed = True
        short = reason.encode()[:REASON_BYTES].decode(errors="ignore")
        await self._send_message({"type": "websocket.close", "code": int(code), "reason": short})

    def ignore_messages(self) -> None:
        """Nothing more is wanted of the client: what it still says is thrown away, its leaving is noticed."""
        self._ignores_messages = True
        self._waiting.clear()
        self._size = 0
        self._room.set()

    async def _read(self) -> None:
        while (message := await self._receive())["type"] == "websocket.receive":
            if self._ignores_messages:
                continue
            text = message.get("text")
            content: str | bytes = message["bytes"] if text is None else text
            self._waiting.append(content)
            self._size += len(content) + MESSAGE_OVERHEAD_BYTES
            self._arrived.set()
            if self._size > MAX_QUEUED_BYTES:
                self._room.clear()
            await self._room.wait()
        if not self._closed:
            self._disconnected = True
            self._working.cancel()

    async def _watch_shutdown(self) -> None:
        await self._over.wait()
        self.is_shutting_down = True
        self._ignores_messages = True
        self._room.set()
        self._arrived.set()
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
            self._reason = (
                "The client took nothing in when the server ended." if self.is_shutting_down else describe_stall(self._stall_s)
            )
            get_transport(self._scope).abort()
            raise ClientGoneError(self._reason) from None
        except OSError as error:
            raise ClientGoneError from error


async def run_until_first(*ways: Coroutine[Any, Any, None]) -> None:
    """Go several ways at once until one ends, or fails; the others are broken off."""
    tasks = {asyncio.ensure_future(way) for way in ways}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await _cancel_all(tasks)


async def run_alongside(leading: Coroutine[Any, Any, None], *beside: Coroutine[Any, Any, None]) -> None:
    """Do `leading` to its end, and the others meanwhile, which may end before; if one fails, all are over."""
    lead = asyncio.ensure_future(leading)
    tasks = {lead, *map(asyncio.ensure_future, beside)}
    try:
        left = tasks
        while not lead.done():
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        await _cancel_all(tasks)


async def _cancel_all(tasks: Iterable[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _choose_subprotocol(scope: Scope) -> str | None:
    """One of those that the client offers; a key only if there is no other."""
    return min(scope.get("subprotocols", ()), key=lambda name: name.startswith(KEY_SUBPROTOCOL), default=None)
