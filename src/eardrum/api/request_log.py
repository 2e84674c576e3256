"""Logs every request under an id, and ends requests that the operator cancelled with an error. Pure ASGI middleware.

Also tracks requests for models: those in progress, which can be cancelled, and the last finished ones.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec import Struct
from starlette.responses import Response

from eardrum import tracing
from eardrum.api.asgi import (
    ASGIApp,
    ClientGoneError,
    Message,
    Receive,
    Scope,
    Send,
    get_header,
    get_stall_timer,
    get_transport,
    hang_up,
)
from eardrum.api.request_body import STALL_TIMEOUTS_KEY, StallTimeouts
from eardrum.errors import CancelledRequestError, EardrumError
from eardrum.gateway.key_usage import KeyUsage
from eardrum.gateway.metrics import CURRENT_MODEL_WAIT, ModelWait
from eardrum.gateway.models.inventory import Model
from eardrum.request_ids import RAW_REQUEST_ID_HEADER, create_request_id, parse_client_id, set_request_id
from eardrum.speech import SpeechSummary
from eardrum.transcription import TranscriptionSummary

log = logging.getLogger("eardrum.access")

GOING_AWAY = 1001
"""WebSocket close code of a server that shuts down."""
UPGRADED, REFUSED = 101, 403
"""Logged statuses of accepted and of refused WebSockets."""
UNNAMED_FACTS = ("method", "path", "status")
"""Facts that begin a log line, without their names."""

ALLOW_ORIGIN = b"access-control-allow-origin"

LINGER_BYTES = 64 << 20
LINGER_S = 5.0
"""Bytes and seconds of an unwanted body that are read after an early error response. Closing the connection at once would
destroy the response on its way."""

ERROR_SEND_TIMEOUT_S = LINGER_S + 1
"""Seconds in which a client must read the error that ends its request."""


def get_record(scope: Scope) -> RequestRecord:
    """Return the record of the request that this scope belongs to."""
    record = scope["eardrum.record"]
    assert isinstance(record, RequestRecord)
    return record


class RequestLogMiddleware:
    """Logs and tracks the requests of the whole application. `build_error_response` formats an error for a path."""

    def __init__(
        self,
        app: ASGIApp,
        activity: RequestTracker,
        build_error_response: Callable[[str, EardrumError], Response],
        stall_s: float = 0.0,
    ):
        self._app = app
        self._stall_s = stall_s
        self._activity = activity
        self._build_error_response = build_error_response
        self._stall_timeouts = StallTimeouts()
        self._client_ids: set[str] = set()
        """Ids in use that clients chose."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request and log it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        id = self._choose_id(scope)
        set_request_id(id)
        span = _start_request_span(scope) if tracing.is_tracing() else None
        scope["eardrum.record"] = record = RequestRecord(id, scope, self._activity)
        CURRENT_MODEL_WAIT.set(record.model_wait)
        scope[STALL_TIMEOUTS_KEY] = self._stall_timeouts
        if stall := get_stall_timer(scope):
            stall.seconds = self._stall_s
        exchange = LoggedExchange(record, receive, send)
        logged_send = exchange.send if scope["type"] == "http" else exchange.send_websocket
        try:
            await self._app(scope, exchange.receive, logged_send)
        except ClientGoneError as gone:
            if not exchange.is_answered:  # else the client got all that it came for
                record.note = str(gone) or "client disconnected"
        except asyncio.CancelledError:
            error = create_cancelled_error() if record.cancelled else self._stall_timeouts.shutdown_error
            if not error or not record.task or record.task.uncancel():
                record.note = "cut off by shutdown"
                raise
            await self._end_early(scope, exchange, error)
        finally:
            if stall and stall.reason:
                record.note = stall.reason
            self._activity.finish(record)
            self._client_ids.discard(id)
            if record.key_usage:
                record.key_usage.end_request()
            _log_request(scope, record)
            if span:
                _end_request_span(span, scope, record, self._activity.match_route(scope["path"]))
            del scope["eardrum.record"]  # a reference cycle, which only a garbage collection would free

    def end_uploads(self, error: EardrumError) -> None:
        """End all incomplete uploads, now and later, with this error."""
        self._stall_timeouts.stop_waiting(error)

    def _choose_id(self, scope: Scope) -> str:
        """Return the client's id, so that one id leads through the logs of all servers, unless it is in use or unusable."""
        wanted = get_header(scope, RAW_REQUEST_ID_HEADER)
        id = parse_client_id(wanted) if wanted else ""
        if not id or id in self._client_ids:
            return create_request_id()
        self._client_ids.add(id)
        return id

    async def _end_early(self, scope: Scope, exchange: LoggedExchange, error: EardrumError) -> None:
        """Send the error; a response that has begun is cut off instead, so that no client takes it for complete."""
        get_record(scope).note = error.message
        try:
            async with asyncio.timeout(ERROR_SEND_TIMEOUT_S):
                if scope["type"] == "websocket":
                    await exchange.send_websocket({"type": "websocket.close", "code": GOING_AWAY, "reason": error.message})
                    return
                if not get_record(scope).status:
                    await self._build_error_response(scope["path"], error)(scope, exchange.receive, exchange.send)
                    return
        except TimeoutError:
            get_transport(scope).abort()  # the client does not read
            return
        await hang_up(scope, exchange.receive)


