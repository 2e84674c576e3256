"""The routes of OpenAI's API; `/v1/audio/transcriptions` and `/v1/audio/translations`.

Raw ASGI, because the response may begin while the upload is still arriving. An upload is a multipart form, or JSON with
base64 audio.
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn, Protocol
from urllib.parse import parse_qsl, quote

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from eardrum.api import asgi, json_body, request_log
from eardrum.api.asgi import Receive, Scope, Send, build_stream_headers, get_header, receive_disconnect
from eardrum.api.json_body import check_surrogates
from eardrum.api.openai import responses
from eardrum.api.openai.models import OpenAIModelRoutes
from eardrum.api.openai.params import RAW_FORMATS, TranscriptionParams, flatten_json, parse_params
from eardrum.api.uploads import FormFields, MultipartForm, RequestBody
from eardrum.config import LimitSettings, Settings
from eardrum.errors import EardrumError, InvalidRequestError, UnsupportedMediaTypeError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.subtitles import SubtitleRules
from eardrum.transcription import AudioOpened, Segment, SpeechTask, TextDelta, Transcript, TranscriptionRequest


def build_routes(service: Service) -> list[BaseRoute]:
    """Build the routes of OpenAI's API."""
    models = OpenAIModelRoutes(service)
    return [
        Route("/v1/audio/transcriptions", TranscriptionEndpoint(service, SpeechTask.TRANSCRIBE), methods=["POST"]),
        Route("/v1/audio/translations", TranscriptionEndpoint(service, SpeechTask.TRANSLATE), methods=["POST"]),
        Route("/v1/models", models.list_models),
        Route("/models", models.list_models),  # llama-swap's path
        Route("/v1/models/{id:path}", models.show_model),
    ]


