"""Forwards one HTTP request to a model's upstream and streams the response back, falling back to other models.

Reports loading to a streaming chat as reasoning, as llama-swap's `send_loading_state` does. Ends a broken response visibly: with
an error event where the format allows, and by closing the connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from eardrum.api.asgi import ErrorBodyBuilder, Receive, Scope, Send, abort_response, build_stream_headers
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.proxy import upstream_headers
from eardrum.api.request_log import get_record
from eardrum.errors import EardrumError, UpstreamError
from eardrum.gateway.fallback import is_retryable
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import ForwardedRequest, Service
from eardrum.gateway.upstreams.http_client import OutgoingRequest, UpstreamResponse

log = logging.getLogger(__name__)

EVENT_STREAM = b"text/event-stream"
FIXED_HEADERS = (b"content-length", b"content-encoding")
"""Headers of responses to which nothing can be appended."""
MAX_LOGGED_CHARS = 300
"""Characters of an upstream's error in the log."""
MAX_ERROR_BYTES = 1 << 16
"""Bytes of an upstream's error that are read."""

BUSY_STATUS = 429
MODEL_HEADER = b"x-eardrum-model"


@dataclass(slots=True)
class ProxyAttempt:
    """A model that may answer. `prepare` returns the request to its upstream, and whether to report loading to the client."""

    model: Model
    prepare: Callable[[], tuple[OutgoingRequest, bool]]


class ProxyExchange:
    """Forwards one client's request to an upstream, or to several until one answers.

    `received` is set once the whole body has arrived; it is None for a body that has been read before.
    """

    def __init__(
        self,
        service: Service,
        build_error_body: ErrorBodyBuilder,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        received: asyncio.Event | None = None,
    ):
        self._service = service
        self._build_error_body = build_error_body
        self._scope = scope
        self._receive = receive
        self._send = send
        self._received = received
        self._headers: list[tuple[bytes, bytes]] = []
        """Headers of the response, once it has begun."""
        self._begun = False
        self._is_answering = False
        """Whether the upstream's response has begun. Loading reports may have been sent before."""
        self._is_fallback = False
        self._last_chunk = b""

    async def run(self, model: Model, request: OutgoingRequest) -> None:
        """Forward the request and stream the response back.

        Raises:
            EardrumError: before the response began; later errors end the response visibly.
            ClientGoneError: the client disconnected, and the upstream request was cancelled.
        """
        await self.run_with_fallbacks([ProxyAttempt(model, lambda: (request, False))])

    async def run_with_fallbacks(self, attempts: Sequence[ProxyAttempt]) -> None:
        """Forward to the first model that does not fail. A response that has begun stays with its model.

        Raises:
            EardrumError, ClientGoneError: as `run`, from the last attempt.
        """
        for number, attempt in enumerate(attempts):
            self._is_fallback = number > 0
            if await self._try_model(attempt, attempts[number + 1].model if number + 1 < len(attempts) else None):
                return

    async def _try_model(self, attempt: ProxyAttempt, next_model: Model | None) -> bool:
        """Return False if the attempt failed before a response began and `next_model` should be tried."""
        get_record(self._scope).model = attempt.model.id
        request, reports_loading = attempt.prepare()
        try:
            async with DisconnectWatcher(self._scope, self._receive, after=self._received):
                if reports_loading:
                    await self._pass_with_loading_state(attempt.model, request, next_model)
                else:
                    async with ForwardedRequest(self._service, attempt.model, request) as response:
                        await self._pass_response(response, request, next_model)
        except EardrumError as error:
            if next_model and not self._is_answering and request.is_repeatable and is_retryable(error):
                log.warning("%s Trying fallback model %s.", error.sentence, next_model.id)
                return False
            if not self._begun:
                raise
            get_record(self._scope).note = error.message
            await self._end_with_error(error)
        return True

    async def _pass_with_loading_state(self, model: Model, request: OutgoingRequest, next_model: Model | None) -> None:
        async with (
            LoadingReporter(self._service, model, self._send_event) as loading,
            ForwardedRequest(self._service, model, request) as response,
        ):
            await loading.end()
            await self._pass_response(response, request, next_model)

    async def _pass_response(self, response: UpstreamResponse, request: OutgoingRequest, next_model: Model | None) -> None:
        if next_model and request.is_repeatable and (response.status >= 500 or response.status == BUSY_STATUS):
            text = (await response.read_body(MAX_ERROR_BYTES)).decode(errors="replace")
            raise UpstreamError(f"{response.origin} answered {response.status}: {text[:MAX_LOGGED_CHARS]}")
        self._is_answering = True
        if self._begun:  # with loading reports, so the status has been sent
            await self._pass_late_response(response)
            return
        if response.status >= 600:
            raise UpstreamError(f"{response.origin} answered with the invalid status {response.status}.")
        self._headers = upstream_headers.filter_response_headers(response.raw_headers)
        if self._is_fallback:
            self._headers.append((MODEL_HEADER, quote(get_record(self._scope).model, safe="/ :@+").encode()))
        await self._send({"type": "http.response.start", "status": response.status, "headers": self._headers})
        self._begun = True
        await self._pass_body(response)

    async def _pass_body(self, response: UpstreamResponse) -> None:
        chunk, more = b"", True
        while more:
            chunk = await response.read_chunk()
            more = not response.ended
            self._last_chunk = chunk
            await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def _pass_late_response(self, response: UpstreamResponse) -> None:
        """Pass a response after loading reports, whose headers have been sent. A response other than events is an error."""
        if (
            response.status == 200
            and upstream_headers.get_content_type(upstream_headers.filter_response_headers(response.raw_headers)) == EVENT_STREAM
        ):
            await self._pass_body(response)
            return
        text = (await response.read_body(MAX_ERROR_BYTES)).decode(errors="replace")
        raise UpstreamError(f"{response.origin} answered {response.status}: {text}")

    async def _send_event(self, event: bytes) -> None:
        """Send an event before the upstream answers. The first one begins the response."""
        if not self._begun:
            self._headers = build_stream_headers(EVENT_STREAM.decode())
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            self._begun = True
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def _end_with_error(self, error: EardrumError) -> None:
        fixed = any(name in FIXED_HEADERS for name, _ in self._headers)
        kind = upstream_headers.get_content_type(self._headers)
        if (
            event := b""
            if fixed
            else encode_stream_error(kind, self._scope["path"], self._build_error_body(error), self._last_chunk)
        ):
            await self._send({"type": "http.response.body", "body": event, "more_body": True})
        await abort_response(self._scope, self._receive)


