"""The routes of OpenAI's API, and `/v1/audio/transcriptions` and `/v1/audio/translations`.

Raw ASGI, because the response may begin while the upload is still arriving. An upload is a multipart form, or JSON with the
audio in base64.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn, Protocol
from urllib.parse import parse_qsl, quote

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from eardrum import bounded_json
from eardrum.api import asgi, json_body, request_log
from eardrum.api.asgi import Receive, Scope, Send, get_header
from eardrum.api.json_body import check_surrogates
from eardrum.api.openai import params, responses
from eardrum.api.openai.models import OpenAIModelRoutes
from eardrum.api.openai.params import TranscriptionParams
from eardrum.api.uploads import FormFields, MultipartForm, RequestBody
from eardrum.config import LimitSettings, Settings
from eardrum.errors import EardrumError, InvalidRequestError, UnsupportedMediaTypeError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.subtitles import SubtitleRules
from eardrum.transcription import AudioOpened, Segment, SpeechTask, TextDelta, Transcript, TranscriptionRequest


def build_routes(service: Service) -> list[BaseRoute]:
    """All routes of this edge."""
    models = OpenAIModelRoutes(service)
    return [
        Route("/v1/audio/transcriptions", TranscriptionEndpoint(service, SpeechTask.TRANSCRIBE), methods=["POST"]),
        Route("/v1/audio/translations", TranscriptionEndpoint(service, SpeechTask.TRANSLATE), methods=["POST"]),
        Route("/v1/models", models.list_models),
        Route("/models", models.list_models),  # as llama-swap has it
        Route("/v1/models/{id:path}", models.show_model),
    ]


class TranscriptionEndpoint:
    """The endpoint that takes audio, as an ASGI application."""

    def __init__(self, service: Service, task: SpeechTask):
        self._service = service
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upload, whichever way it is packed."""
        upload = open_upload(scope, receive, self._task, self._service.settings)
        with self._service.create_spool() as spool:
            await upload.begin()
            await UploadExchange(self._service, upload, spool, scope, send).run()


