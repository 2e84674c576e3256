"""Forwards one HTTP request to a model's upstream and streams the response back, falling back to other models.

Reports loading to a streaming chat as reasoning, as llama-swap's `sendLoadingState` does, and ends a broken response visibly:
with an error event where the format allows, and by closing the connection.
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

from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.proxy import upstream_headers
from eardrum.api.request_log import get_record
from eardrum.errors import EardrumError, UpstreamError
from eardrum.gateway.fallback import is_retryable
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import ForwardedRequest, Service
from eardrum.gateway.upstreams.external import OutgoingRequest
from eardrum.gateway.upstreams.http_client import UpstreamResponse

log = logging.getLogger(__name__)

EVENT_STREAM = b"text/event-stream"
FIXED_HEADERS = (b"content-length", b"content-encoding")
"""Headers of answers that nothing can be added to."""
MAX_LOGGED_CHARS = 300
"""Characters of a refusal in the log."""
MAX_ERROR_BYTES = 1 << 16
"""Bytes of a refusal that fit into an event of a stream that has begun."""


BUSY_STATUS = 429
MODEL_HEADER = b"x-eardrum-model"


@dataclass(frozen=True, slots=True)
class ProxyAttempt:
    """A model that may answer. `prepare` makes what its upstream is sent, and says whether the client is told that it loads."""

    model: Model
    prepare: Callable[[], tuple[OutgoingRequest, bool]]


class ProxyExchange:
    """One client and one upstream, or several of which one answers.

    `received` is set once the whole body has come, if it is not here yet.
    """

    def __init__(
        self,
        service: Service,
        worded: ErrorBodyBuilder,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        received: asyncio.Event | None = None,
    ):
        self._service = service
        self._build_error = worded
        self._scope = scope
        self._receive = receive
        self._send = send
        self._received = received
        self._headers: list[tuple[bytes, bytes]] = []
        """Of the answer, once it has begun."""
        self._begun = False
        self._answering = False
        """Whether an upstream's answer is what was sent, and not signs of loading."""
        self._stands_in = False
        self._last = b""

    async def run(self, model: Model, request: OutgoingRequest) -> None:
        """Pass the request on and the answer back.

        Raises:
            EardrumError: before anything was sent; later errors end the answer visibly.
            ClientGoneError: the client hung up, and the upstream was told.
        """
        await self.run_with_fallbacks([ProxyAttempt(model, lambda: (request, False))])

    async def run_with_fallbacks(self, tries: Sequence[ProxyAttempt]) -> None:
        """As `run`, with the first of these that does not fail. An answer that has begun stays with its model.

        Raises:
            EardrumError, ClientGoneError: as `run`, by the last that was tried.
        """
        for number, chosen in enumerate(tries):
            self._stands_in = number > 0
            if await self._try_model(chosen, tries[number + 1].model if number + 1 < len(tries) else None):
                return

    async def _try_model(self, chosen: ProxyAttempt, after: Model | None) -> bool:
        """Whether this one has had the last word; if not, nothing of an answer was sent, and the one `after` it may do better."""
        get_record(self._scope).model = chosen.model.id
        request, tell_loading = chosen.prepare()
        try:
            async with DisconnectWatcher(self._scope, self._receive, after=self._received):
                if tell_loading:
                    await self._pass_with_loading_state(chosen.model, request, after)
                else:
                    async with ForwardedRequest(self._service, chosen.model, request) as response:
                        await self._pass_response(response, request, after)
        except EardrumError as error:
            if after and not self._answering and request.is_repeatable and is_retryable(error):
                log.warning("%s Trying %s.", error.sentence, after.id)
                return False
            if not self._begun:
                raise
            get_record(self._scope).note = error.message
            await self._end_with_error(error)
        return True

    async def _pass_with_loading_state(self, model: Model, request: OutgoingRequest, after: Model | None) -> None:
        async with (
            LoadingReporter(self._service, model, self._send_event) as loading,
            ForwardedRequest(self._service, model, request) as response,
        ):
            await loading.end()
            await self._pass_response(response, request, after)

    async def _pass_response(self, response: UpstreamResponse, request: OutgoingRequest, after: Model | None) -> None:
        if after and request.is_repeatable and (response.status >= 500 or response.status == BUSY_STATUS):
            said = (await response.read_body(MAX_ERROR_BYTES)).decode(errors="replace")
            raise UpstreamError(f"{response.origin} answered {response.status}: {said[:MAX_LOGGED_CHARS]}")
        self._answering = True
        if self._begun:  # with the loading state: the status is out
            await self._pass_late_response(response)
            return
        if response.status >= 600:
            raise UpstreamError(f"{response.origin} answered with the status {response.status}, which is none.")
        self._headers = upstream_headers.filter_response_headers(response.raw_headers)
        if self._stands_in:
            self._headers.append((MODEL_HEADER, quote(get_record(self._scope).model, safe="/ :@+").encode()))
        await self._send({"type": "http.response.start", "status": response.status, "headers": self._headers})
        self._begun = True
        await self._pass_body(response)

    async def _pass_body(self, response: UpstreamResponse) -> None:
        chunk, more = b"", True
        while more:
            chunk = await response.read_chunk()
            more = not response.ended
            self._last = chunk
            await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def _pass_late_response(self, response: UpstreamResponse) -> None:
        """An answer whose head has been sent already. Anything but events goes into one."""
        if (
            response.status == 200
            and upstream_headers.get_content_type(upstream_headers.filter_response_headers(response.raw_headers)) == EVENT_STREAM
        ):
            await self._pass_body(response)
            return
        said = (await response.read_body(MAX_ERROR_BYTES)).decode(errors="replace")
        raise UpstreamError(f"{response.origin} answered {response.status}: {said}")

    async def _send_event(self, event: bytes) -> None:
        """Send an event before there is an answer; the first one begins the stream."""
        if not self._begun:
            self._headers = [(b"content-type", EVENT_STREAM), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            self._begun = True
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def _end_with_error(self, error: EardrumError) -> None:
        fixed = any(name in FIXED_HEADERS for name, _ in self._headers)
        kind = upstream_headers.get_content_type(self._headers)
        if words := b"" if fixed else encode_stream_error(kind, self._scope["path"], self._build_error(error), self._last):
            await self._send({"type": "http.response.body", "body": words, "more_body": True})
        await abort_response(self._scope, self._receive)


REPORT_INTERVAL_S = 1.0
"""Between two signs of life."""


class LoadingReporter:
    """Speaks while the block waits for its model. Says nothing if that is up. `end` it before anything else is said."""

    def __init__(self, service: Service, model: Model, say: Callable[[bytes], Awaitable[None]]):
        self._service = service
        self._model = model
        self._send_event = say
        self._over = asyncio.Event()
        self._reporting: asyncio.Task[None] | None = None
        self._loaded = False

    async def __aenter__(self) -> Self:
        if self._service.get_state(self._model) is not ModelState.READY:
            self._reporting = asyncio.create_task(self._report())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.end(loaded=False)

    async def end(self, *, loaded: bool = True) -> None:
        """Say no more, but for that it is loaded; returns once the last word is out."""
        self._loaded = loaded
        self._over.set()
        if self._reporting:
            await self._reporting
            self._reporting = None

    async def _report(self) -> None:
        since, said = time.monotonic(), ""
        while not self._over.is_set():
            state = self._service.get_state(self._model)
            ahead = self._service.count_requests(self._model) - 1
            now = f"{self._model.id} is {_STATES[state]}" + (f", {ahead} ahead" if ahead > 0 else "")
            await self._send_event(_encode_event(f"{now}\n" if now != said else "."))
            said = now
            try:
                async with asyncio.timeout(REPORT_INTERVAL_S):
                    await self._over.wait()
            except TimeoutError:
                continue
        if self._loaded:
            await self._send_event(_encode_event(f"\n{self._model.id} is loaded ({time.monotonic() - since:.1f} s)\n\n"))


_STATES = dict.fromkeys(ModelState, "waiting to be loaded") | {ModelState.STARTING: "being loaded", ModelState.READY: "loaded"}


def _encode_event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}).encode() + b"\n\n"


