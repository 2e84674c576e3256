"""What happens to every request: an id, one line in the log, and a civil end when the body was not read."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress

from starlette.responses import Response

from eardrum.api.activity import FAILED, LONGEST_PATH, Activity, Record
from eardrum.api.asgi import App, ClientGoneError, Message, Receive, Scope, Send, hang_up, stall_timer, transport
from eardrum.api.waiting import KEY, Waiting
from eardrum.errors import CancelledRequestError, EardrumError

log = logging.getLogger("eardrum.access")

GOING_AWAY = 1001
"""WebSocket's code for a server that ends a connection."""
UPGRADED, REFUSED = 101, 403
"""Statuses of WebSockets that are let in, and of those that are closed before."""
HEAD = ("method", "path", "status")
"""What a line begins with, without names."""

ALLOW_ORIGIN = b"access-control-allow-origin"

LINGER_BYTES = 64 << 20
LINGER_S = 5.0
"""How much of an unwanted body is read after the answer. Closing at once would destroy the answer on its way."""

LAST_WORDS_S = LINGER_S + 1
"""How long a client has to take in why its request ends."""


def record(scope: Scope) -> Record:
    """The log record of the request that this scope belongs to."""
    found = scope["eardrum.record"]
    assert isinstance(found, Record)
    return found


class Access:
    """Pure ASGI middleware around the whole application."""

    def __init__(
        self,
        app: App,
        activity: Activity,
        refusal: Callable[[EardrumError], Response],
        stall_s: Callable[[], float] = lambda: 0.0,
    ):
        self._app = app
        self._stall_s = stall_s
        self._activity = activity
        self._refusal = refusal
        self._waiting = Waiting()
        self._start = secrets.token_hex(8)
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["eardrum.record"] = entry = Record(self._new_id(), scope, self._activity)
        scope[KEY] = self._waiting
        if stall := stall_timer(scope):
            stall.seconds = self._stall_s()
        exchange = Exchange(entry, receive, send)
        passed = exchange.send if scope["type"] == "http" else exchange.send_to_socket
        try:
            await self._app(scope, exchange.receive, passed)
        except ClientGoneError as gone:
            entry.note = str(gone) or "client left"
        except asyncio.CancelledError:
            error = cancelled() if entry.cancelled else self._waiting.over
            if not error or not entry.task or entry.task.uncancel():
                entry.note = "cut off by shutdown"
                raise
            await self._end_early(scope, exchange, error)
        finally:
            if stall and stall.reason:
                entry.note = stall.reason
            self._activity.over(entry)
            _write(scope, entry)
            del scope["eardrum.record"]  # they hold on to each other, which only a garbage collection would end

    def end_uploads(self, error: EardrumError) -> None:
        """Answer with this error all who have not sent their whole request, now or later."""
        self._waiting.end(error)

    def _new_id(self) -> str:
        """Different from those of all other requests to all servers; to ask the system for each would cost more."""
        return f"req_{self._start}{next(self._numbers):08x}"

    async def _end_early(self, scope: Scope, exchange: Exchange, error: EardrumError) -> None:
        """Say why the request ends; an answer that has begun is broken off, so that nobody takes it for whole."""
        record(scope).note = error.message
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                if scope["type"] == "websocket":
                    await exchange.send_to_socket({"type": "websocket.close", "code": GOING_AWAY, "reason": error.message})
                    return
                if not record(scope).status:
                    await self._refusal(error)(scope, exchange.receive, exchange.send)
                    return
        except TimeoutError:
            transport(scope).abort()  # it takes nothing in
            return
        await hang_up(scope, exchange.receive)


def cancelled() -> EardrumError:
    """What the client of a request is told that somebody ended."""
    return CancelledRequestError("Whoever runs this server cancelled the request.")


class Exchange:
    """One request's receive and send, watched."""

    def __init__(self, entry: Record, receive: Receive, send: Send):
        self._entry = entry
        self._receive = receive
        self._send = send
        self._read = False  # the whole body has been received, or the client is gone

    async def receive(self) -> Message:
        """The next message from the client."""
        message = await self._receive()
        self._read = self._read or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Pass the message on, with what every answer says; an early answer also announces that the connection ends."""
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"x-request-id", self._entry.id.encode())]
            if self._entry.readable and not any(name == ALLOW_ORIGIN for name, _ in headers):
                headers += self._entry.readable
            if not self._read and message["status"] >= FAILED:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
            self._entry.answering(message["status"], headers)
            await self._send(message)
            return
        self._entry.answered(len(message.get("body", b"")))
        if not self._read and self._entry.status >= FAILED and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def send_to_socket(self, message: Message) -> None:
        """The same for a WebSocket."""
        if not self._entry.status:
            unsaid = UPGRADED if message["type"] == "websocket.accept" else REFUSED
            self._entry.answering(message.get("status", unsaid), list(message.get("headers", ())))
        self._entry.answered(len(message.get("bytes") or message.get("text") or b""))
        await self._send(message)

    async def _linger(self) -> None:
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._read and size < LINGER_BYTES:
                    size += len((await self.receive()).get("body", b""))


def _write(scope: Scope, entry: Record) -> None:
    level = logging.DEBUG if scope["path"] == "/health" else logging.INFO
    if not log.isEnabledFor(level):
        return
    facts: dict[str, object] = {
        "request": entry.id,
        "method": scope.get("method", "SOCKET"),
        "path": scope["raw_path"][:LONGEST_PATH].decode("latin-1"),  # as it came: decoded, it could forge lines of the log
        "status": entry.status or 499,
    }
    if entry.model:
        facts["model"] = entry.model
    if entry.summary:
        facts |= {
            "audio_s": round(entry.summary.duration, 2),
            "windows": entry.summary.windows,
            "queue_s": round(entry.summary.queue_s, 3),
            "decode_s": round(entry.summary.decode_s, 3),
        }
        if entry.summary.dropped:
            facts["dropped"] = "; ".join(f"{item.text!r}: {item.reason}" for item in entry.summary.dropped[:3])
        if entry.summary.warnings:
            facts["warnings"] = " ".join(entry.summary.warnings)
    facts["total_s"] = round(entry.elapsed, 3)
    if entry.note:
        facts["note"] = entry.note
    line = logging.LogRecord(log.name, level, "", 0, _text(facts), None, None)  # nobody asks which line of code logs requests
    line.facts = facts
    log.handle(line)


def _text(facts: dict[str, object]) -> str:
    parts = [f"{facts['method']} {facts['path']} {facts['status']}"]
    for name, value in facts.items():
        if name not in HEAD:
            parts.append(f"{name}={json.dumps(value)}" if isinstance(value, str) and " " in value else f"{name}={value}")
    return " ".join(parts)