class UploadExchange:
    """One request being answered while it is still being received."""

    def __init__(self, service: Service, upload: AudioUpload, spool: Spool, scope: Scope, send: Send):
        self._service = service
        self._upload = upload
        self._spool = spool
        self._scope = scope
        self._send = send
        self._received = asyncio.Event()
        self._streaming = False

    async def run(self) -> None:
        """Answer. The answer ends with the upload: a client that leaves or breaks the rules stops the work.

        Raises:
            EardrumError: before anything was sent; later errors go into the stream.
            ClientGoneError: the client left.
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
        """Take in the upload, then watch over the connection. Ends only by raising."""
        await self._upload.read_audio(self._spool)
        self._received.set()
        await self._upload.body.wait_for_disconnect()

    async def _answer(self) -> None:
        """Begin as soon as the model is known; begin again should fields behind the file change what is asked."""
        wish = self._upload.parse_params()
        if wish.model and wish.stream:
            await self._stream_response(wish)
            return
        early = asyncio.ensure_future(self._transcribe(wish, settled=False)) if wish.model else None
        try:
            await self._wait_for_upload(early)
            final = self._upload.parse_params()
            if early and not final.stream and self._is_same_request(final, wish):
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
        """Wait for the end of the upload, or for `work` to fail before that."""
        poured: asyncio.Future[Any] = asyncio.ensure_future(self._received.wait())
        try:
            if work:
                await asyncio.wait({poured, work}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
            await poured
        finally:
            poured.cancel()

    async def _transcribe(self, wish: TranscriptionParams, *, settled: bool = True) -> Transcript:
        """The transcript of what is asked, or, if that is not settled yet, of what may still be asked without any more work."""
        model = self._service.find_model(wish.model, wish.request)
        request_log.get_record(self._scope).model = model.id
        request = _build_request(wish, model)
        if not settled and not _is_remote(model):
            request = replace(request, times=True)
        return await self._service.transcribe(model, request, self._spool)

    def _is_same_request(self, one: TranscriptionParams, other: TranscriptionParams) -> bool:
        """Whether one decoding answers both."""
        if not one.is_same_request(other):
            return False
        model = self._service.find_model(one.model, one.request)
        if _is_remote(model) and one.request.times and not other.request.times:
            return False
        return one.extra == other.extra or not model.is_external

    async def _send_response(self, transcript: Transcript, wish: TranscriptionParams) -> None:
        model = self._service.catalog.find_model(transcript.summary.model)  # who served it: not always who was asked
        request_log.get_record(self._scope).set_transcription(model, transcript.summary)
        response = await responses.build_response_in_thread(transcript, wish)
        response.headers["x-eardrum-model"] = quote(model.id, safe="/ :@+")  # ids of the config may be in any script
        if transcript.summary.warnings:
            response.headers["x-eardrum-warnings"] = asgi.format_sentence(" ".join(transcript.summary.warnings))
        _add_ignored_header(self._scope, response, wish, model)
        responses.add_track_headers(response, transcript.summary)
        await response(self._scope, _receive_disconnect, self._send)

    async def _stream_response(self, wish: TranscriptionParams) -> None:
        model = self._service.find_model(wish.model, wish.request)
        request_log.get_record(self._scope).model = model.id
        transcript, said, in_parts, opened = Transcript(), "", False, AudioOpened(None)
        async with aclosing(self._service.stream_events(model, _build_request(wish, model), self._spool)) as events:
            async for event in events:
                if isinstance(event, AudioOpened):
                    opened = event
                elif isinstance(event, TextDelta):
                    await self._begin_stream(model, wish, opened)
                    await self._send_chunk(responses.encode_partial(event.text))
                    in_parts = True
                elif isinstance(event, Segment) and not in_parts:
                    await self._begin_stream(model, wish, opened)
                    await self._send_chunk(responses.encode_delta(event, wish, before=said))
                    said = event.text.strip() or said
                transcript.add_event(event)
        await self._received.wait()
        if not self._is_same_request(self._upload.parse_params(), wish):
            raise InvalidRequestError("A field after the file came too late for this stream: send fields before the file.")
        await self._begin_stream(model, wish, opened)
        request_log.get_record(self._scope).set_transcription(model, transcript.summary)
        await self._end_stream(responses.encode_done(transcript, wish))

    async def _begin_stream(self, model: Model, wish: TranscriptionParams, opened: AudioOpened) -> None:
        if self._streaming:
            return
        self._streaming = True
        response = Response(media_type="text/event-stream")
        del response.headers["content-length"]
        response.headers.update({"cache-control": "no-cache", "x-accel-buffering": "no"})
        _add_ignored_header(self._scope, response, wish, model)
        responses.add_track_headers(response, opened)
        await self._send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})

    async def _send_chunk(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end_stream(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def _build_request(wish: TranscriptionParams, model: Model) -> TranscriptionRequest:
    return wish.build_external_request() if model.is_external else wish.request


def _is_remote(model: Model) -> bool:
    """Whether times have to be asked for: our own engines have them anyway."""
    return model.is_external or model.card.remote


def _add_ignored_header(scope: Scope, response: Response, wish: TranscriptionParams, model: Model) -> None:
    query = [f"?{name}" for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)]
    if ignored := wish.list_ignored(model.capabilities, foreign=model.is_external) + query:
        response.headers["x-eardrum-ignored"] = asgi.format_names(ignored)


async def _cancel_and_wait(task: asyncio.Future[Any]) -> None:
    """Cancel the task if need be and wait until it has cleaned up."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen; asyncio would otherwise complain of an error nobody asked for


async def _receive_disconnect() -> dict[str, Any]:
    return {"type": "http.disconnect"}


AUDIO_TRACK_HEADER = b"x-eardrum-audio-track"
"""Request header that says what the field `audio_track` does."""

NO_FILE = "The form holds no file: send the audio in the field 'file' of multipart/form-data."