def create_cancelled_error() -> EardrumError:
    """Create the error of a request that the operator cancelled."""
    return CancelledRequestError("The server's operator cancelled the request.")


class LoggedExchange:
    """Wraps one request's `receive` and `send`, and records what passes."""

    def __init__(self, record: RequestRecord, receive: Receive, send: Send):
        self._record = record
        self._receive = receive
        self._send = send
        self._body_read = False  # also set when the client has disconnected
        self._has_left = False
        self.is_answered = False
        """Whether all of an HTTP response was sent before the client disconnected."""

    async def receive(self) -> Message:
        """Receive the client's next message."""
        message = await self._receive()
        self._has_left = self._has_left or message["type"] == "http.disconnect"
        self._body_read = self._body_read or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message with the headers of every response. An early error response also closes the connection."""
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (RAW_REQUEST_ID_HEADER, self._record.id.encode())]
            if self._record.key_usage and self._record.key_usage.is_limited:
                headers += self._record.key_usage.build_limit_headers()
            if self._record.cors_headers and ALLOW_ORIGIN not in dict(headers):
                headers += self._record.cors_headers
            if not self._body_read and message["status"] >= FIRST_ERROR_STATUS:
                headers.append((b"connection", b"close"))
            message["headers"] = headers
            self._record.start_response(message["status"], headers)
            await self._send(message)
            return
        self._record.count_response_bytes(len(message.get("body", b"")))
        if not self._body_read and self._record.status >= FIRST_ERROR_STATUS and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain_body()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)
        self.is_answered = not message.get("more_body", False) and not self._has_left

    async def send_websocket(self, message: Message) -> None:
        """Send a WebSocket message and record it."""
        if not self._record.status:
            default = UPGRADED if message["type"] == "websocket.accept" else REFUSED
            self._record.start_response(message.get("status", default), list(message.get("headers", ())))
        self._record.count_response_bytes(len(message.get("bytes") or message.get("text") or b""))
        await self._send(message)

    async def _drain_body(self) -> None:
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not self._body_read and size < LINGER_BYTES:
                    size += len((await self.receive()).get("body", b""))


def _start_request_span(scope: Scope) -> tracing.TraceSpan | None:
    """Start the span of a request, part of the client's trace if it sent one. Health checks have none."""
    if scope["path"] == "/health":
        return None
    headers = {name: value for name in tracing.TRACE_HEADERS if (value := get_header(scope, name.encode()))}
    method = scope.get("method", "GET")
    attributes = {"http.request.method": method, "url.path": scope["path"][:MAX_PATH_CHARS], "url.scheme": scope["scheme"]}
    span = tracing.start_span(method, "SERVER", headers=headers, attributes=attributes)
    tracing.set_current_span(span)
    return span