REPORT_INTERVAL_S = 1.0
"""Seconds between two reports."""


class LoadingReporter:
    """Sends reports while the block waits for a model that is not loaded. Call `end` before sending anything else."""

    def __init__(self, service: Service, model: Model, send_event: Callable[[bytes], Awaitable[None]]):
        self._service = service
        self._model = model
        self._send_event = send_event
        self._ended = asyncio.Event()
        self._reporting: asyncio.Task[None] | None = None
        self._loaded = False

    async def __aenter__(self) -> Self:
        if self._service.get_state(self._model) is not ModelState.READY:
            self._reporting = asyncio.create_task(self._report())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.end(loaded=False)

    async def end(self, *, loaded: bool = True) -> None:
        """Stop, after a last report if the model is loaded. Returns once that is sent."""
        self._loaded = loaded
        self._ended.set()
        if self._reporting:
            await self._reporting
            self._reporting = None

    async def _report(self) -> None:
        started, last_report = time.monotonic(), ""
        while not self._ended.is_set():
            state = self._service.get_state(self._model)
            ahead = self._service.count_requests(self._model) - 1
            report = f"{self._model.id} is {_STATES[state]}" + (f", {ahead} ahead" if ahead > 0 else "")
            await self._send_event(_encode_event(f"{report}\n" if report != last_report else "."))
            last_report = report
            try:
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self._ended.wait()
            except TimeoutError:
                continue
        if self._loaded:
            await self._send_event(_encode_event(f"\n{self._model.id} is loaded ({time.monotonic() - started:.1f} s)\n\n"))


_STATES = dict.fromkeys(ModelState, "waiting to be loaded") | {ModelState.STARTING: "being loaded", ModelState.READY: "loaded"}


def _encode_event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}).encode() + b"\n\n"


TYPED_PATHS = ("/messages", "/responses")
"""Routes whose streams name each event's type. Clients of other routes read only the data."""

NDJSON_TYPES = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/json-lines")


def encode_stream_error(media_type: bytes, path: str, error: dict[str, Any], sent: bytes) -> bytes:
    """Encode an error as the last event of a stream whose last chunk was `sent`. Empty if the media type has no events."""
    if media_type == b"text/event-stream":
        separator = b"" if sent.endswith((b"\n\n", b"\r\n\r\n")) or not sent else b"\n\n"
        if path.endswith(TYPED_PATHS):
            return separator + b"event: error\ndata: " + json.dumps({"type": "error"} | error).encode() + b"\n\n"
        return separator + b"data: " + json.dumps(error).encode() + b"\n\n"
    if media_type in NDJSON_TYPES:
        separator = b"" if sent.endswith(b"\n") or not sent else b"\n"
        return separator + json.dumps(error).encode() + b"\n"
    return b""
