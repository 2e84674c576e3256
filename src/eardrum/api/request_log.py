"""Gives every request an id and a log line, and ends requests that are cut short with an error. Pure ASGI middleware.

Also tracks requests for models: those in progress, which can be cancelled, and the last finished ones.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.responses import Response

from eardrum.api.asgi import ASGIApp, ClientGoneError, Message, Receive, Scope, Send, get_stall_timer, get_transport, hang_up
from eardrum.api.disconnect import STALL_TIMEOUTS_KEY, StallTimeouts
from eardrum.errors import CancelledRequestError, EardrumError
from eardrum.gateway.models.inventory import Model
from eardrum.transcription import TranscriptionSummary

log = logging.getLogger("eardrum.access")

GOING_AWAY = 1001
"""WebSocket's code for a server that ends a connection."""
UPGRADED, REFUSED = 101, 403
"""Statuses of WebSockets that are let in, and of those that are closed before."""
UNNAMED_FACTS = ("method", "path", "status")
"""What a line begins with, without names."""

ALLOW_ORIGIN = b"access-control-allow-origin"

LINGER_BYTES = 64 << 20
LINGER_S = 5.0
"""How much of an unwanted body is read after the answer. Closing at once would destroy the answer on its way."""

ERROR_SEND_TIMEOUT_S = LINGER_S + 1
"""How long a client has to take in why its request ends."""


def get_record(scope: Scope) -> RequestRecord:
    """The log record of the request that this scope belongs to."""
    found = scope["eardrum.record"]
    assert isinstance(found, RequestRecord)
    return found


class RequestLogMiddleware:
    """Pure ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        activity: RequestTracker,
        refusal: Callable[[EardrumError], Response],
        stall_s: Callable[[], float] = lambda: 0.0,
    ):
        self._app = app
        self._stall_s = stall_s
        self._activity = activity
        self._refusal = refusal
        self._waiting = StallTimeouts()
        self._start = secrets.token_hex(8)
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        scope["eardrum.record"] = entry = RequestRecord(self._new_id(), scope, self._activity)
        scope[STALL_TIMEOUTS_KEY] = self._waiting
        if stall := get_stall_timer(scope):
            stall.seconds = self._stall_s()
        exchange = LoggedExchange(entry, receive, send)
        passed = exchange.send if scope["type"] == "http" else exchange.send_websocket
        try:
            await self._app(scope, exchange.receive, passed)
        except ClientGoneError as gone:
            entry.note = str(gone) or "client left"
        except asyncio.CancelledError:
            error = make_cancelled_error() if entry.cancelled else self._waiting.shutdown_error
            if not error or not entry.task or entry.task.uncancel():
                entry.note = "cut off by shutdown"
                raise
            await self._end_early(scope, exchange, error)
        finally:
            if stall and stall.reason:
                entry.note = stall.reason
            self._activity.finish(entry)
            _log_request(scope, entry)
            del scope["eardrum.record"]  # they hold on to each other, which only a garbage collection would end

    def end_uploads(self, error: EardrumError) -> None:
        """Answer with this error all who have not sent their whole request, now or later."""
        self._waiting.stop_waiting(error)

    def _new_id(self) -> str:
        """Different from those of all other requests to all servers; to ask the system for each would cost more."""
        return f"req_{self._start}{next(self._numbers):08x}"

    async def _end_early(self, scope: Scope, exchange: LoggedExchange, error: EardrumError) -> None:
        """Say why the request ends; an answer that has begun is broken off, so that nobody takes it for whole."""
        get_record(scope).note = error.message
        try:
            async with asyncio.timeout(ERROR_SEND_TIMEOUT_S):
                if scope["type"] == "websocket":
                    await exchange.send_websocket({"type": "websocket.close", "code": GOING_AWAY, "reason": error.message})
                    return
                if not get_record(scope).status:
                    await self._refusal(error)(scope, exchange.receive, exchange.send)
                    return
        except TimeoutError:
            get_transport(scope).abort()  # it takes nothing in
            return
        await hang_up(scope, exchange.receive)


def make_cancelled_error() -> EardrumError:
    """What the client of a request is told that somebody ended."""
    return CancelledRequestError("Whoever runs this server cancelled the request.")


class LoggedExchange:
    """One request's receive and send, watched."""

    def __init__(self, entry: RequestRecord, receive: Receive, send: Send):
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
            if self._entry.cors_headers and not any(name == ALLOW_ORIGIN for name, _ in headers):
                headers += self._entry.cors_headers
            if not self._read and message["status"] >= FIRST_ERROR_STATUS:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
            self._entry.start_response(message["status"], headers)
            await self._send(message)
            return
        self._entry.count_response_bytes(len(message.get("body", b"")))
        if not self._read and self._entry.status >= FIRST_ERROR_STATUS and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain_body()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def send_websocket(self, message: Message) -> None:
        """The same for a WebSocket."""
        if not self._entry.status:
            unsaid = UPGRADED if message["type"] == "websocket.accept" else REFUSED
            self._entry.start_response(message.get("status", unsaid), list(message.get("headers", ())))
        self._entry.count_response_bytes(len(message.get("bytes") or message.get("text") or b""))
        await self._send(message)

    async def _drain_body(self) -> None:
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._read and size < LINGER_BYTES:
                    size += len((await self.receive()).get("body", b""))