def _end_request_span(span: tracing.TraceSpan, scope: Scope, record: RequestRecord, route: str) -> None:
    status = record.status or CLIENT_LEFT
    attributes: dict[str, tracing.AttributeValue] = {"http.response.status_code": status}
    if route != OTHER_ROUTE:
        span.set_name(f"{record.method} {route}")
        attributes["http.route"] = route
    if record.model:
        attributes["eardrum.model"] = record.model
    if summary := record.summary:
        attributes |= {
            "eardrum.audio.duration": summary.duration,
            "eardrum.windows": summary.windows,
            "eardrum.queue.duration": summary.queue_s,
            "eardrum.decode.duration": summary.decode_s,
        }
    span.set_attributes(attributes)
    if status >= 500:
        span.mark_failed(str(status))
    span.end()


def _log_request(scope: Scope, record: RequestRecord) -> None:
    level = logging.DEBUG if scope["path"] == "/health" else logging.INFO
    if not log.isEnabledFor(level):
        return
    facts: dict[str, object] = {
        "request": record.id,
        "method": scope.get("method", "SOCKET"),
        "path": scope["raw_path"][:MAX_PATH_CHARS].decode("latin-1"),  # unquoted, it could forge log lines
        "status": record.status or CLIENT_LEFT,
    }
    if model := record.model:
        facts["model"] = model
    facts |= record.model_wait.to_facts()
    if record.summary:
        facts |= _summarize_transcription(record.summary)
    if record.speech:
        facts |= {"characters": record.speech.characters, "audio_s": round(record.speech.duration, 2)}
        facts |= {"queue_s": round(record.speech.queue_s, 3), "synthesis_s": round(record.speech.synthesis_s, 3)}
    facts["total_s"] = round(time.monotonic() - record.started_monotonic, 3)
    if record.note:
        facts["note"] = record.note
    # Built by hand: finding the calling line, as log.info() does, would cost time.
    line = logging.LogRecord(log.name, level, "", 0, _format_line(facts), None, None)
    line.facts = facts
    log.handle(line)
    if record.summary and record.summary.dropped and log.isEnabledFor(logging.DEBUG):
        log.debug("Dropped text: %s", "; ".join(f"{item.text!r} ({item.reason})" for item in record.summary.dropped))


def _summarize_transcription(summary: TranscriptionSummary) -> dict[str, object]:
    facts: dict[str, object] = {
        "audio_s": round(summary.duration, 2),
        "windows": summary.windows,
        "queue_s": round(summary.queue_s, 3),
        "decode_s": round(summary.decode_s, 3),
    }
    if summary.dropped:
        # Without the text: what people say is not for logs. It is logged at debug.
        reasons = Counter(item.reason for item in summary.dropped)
        facts["dropped"] = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    if summary.warnings:
        facts["warnings"] = " ".join(summary.warnings)
    return facts


def _format_line(facts: dict[str, object]) -> str:
    parts = [f"{facts['method']} {facts['path']} {facts['status']}"]
    for name, value in facts.items():
        if name not in UNNAMED_FACTS:
            parts.append(f"{name}={json.dumps(value)}" if isinstance(value, str) and " " in value else f"{name}={value}")
    return " ".join(parts)


MAX_FINISHED = 1000
"""Finished requests that are kept."""

MAX_PATH_CHARS = 1000
"""Characters of a path that are logged and kept."""

FIRST_ERROR_STATUS = 400

CLIENT_LEFT = 499
"""Logged status of a request whose client disconnected before an answer."""

OTHER_ROUTE = "other"
"""Stands for all paths that are not a route: a client's words must not become the label of a metric."""


class TokenUsage(Struct, frozen=True):
    """Tokens of one request to a text model."""

    input: int = 0
    output: int = 0
    cached: int = -1
    """-1: unknown."""