ErrorBodyBuilder = Callable[[EardrumError], dict[str, Any]]
"""An error as an object of the API."""

TYPED_PATHS = ("/messages", "/responses")
"""Routes whose streams name the kind of each event; clients of the others look at the data alone."""

NDJSON_TYPES = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/json-lines")


class CutOffError(Exception):
    """The answer ends here, short of its end. Whoever runs the application closes the connection over it."""


def encode_stream_error(kind: bytes, path: str, error: dict[str, Any], sent: bytes) -> bytes:
    """What a stream of this media type says at its end, after what was `sent` last; nothing if its format has no room for it."""
    if kind == b"text/event-stream":
        fresh = b"" if sent.endswith((b"\n\n", b"\r\n\r\n")) or not sent else b"\n\n"
        if path.endswith(TYPED_PATHS):
            return fresh + b"event: error\ndata: " + json.dumps({"type": "error"} | error).encode() + b"\n\n"
        return fresh + b"data: " + json.dumps(error).encode() + b"\n\n"
    if kind in NDJSON_TYPES:
        fresh = b"" if sent.endswith(b"\n") or not sent else b"\n"
        return fresh + json.dumps(error).encode() + b"\n"
    return b""


async def abort_response(scope: Scope, receive: Receive) -> None:
    """End the connection without ending the answer, so that no client takes what it has for the whole.

    Raises:
        CutOffError: the server that runs us has no better way.
    """
    hang_up = scope.get("extensions", {}).get("eardrum.hang_up")
    if not hang_up:
        raise CutOffError
    hang_up["call"]()
    while (await receive())["type"] != "http.disconnect":
        pass
