"""The runner's ASGI application: `POST /transcribe` takes bytes and answers with one line of JSON per event.

The header `x-eardrum-request` holds the request as JSON. Each line of the response is an object with one key: `opened`,
`segment`, `checkpoint` (if wanted), `summary` (the last line of a success) or `error` (the last line of a failure). A response
with neither of the last two means that the runner died.

`POST /live` takes the messages of a live session (`eardrum.live`) in its body and writes a line per event at the same
time. Its settings come in the header `x-eardrum-live`; its last line is `ended` or `error`.

`POST /speakers` takes bytes and answers with one line, `result` or `error`: the turns of the speakers in the recording.
`POST /voice` does so with the voice of a recording of one speaker. Only the runner for speaker labels has them.

Hanging up cancels the request. A runner that is behind with reading cannot see that at once, so a client that sent a name in
`x-eardrum-id` should call `DELETE /transcribe/NAME`. Log lines name the `x-request-id` of the request that they are about.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import aclosing, nullcontext
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eardrum import tracing
from eardrum.concurrency import run_until_first
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.live import FinishCommand, MessageDecoder, SessionSettings, encode_event
from eardrum.request_ids import RAW_REQUEST_ID_HEADER, set_request_id
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.idle import IdleWork
from eardrum.runner.live.driver import LiveSessionDriver
from eardrum.runner.segmenter import SegmenterConfig
from eardrum.runner.speakers.diarization import SpeakerJob
from eardrum.runner.transcription import TranscriptionJob
from eardrum.runner.vad import VadModel
from eardrum.speakers import SpeakerRequest
from eardrum.transcription import (
    AudioOpened,
    Capabilities,
    Segment,
    TranscriptionRequest,
    TranscriptionSummary,
    WindowCheckpoint,
)

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class RunnerApp:
    """The ASGI application around one loaded model."""

    def __init__(
        self,
        batcher: WindowBatcher,
        vad: VadModel,
        capabilities: Capabilities,
        *,
        max_audio_s: float,
        idle_work: IdleWork | None = None,
    ):
        self._batcher = batcher
        self._vad = vad
        self._capabilities = capabilities
        self._max_audio_s = max_audio_s
        self._idle_work = idle_work
        self._cancellable: dict[str, asyncio.Future[None]] = {}
        self._shutting_down = asyncio.Event()
        self._app = Starlette(
            routes=[
                Route("/health", self._get_health),
                Route("/transcribe/{name}", self._cancel_request, methods=["DELETE"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the two streaming routes without the framework, which would copy their bodies."""
        route = (scope["path"], scope["method"]) if scope["type"] == "http" else None
        if route:
            set_request_id(get_header(scope, RAW_REQUEST_ID_HEADER))
        if route == ("/transcribe", "POST"):
            await self._stream_lines(self._run_transcription(scope, receive, send), send)
        elif route == ("/live", "POST"):
            await self._stream_lines(self._run_live_session(scope, receive, send), send)
        elif route in (("/speakers", "POST"), ("/voice", "POST")):
            await self._stream_lines(self._run_speaker_job(scope, receive, send), send)
        else:
            await self._app(scope, receive, send)

    def shut_down(self) -> None:
        """End the live sessions, which could last for hours. Requests may still finish."""
        self._shutting_down.set()

    def describe_health(self) -> dict[str, Any]:
        """Describe the model and its work, for `GET /health`."""
        return {
            "status": "ok",
            "capabilities": self._capabilities.to_json(),
            "batch": self._batcher.batch,
            "windows": self._batcher.decoded_windows,
        }

    async def _get_health(self, _: HttpRequest) -> Response:
        return JSONResponse(self.describe_health())

    async def _cancel_request(self, request: HttpRequest) -> Response:
        if writing := self._cancellable.get(request.path_params["name"]):
            writing.cancel()
        return Response(status_code=204)

    async def _stream_lines(self, answer: Awaitable[None], send: Send) -> None:
        """Send lines of JSON. If the work fails, the last line is the error."""
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")],
            }
        )
        try:
            with self._idle_work.hold_off() if self._idle_work else nullcontext():
                await answer
        except EardrumError as error:
            await send(_build_line({"error": error.to_json()}))
        except Exception as error:
            log.exception("The model failed on a request.")
            await send(
                _build_line(
                    {
                        "error": EardrumError(
                            f"The model failed on this audio: {error}. See its log: `eardrum logs MODEL`."
                        ).to_json()
                    }
                )
            )
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run_transcription(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = TranscriptionJob(
            _parse_request(scope),
            batcher=self._batcher,
            vad=self._vad,
            cutting=SegmenterConfig.of(self._capabilities),
            max_seconds=self._max_audio_s,
        )
        with trace_request(scope, "transcribe") as span:
            await self._stream_events(job, get_header(scope, b"x-eardrum-id"), receive, send, span)

    async def _run_speaker_job(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = SpeakerRequest.from_json(json.loads(get_header(scope, b"x-eardrum-request") or "{}"))
        job = SpeakerJob(request, batcher=self._batcher, vad=self._vad, max_seconds=self._max_audio_s)
        find = job.find_voice if scope["path"] == "/voice" else job.find_turns

        async def write() -> None:
            found = await find()
            await send(_build_line({"result": found.to_json()}))

        with trace_request(scope, scope["path"][1:]):
            await self._run_cancellable(write(), job, get_header(scope, b"x-eardrum-id"), receive)

    async def _run_live_session(self, scope: Scope, receive: Receive, send: Send) -> None:
        driver = LiveSessionDriver(
            _parse_settings(get_header(scope, b"x-eardrum-live")),
            batcher=self._batcher,
            vad=self._vad,
            capabilities=self._capabilities,
            max_seconds=self._max_audio_s,
        )
        with trace_request(scope, "live"):
            await _exchange_messages(driver, receive, send, self._shutting_down)

    async def _stream_events(
        self, job: TranscriptionJob, name: str, receive: Receive, send: Send, span: tracing.TraceSpan | None
    ) -> None:
        """Send events while the body arrives; stop as soon as the client hangs up or cancels."""

        async def write() -> None:
            async with aclosing(job.stream_events()) as events:
                async for event in events:
                    await send(_build_line({EVENT_NAMES[type(event)]: event.to_json()}))
                    if isinstance(event, TranscriptionSummary):
                        if span:
                            job.trace_decoding(span, event)
                        log.debug(
                            "Transcribed %.1f s in %d windows, decoded in %.2f s.", event.duration, event.windows, event.decode_s
                        )

        await self._run_cancellable(write(), job, name, receive)

    async def _run_cancellable(self, work: Coroutine[Any, Any, None], job: TranscriptionJob, name: str, receive: Receive) -> None:
        """Run the work of a job while its body arrives, until the client hangs up or cancels the request of this name."""
        writing = asyncio.ensure_future(work)
        if name:
            self._cancellable[name] = writing
        try:
            await run_until_first(writing, _feed_body(job, receive))
        finally:
            self._cancellable.pop(name, None)


def trace_request(scope: Scope, name: str) -> tracing.SpanScope:
    """Trace the runner's part of a request: its span belongs to the gateway's."""
    headers = {key: get_header(scope, key.encode()) for key in tracing.TRACE_HEADERS} if tracing.is_tracing() else {}
    return tracing.SpanScope(name, "SERVER", headers=headers)


async def _feed_body(job: TranscriptionJob, receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request":
        await job.pipe.feed(message.get("body", b""))
        if not message.get("more_body", False):
            job.pipe.finish()


def _parse_request(scope: Scope) -> TranscriptionRequest:
    try:
        return TranscriptionRequest.from_json(json.loads(get_header(scope, b"x-eardrum-request") or "{}"))
    except ValueError as error:
        raise InvalidRequestError(f"The header x-eardrum-request is not a request in JSON: {error}") from error


def get_header(scope: Scope, name: bytes) -> str:
    """Return the first header with this lower-case name, or an empty string."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


EVENT_NAMES: dict[type, str] = {
    AudioOpened: "opened",
    Segment: "segment",
    WindowCheckpoint: "checkpoint",
    TranscriptionSummary: "summary",
}


def _build_line(data: dict[str, Any]) -> dict[str, Any]:
    return {"type": "http.response.body", "body": json.dumps(data).encode() + b"\n", "more_body": True}


def _parse_settings(header: str) -> SessionSettings:
    """Parse the settings of a new session.

    Raises:
        InvalidRequestError: the header does not hold settings.
    """
    try:
        return SessionSettings.from_json(json.loads(header or "{}"))
    except ValueError as error:
        raise InvalidRequestError(f"The header x-eardrum-live does not hold settings in JSON: {error}") from error


async def _exchange_messages(driver: LiveSessionDriver, receive: Receive, send: Send, over: asyncio.Event) -> None:
    """Run the session until it ends, the client hangs up, or `over` is set.

    Raises:
        EardrumError: the session failed.
    """
    try:
        await run_until_first(_write_events(driver, send), _read_messages(driver, receive), over.wait())
    finally:
        await driver.close()


async def _read_messages(driver: LiveSessionDriver, receive: Receive) -> None:
    """Pass the client's messages to the driver until the client hangs up."""
    messages = MessageDecoder()
    finished = False
    while (message := await receive())["type"] == "http.request":
        for decoded in messages.feed(message.get("body", b"")):
            if finished:
                raise InvalidRequestError("The session is finished: open another one to send more.")
            finished = isinstance(decoded, FinishCommand)
            await driver.take_message(decoded)
        if not message.get("more_body", False) and not finished:
            finished = True
            await driver.take_message(FinishCommand())


async def _write_events(driver: LiveSessionDriver, send: Send) -> None:
    async with aclosing(driver.stream_events()) as events:
        async for event in events:
            await send({"type": "http.response.body", "body": encode_event(event), "more_body": True})