def _log_request(scope: Scope, entry: RequestRecord) -> None:
    level = logging.DEBUG if scope["path"] == "/health" else logging.INFO
    if not log.isEnabledFor(level):
        return
    facts: dict[str, object] = {
        "request": entry.id,
        "method": scope.get("method", "SOCKET"),
        "path": scope["raw_path"][:MAX_PATH_CHARS].decode("latin-1"),  # as it came: decoded, it could forge lines of the log
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
    facts["total_s"] = round(entry.elapsed_s, 3)
    if entry.note:
        facts["note"] = entry.note
    line = logging.LogRecord(
        log.name, level, "", 0, _format_line(facts), None, None
    )  # nobody asks which line of code logs requests
    line.facts = facts
    log.handle(line)


def _format_line(facts: dict[str, object]) -> str:
    parts = [f"{facts['method']} {facts['path']} {facts['status']}"]
    for name, value in facts.items():
        if name not in UNNAMED_FACTS:
            parts.append(f"{name}={json.dumps(value)}" if isinstance(value, str) and " " in value else f"{name}={value}")
    return " ".join(parts)


MAX_FINISHED = 1000
"""Requests that are remembered when they are over."""

MAX_PATH_CHARS = 1000
"""Characters of a path that are remembered."""

FIRST_ERROR_STATUS = 400


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """What a text model counted for a request."""

    input: int = 0
    output: int = 0
    cached: int = -1
    """-1 is unknown."""


UNKNOWN_USAGE = TokenUsage()


class RequestRecord:
    """What is known of one request. The edges fill in what they learn."""

    __slots__ = (
        "_activity",
        "_model",
        "cancelled",
        "cors_headers",
        "headers",
        "id",
        "note",
        "scope",
        "sent",
        "started_at",
        "started_monotonic",
        "status",
        "summary",
        "task",
        "tokens",
    )

    def __init__(self, id: str, scope: Scope, activity: RequestTracker):
        self.id = id
        self.scope = scope
        self.summary: TranscriptionSummary | None = None
        self.tokens = UNKNOWN_USAGE
        self.note = ""
        self.cors_headers: tuple[tuple[bytes, bytes], ...] = ()
        """Headers that let a page of another origin read the answer, where that says nothing of this itself."""
        self.started_at = time.time()
        self.started_monotonic = time.monotonic()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """Of the answer."""
        self.sent = 0
        """Bytes of the answer's body."""
        self.cancelled = False
        self.task = asyncio.current_task()
        self._model = ""
        self._activity = activity

    @property
    def model(self) -> str:
        """Id of the model that the request is for, once that is known; "" if it is for none."""
        return self._model

    @model.setter
    def model(self, id: str) -> None:
        self._model = id
        self._activity.add(self)

    @property
    def method(self) -> str:
        """How it was asked. A WebSocket, of which ASGI does not say this, begins with a GET."""
        return str(self.scope.get("method", "GET"))

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started_monotonic

    def set_transcription(self, model: Model, summary: TranscriptionSummary) -> None:
        """The request was a transcription."""
        self.summary = summary
        self.model = summary.model or model.id

    def start_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The answer begins."""
        self.status, self.headers = status, headers
        if self._model:
            self._activity.on_change()

    def count_response_bytes(self, size: int) -> None:
        """More of the answer is out."""
        self.sent += size
        if self._model:
            self._activity.on_change()


@dataclass(slots=True)
class FinishedRequest:
    """A request that is over. Not frozen, because that would cost every request more than all the rest here."""

    number: int
    """Counts up from 1."""
    started_at: float
    """Unix time."""
    model: str
    path: str
    status: int
    headers: list[tuple[bytes, bytes]]
    """Of the answer."""
    seconds: float
    tokens: TokenUsage
    error: str


@dataclass(slots=True)
class RequestTracker:
    """All requests for models."""

    on_change: Callable[[], None] = lambda: None
    """Told whenever something here changes."""
    in_progress: dict[str, RequestRecord] = field(default_factory=dict)
    """By their ids, the oldest first."""
    finished: deque[FinishedRequest] = field(default_factory=lambda: deque(maxlen=MAX_FINISHED))
    """The last ones, the latest at the end."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def add(self, record: RequestRecord) -> None:
        """It is known which model the request is for."""
        self.in_progress[record.id] = record
        self.on_change()

    def finish(self, record: RequestRecord) -> None:
        """The request is over."""
        if not self.in_progress.pop(record.id, None):
            return
        self.finished.append(
            FinishedRequest(
                number=next(self._numbers),
                started_at=record.started_at,
                model=record.model,
                path=record.scope["path"][:MAX_PATH_CHARS],
                status=record.status,
                headers=record.headers,
                seconds=record.elapsed_s,
                tokens=record.tokens,
                error=record.note if record.status >= FIRST_ERROR_STATUS else "",
            )
        )
        self.on_change()

    def cancel(self, id: str) -> bool:
        """End a request in progress; False if there is none of this id."""
        record = self.in_progress.get(id)
        if not record or not record.task:
            return False
        if not record.cancelled:
            record.cancelled = True
            record.task.cancel()
        return True