UNKNOWN_USAGE = TokenUsage()


class RequestRecord:
    """One request's status, model and measurements. The protocols fill in the model, the summary and the note."""

    __slots__ = (
        "_activity",
        "_model",
        "cancelled",
        "cors_headers",
        "headers",
        "id",
        "key_usage",
        "model_wait",
        "note",
        "scope",
        "sent",
        "speech",
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
        self.speech: SpeechSummary | None = None
        """The totals of a synthesis."""
        self.model_wait = ModelWait()
        self.tokens = UNKNOWN_USAGE
        self.note = ""
        self.cors_headers: tuple[tuple[bytes, bytes], ...] = ()
        """CORS headers for the response, unless it has its own."""
        self.started_at = time.time()
        self.started_monotonic = time.monotonic()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """Headers of the response."""
        self.sent = 0
        """Bytes of the response's body."""
        self.cancelled = False
        self.key_usage: KeyUsage | None = None
        """The key that the request counts against."""
        self.task = asyncio.current_task()
        self._model = ""
        self._activity = activity

    @property
    def model(self) -> str:
        """Id of the request's model; empty until it is known, and for requests without a model."""
        return self._model

    @model.setter
    def model(self, id: str) -> None:
        self._model = id
        self._activity.add(self)

    @property
    def method(self) -> str:
        """The HTTP method. ASGI has none for a WebSocket, which begins with a GET."""
        return str(self.scope.get("method", "GET"))

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self.started_monotonic

    def set_transcription(self, model: Model, summary: TranscriptionSummary) -> None:
        """Record the summary and the model of a transcription."""
        self.summary = summary
        self.model = summary.model or model.id

    def start_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Record the response's status and headers."""
        self.status, self.headers = status, headers
        if self._model:
            self._activity.on_change()

    def count_response_bytes(self, size: int) -> None:
        """Record sent bytes of the response's body."""
        self.sent += size
        if self._model:
            self._activity.on_change()


@dataclass(slots=True)
class FinishedRequest:
    """A finished request. Not frozen: that would cost every request more than everything else here."""

    number: int
    """Counts up from 1."""
    started_at: float
    """Unix time."""
    model: str
    path: str
    status: int
    headers: list[tuple[bytes, bytes]]
    """Headers of the response."""
    seconds: float
    tokens: TokenUsage
    error: str


@dataclass(slots=True)
class RequestTracker:
    """Keeps the requests for models: all in progress, and the last finished ones."""

    on_change: Callable[[], None] = lambda: None
    """Called after every change."""
    in_progress: dict[str, RequestRecord] = field(default_factory=dict)
    """By request id, the oldest first."""
    finished: deque[FinishedRequest] = field(default_factory=lambda: deque(maxlen=MAX_FINISHED))
    """The latest is last."""
    responses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Responses of all requests, by route and status."""
    counts_responses: bool = True
    """Whether responses are counted. Only `/metrics` shows their numbers."""
    match_route: Callable[[str], str] = lambda _: OTHER_ROUTE
    """Returns the route that a path belongs to, as it is documented."""
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def add(self, record: RequestRecord) -> None:
        """Add a request whose model is known."""
        self.in_progress[record.id] = record
        self.on_change()

    def finish(self, record: RequestRecord) -> None:
        """Count a request, and move it to the finished ones if it has a model."""
        if self.counts_responses:
            self.responses[self.match_route(record.scope["path"]), record.status or CLIENT_LEFT] += 1
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
                seconds=time.monotonic() - record.started_monotonic,
                tokens=record.tokens,
                error=record.note if record.status >= FIRST_ERROR_STATUS else "",
            )
        )
        self.on_change()

    def cancel(self, id: str) -> bool:
        """Cancel a request in progress. Returns False if no request has this id."""
        record = self.in_progress.get(id)
        if not record or not record.task:
            return False
        if not record.cancelled:
            record.cancelled = True
            record.task.cancel()
        return True