class TranscriptionEndpoint:
    """Transcribes or translates an uploaded recording. An ASGI application."""

    def __init__(self, service: Service, task: SpeechTask):
        self._service = service
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upload, in a form or in JSON."""
        upload = open_upload(scope, receive, self._task, self._service.settings)
        with self._service.create_spool() as spool:
            await upload.begin()
            await UploadExchange(self._service, upload, spool, scope, send).run()


class UploadExchange:
    """Answers one upload while it is still being received."""

    def __init__(self, service: Service, upload: AudioUpload, spool: Spool, scope: Scope, send: Send):
        self._service = service
        self._upload = upload
        self._spool = spool
        self._scope = scope
        self._send = send
        self._received = asyncio.Event()
        self._streaming = False

    async def run(self) -> None:
        """Receive and answer at the same time. A disconnect or an invalid upload cancels the work.

        Raises:
            EardrumError: before the response began; later errors go into the stream.
            ClientGoneError: the client disconnected.
        """
        receiving = asyncio.ensure_future(self._receive_upload())
        answering = asyncio.ensure_future(self._answer())
        try:
            await asyncio.wait([receiving, answering], return_when=asyncio.FIRST_COMPLETED)
            await (answering if answering.done() else receiving)
        except EardrumError as error:
            await _cancel_and_wait(answering)
            if not self._streaming:
                raise
            request_log.get_record(self._scope).note = error.message
            await self._end_stream(responses.encode_error(error))
        finally:
            await _cancel_and_wait(receiving)
            await _cancel_and_wait(answering)

    async def _receive_upload(self) -> NoReturn:
        """Receive the upload, then watch for a disconnect. Ends only by raising."""
        await self._upload.read_audio(self._spool)
        self._received.set()
        await self._upload.body.wait_for_disconnect()

    async def _answer(self) -> None:
        """Begin as soon as the model is known, and begin again if fields after the file change the request."""
        params = self._upload.parse_params()
        if params.model and params.stream:
            await self._stream_response(params)
            return
        early = asyncio.ensure_future(self._transcribe(params, is_final=False)) if params.model else None
        try:
            await self._wait_for_upload(early)
            final = self._upload.parse_params()
            if early and not final.stream and self._is_same_request(final, params):
                await self._send_response(await early, final)
                return
            if early:
                await _cancel_and_wait(early)
            if final.stream:
                await self._stream_response(final)
            else:
                await self._send_response(await self._transcribe(final), final)
        finally:
            if early:
                await _cancel_and_wait(early)

    async def _wait_for_upload(self, work: asyncio.Future[Any] | None) -> None:
        """Wait for the end of the upload, or for an earlier failure of `work`."""
        received: asyncio.Future[Any] = asyncio.ensure_future(self._received.wait())
        try:
            if work:
                await asyncio.wait({received, work}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
            await received
        finally:
            received.cancel()

    async def _transcribe(self, params: TranscriptionParams, *, is_final: bool = True) -> Transcript:
        """Transcribe. If later fields may still change the request, include times: they cost nothing, and a later field may ask
        for them."""
        model = self._service.find_model(params.model, params.request)
        request_log.get_record(self._scope).model = model.id
        request = _build_request(params, model)
        if not is_final and not _is_remote(model):
            request = replace(request, times=True)
        return await self._service.transcribe(model, request, self._spool)

    def _is_same_request(self, one: TranscriptionParams, other: TranscriptionParams) -> bool:
        """Whether one decoding answers both requests."""
        if not one.is_same_request(other):
            return False
        model = self._service.find_model(one.model, one.request)
        if _is_remote(model) and one.request.times and not other.request.times:
            return False
        return one.extra == other.extra or not model.is_external

    async def _send_response(self, transcript: Transcript, params: TranscriptionParams) -> None:
        model = self._service.catalog.find_model(transcript.summary.model)  # a fallback may have served the request
        request_log.get_record(self._scope).set_transcription(model, transcript.summary)
        response = await responses.build_response_in_thread(transcript, params)
        response.headers["x-eardrum-model"] = quote(model.id, safe="/ :@+")  # configured ids may be in any script
        if transcript.summary.warnings:
            response.headers["x-eardrum-warnings"] = asgi.format_sentence(" ".join(transcript.summary.warnings))
        _add_ignored_header(self._scope, response, params, model)
        responses.add_track_headers(response, transcript.summary)
        await response(self._scope, receive_disconnect, self._send)

    async def _stream_response(self, params: TranscriptionParams) -> None:
        model = self._service.find_model(params.model, params.request)
        request_log.get_record(self._scope).model = model.id
        transcript, last_text, has_deltas, opened = Transcript(), "", False, AudioOpened(None)
        async with aclosing(self._service.stream_events(model, _build_request(params, model), self._spool)) as events:
            async for event in events:
                if isinstance(event, AudioOpened):
                    opened = event
                elif isinstance(event, TextDelta):
                    await self._begin_stream(model, params, opened)
                    await self._send_chunk(responses.encode_partial(event.text))
                    has_deltas = True
                elif isinstance(event, Segment) and not has_deltas:
                    await self._begin_stream(model, params, opened)
                    await self._send_chunk(responses.encode_delta(event, params, before=last_text))
                    last_text = event.text.strip() or last_text
                transcript.add_event(event)
        await self._received.wait()
        if not self._is_same_request(self._upload.parse_params(), params):
            raise InvalidRequestError("A field after the file came too late for this stream: send all fields before the file.")
        await self._begin_stream(model, params, opened)
        request_log.get_record(self._scope).set_transcription(model, transcript.summary)
        await self._end_stream(responses.encode_done(transcript, params))

    async def _begin_stream(self, model: Model, params: TranscriptionParams, opened: AudioOpened) -> None:
        if self._streaming:
            return
        self._streaming = True
        response = Response()
        response.raw_headers = build_stream_headers(responses.EVENT_STREAM)
        _add_ignored_header(self._scope, response, params, model)
        responses.add_track_headers(response, opened)
        await self._send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})

    async def _send_chunk(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end_stream(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def _build_request(params: TranscriptionParams, model: Model) -> TranscriptionRequest:
    return params.build_external_request() if model.is_external else params.request


def _is_remote(model: Model) -> bool:
    """Whether the request must ask for times: local engines always produce them."""
    return model.is_external or model.card.remote


def _add_ignored_header(scope: Scope, response: Response, params: TranscriptionParams, model: Model) -> None:
    query = [f"?{name}" for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)]
    if ignored := params.list_ignored(model.capabilities, is_external=model.is_external) + query:
        response.headers["x-eardrum-ignored"] = asgi.format_names(ignored)


async def _cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancel the task, unless it is done, and wait for its cleanup."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # marks the error as retrieved; asyncio would log it otherwise


AUDIO_TRACK_HEADER = b"x-eardrum-audio-track"
"""Request header with the meaning of the field `audio_track`."""

NO_FILE = "The form holds no file: send the audio in the field 'file' of multipart/form-data."

DECODE_CHARS = 4 << 20
"""Characters of base64 that are decoded before the event loop runs again."""


class AudioUpload(Protocol):
    """An upload in progress: `begin` reads up to the audio, `read_audio` the rest."""

    body: RequestBody

    async def begin(self) -> None:
        """Read up to the beginning of the audio."""

    async def read_audio(self, spool: Spool) -> None:
        """Read the rest, and write the audio into `spool`."""

    def parse_params(self) -> TranscriptionParams:
        """Parse the fields that were read so far.

        Raises:
            InvalidRequestError: a field has an invalid value.
        """


def open_upload(scope: Scope, receive: Receive, task: SpeechTask, settings: Settings) -> AudioUpload:
    """Open the upload by its content type.

    Raises:
        UnsupportedMediaTypeError: the body is compressed, or neither a form nor JSON.
        InvalidRequestError: the form is URL-encoded, and cannot hold a file.
        TooLargeError: the content length exceeds the limit.
    """
    if (encoding := get_header(scope, b"content-encoding").strip().lower()) not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"The body has the content-encoding {encoding}: send it uncompressed.")
    kind = get_header(scope, b"content-type").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return FormUpload(scope, receive, task, settings.limits, settings.subtitles.shape)
    if kind == "application/json":
        return JsonUpload(scope, receive, task, settings.limits, settings.subtitles.shape)
    if kind == "application/x-www-form-urlencoded":
        raise InvalidRequestError(NO_FILE, param="file")
    raise UnsupportedMediaTypeError(
        f"Send multipart/form-data with the audio in the field 'file', not {kind or 'a body without a type'}."
    )


async def _decode_base64(encoded: str) -> bytes:
    """Decode base64 in pieces, between which the event loop runs.

    Raises:
        ValueError: the text is not valid base64.
    """
    if len(encoded) <= DECODE_CHARS:
        return base64.b64decode(encoded, validate=True)
    audio, end = bytearray(), len(encoded)
    for at in range(0, end, DECODE_CHARS):
        piece = encoded[at : at + DECODE_CHARS]
        if "=" in piece and at + DECODE_CHARS < end:
            raise ValueError("data after the padding")
        audio += base64.b64decode(piece, validate=True)
        await asyncio.sleep(0)
    return bytes(audio)


class FormUpload:
    """An upload as a multipart form."""

    def __init__(self, scope: Scope, receive: Receive, task: SpeechTask, limits: LimitSettings, shape: SubtitleRules):
        self.body = RequestBody(scope, receive, limits)
        self._task = task
        self._audio_track = get_header(scope, AUDIO_TRACK_HEADER)
        self._shape = shape
        self._form = MultipartForm(scope, self.body, limits)

    async def begin(self) -> None:
        """Read the fields before the file.

        Raises:
            InvalidRequestError: the form has no file.
        """
        if not await self._form.read_until_file():
            self.parse_params()  # reports an invalid field first, if there is one
            raise InvalidRequestError(NO_FILE, param="file")

    async def read_audio(self, spool: Spool) -> None:
        """Read the file and the fields after it."""
        await self._form.read_file(spool)

    def parse_params(self) -> TranscriptionParams:
        """Parse the fields that were read so far."""
        return parse_params(
            self._form.fields,
            self._task,
            file_content_type=self._form.file_content_type,
            audio_track=self._audio_track,
            shape=self._shape,
        )


class JsonUpload:
    """An upload as JSON with base64 audio in `input_audio`, as OpenRouter and Open WebUI send it."""

    def __init__(self, scope: Scope, receive: Receive, task: SpeechTask, limits: LimitSettings, shape: SubtitleRules):
        self.body = json_body.open_body(scope, receive, limits)
        self._scope = scope
        self._limits = limits
        self._task = task
        self._audio_track = get_header(scope, AUDIO_TRACK_HEADER)
        self._shape = shape
        self._fields: FormFields = {}
        self._audio = b""
        self._format = ""

    async def begin(self) -> None:
        """Read and parse the whole body.

        Raises:
            InvalidRequestError: the body is not JSON, or holds no audio.
        """
        data = await json_body.read_body(self._scope, self.body, self._limits)
        body = json_body.parse_json_body(data)
        check_surrogates(data, body)
        del data
        try:
            audio = body.pop("input_audio")
            self._format = str(audio.get("format") or "")
            encoded = audio["data"].rpartition("base64,")[2]
        except (KeyError, TypeError, AttributeError):
            message = 'A JSON body must hold {"model": ..., "input_audio": {"data": base64, "format": "wav"}}.'
            raise InvalidRequestError(message, param="input_audio") from None
        try:
            self._audio = await _decode_base64(encoded)
        except ValueError as error:
            raise InvalidRequestError(f"input_audio.data is not valid base64: {error}.", param="input_audio") from None
        self._fields = flatten_json(body, self._limits)

    async def read_audio(self, spool: Spool) -> None:
        """Write the decoded audio into `spool`."""
        await spool.write(self._audio)
        self._audio = b""
        spool.finish()

    def parse_params(self) -> TranscriptionParams:
        """Parse the fields."""
        pcm = "audio/pcm" if self._format in RAW_FORMATS else ""
        return parse_params(self._fields, self._task, file_content_type=pcm, audio_track=self._audio_track, shape=self._shape)