DECODE_CHARS = 4 << 20
"""Characters of base64 that are decoded in one go."""


class AudioUpload(Protocol):
    """An upload in progress: `begin` reads what precedes the audio, `pour` the rest."""

    body: RequestBody

    async def begin(self) -> None:
        """Read up to where the audio begins."""

    async def read_audio(self, spool: Spool) -> None:
        """Read all the rest, the audio into `spool`."""

    def parse_params(self) -> TranscriptionParams:
        """What is asked, by the fields read so far.

        Raises:
            InvalidRequestError: a field has a value it cannot have.
        """


def open_upload(scope: Scope, receive: Receive, task: SpeechTask, settings: Settings) -> AudioUpload:
    """The upload by its content type.

    Raises:
        UnsupportedMediaTypeError: neither a form nor JSON.
        InvalidRequestError: a form of the kind that cannot carry a file.
        TooLargeError: it announces more bytes than allowed.
    """
    if (encoding := get_header(scope, b"content-encoding").strip().lower()) not in ("", "identity"):
        raise UnsupportedMediaTypeError(f"The body has the content-encoding {encoding}: send it as it is.")
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
    """Bytes of base64, a piece at a time: others have their turn between two.

    Raises:
        ValueError: it is not base64.
    """
    if len(encoded) <= DECODE_CHARS:
        return base64.b64decode(encoded, validate=True)
    audio, end = bytearray(), len(encoded)
    for at in range(0, end, DECODE_CHARS):
        piece = encoded[at : at + DECODE_CHARS]
        if "=" in piece and at + DECODE_CHARS < end:
            raise ValueError("it goes on behind its end")
        audio += base64.b64decode(piece, validate=True)
        await asyncio.sleep(0)
    return bytes(audio)


class FormUpload:
    """The usual way: a multipart form."""

    def __init__(self, scope: Scope, receive: Receive, task: SpeechTask, limits: LimitSettings, shape: SubtitleRules):
        self.body = RequestBody(scope, receive, limits)
        self._task = task
        self._audio_track = get_header(scope, AUDIO_TRACK_HEADER)
        self._shape = shape
        self._form = MultipartForm(scope, self.body, limits)

    async def begin(self) -> None:
        """Read the fields before the file.

        Raises:
            InvalidRequestError: there is no file.
        """
        if not await self._form.read_until_file():
            self.parse_params()  # a wrong field is the better complaint, if there is one
            raise InvalidRequestError(NO_FILE, param="file")

    async def read_audio(self, spool: Spool) -> None:
        """Read the file and the fields after it."""
        await self._form.read_file(spool)

    def parse_params(self) -> TranscriptionParams:
        """What is asked, by the fields read so far."""
        return params.parse_params(
            self._form.fields,
            self._task,
            file_content_type=self._form.file_content_type,
            audio_track=self._audio_track,
            shape=self._shape,
        )


class JsonUpload:
    """The way of OpenRouter and Open WebUI: a JSON body with the audio in base64 as `input_audio`."""

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
        """Read and take apart the whole body.

        Raises:
            InvalidRequestError: not JSON, or no audio in it.
        """
        data = await json_body.read_body(self._scope, self.body, self._limits)
        try:
            body = bounded_json.parse_json(data)
        except ValueError as error:
            raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
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
        except (ValueError, binascii.Error) as error:
            raise InvalidRequestError(f"input_audio.data is not valid base64: {error}.", param="input_audio") from None
        self._fields = params.flatten_json(body, self._limits)

    async def read_audio(self, spool: Spool) -> None:
        """Hand the audio over."""
        await spool.write(self._audio)
        self._audio = b""
        spool.finish()

    def parse_params(self) -> TranscriptionParams:
        """What is asked."""
        pcm = "audio/pcm" if self._format in params.RAW_FORMATS else ""
        return params.parse_params(
            self._fields, self._task, file_content_type=pcm, audio_track=self._audio_track, shape=self._shape
        )
