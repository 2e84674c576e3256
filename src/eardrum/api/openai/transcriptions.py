"""The routes of OpenAI's API; `/v1/audio/transcriptions` and `/v1/audio/translations`.

An upload is a multipart form, or JSON with base64 audio.
"""

from __future__ import annotations

import asyncio
import base64
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.routing import BaseRoute

from eardrum.api import openapi, request_body
from eardrum.api.asgi import Receive, Scope, build_stream_headers, format_names, get_header
from eardrum.api.fields import describe_form
from eardrum.api.openai import responses
from eardrum.api.openai.models import OpenAIModelRoutes
from eardrum.api.openai.params import RAW_FORMATS, TranscriptionForm, TranscriptionParams, flatten_json, parse_params
from eardrum.api.openai.speech import VoiceRoutes
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.api.uploads import AudioUpload, FormFields, TranscriptStream, UploadEndpoint, get_media_type
from eardrum.config import LimitSettings
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.transcription import AudioOpened, Segment, SpeechTask, TextDelta, Transcript


def build_routes(service: Service) -> list[BaseRoute]:
    """Build the routes of OpenAI's API."""
    models = OpenAIModelRoutes(service)
    return [
        ApiRoute(
            TranscriptionEndpoint(service, SpeechTask.TRANSCRIBE),
            _describe_operation("/v1/audio/transcriptions", "Turn speech into text"),
        ),
        ApiRoute(
            TranscriptionEndpoint(service, SpeechTask.TRANSLATE),
            _describe_operation("/v1/audio/translations", "Turn speech into English text, with models that translate"),
        ),
        ApiRoute(
            VoiceRoutes(service).list_models,
            ApiOperation("get", "/v1/audio/models", "List the models that turn text into speech. Needs no key"),
        ),
        ApiRoute(
            models.list_models,
            ApiOperation(
                "get",
                "/v1/models",
                "List models, their capabilities and whether they are loaded",
                query={"task": "Only models for this task, by its name at the Hugging Face hub."},
            ),
        ),
        ApiRoute(models.list_models, ApiOperation("get", "/models", "The same as /v1/models, at llama-swap's path")),
        ApiRoute(
            models.show_model,
            ApiOperation(
                "get",
                "/v1/models/{id:path}",
                "Describe a model, by id or alias; ids may contain slashes",
                errors=openapi.LOOKUP_ERRORS,
            ),
        ),
    ]


AUDIO_FILE = {
    "description": "The recording: wav, mp3, m4a, flac, ogg, opus, webm, mp4 and more, detected from the content. "
    "With the content type audio/pcm: raw 16-bit little-endian samples, mono, 16 kHz.",
    "type": "string",
    "format": "binary",
}


def _describe_operation(path: str, summary: str) -> ApiOperation:
    return ApiOperation(
        "post",
        path,
        summary,
        (openapi.JSON, openapi.TEXT, openapi.EVENTS),
        (*openapi.INFERENCE_ERRORS, 415),
        body=lambda: {"file": AUDIO_FILE, **describe_form(TranscriptionForm)},
        required=("file",),
        body_kinds=("multipart/form-data",),
    )


AUDIO_TRACK_HEADER = b"x-eardrum-audio-track"
"""Request header with the meaning of the field `audio_track`."""

NO_JSON_AUDIO = 'A JSON body must hold {"model": ..., "input_audio": {"data": base64, "format": "wav"}}.'

REFERENCE_FIELDS = frozenset(("known_speaker_references", "known_speaker_references[]"))
"""Fields with recordings in base64."""

DECODE_CHARS = 4 << 20
"""Characters of base64 that are decoded before the event loop runs again."""


class TranscriptionEndpoint(UploadEndpoint[TranscriptionParams]):
    """Transcribes or translates an uploaded recording, in a form or in JSON."""

    reference_fields = REFERENCE_FIELDS

    def __init__(self, service: Service, task: SpeechTask):
        super().__init__(service)
        self._task = task

    def open_upload(self, scope: Scope, receive: Receive) -> AudioUpload:
        """Open a form, or JSON with base64 audio."""
        if get_media_type(scope) == "application/json":
            return JsonUpload(scope, receive, self.service.settings.limits)
        return super().open_upload(scope, receive)

    def parse_params(self, scope: Scope, upload: AudioUpload) -> TranscriptionParams:
        """Parse the fields that were read so far."""
        return parse_params(
            upload.fields,
            self._task,
            file_content_type=upload.content_type,
            audio_track=get_header(scope, AUDIO_TRACK_HEADER),
            shape=self.service.settings.subtitles.shape,
        )

    def may_begin(self, params: TranscriptionParams) -> bool:
        """Whether the model is known. Without one, a field after the file may still name it."""
        return bool(params.model)

    async def build_response(self, scope: Scope, transcript: Transcript, params: TranscriptionParams, model: Model) -> Response:
        """Build the response in the requested format."""
        response = await responses.build_response_in_thread(transcript, params)
        _add_ignored_header(scope, response, params, model)
        responses.add_track_headers(response, transcript.summary)
        return response

    def open_stream(self, scope: Scope, params: TranscriptionParams, model: Model, opened: AudioOpened) -> TranscriptStream:
        """Begin a response of server-sent events."""
        response = Response()
        response.raw_headers = build_stream_headers(responses.EVENT_STREAM)
        _add_ignored_header(scope, response, params, model)
        responses.add_track_headers(response, opened)
        return OpenAITranscriptStream(params, response.raw_headers)


class OpenAITranscriptStream:
    """Encodes a transcription as OpenAI's events."""

    def __init__(self, params: TranscriptionParams, headers: list[tuple[bytes, bytes]]):
        self.headers = headers
        self._params = params
        self._last_text = ""
        self._has_deltas = False
        self._segment_count = 0

    def encode_event(self, event: Segment | TextDelta) -> bytes:
        """Encode a delta. A segment whose text has been streamed before adds none; with a speaker it is a separate event."""
        if isinstance(event, Segment) and event.speaker:
            self._segment_count += 1
            return responses.encode_segment(event, self._segment_count - 1)
        if isinstance(event, TextDelta):
            self._has_deltas = True
            return responses.encode_partial(event)
        if self._has_deltas:
            return b""
        delta = responses.encode_delta(event, self._params, before=self._last_text)
        self._last_text = event.text.strip() or self._last_text
        return delta

    def encode_done(self, transcript: Transcript) -> bytes:
        """Encode the event with the whole text."""
        return responses.encode_done(transcript, self._params)

    def encode_error(self, error: EardrumError) -> bytes:
        """Encode the event that OpenAI's clients raise."""
        return responses.encode_error(error)


def _add_ignored_header(scope: Scope, response: Response, params: TranscriptionParams, model: Model) -> None:
    query = [f"?{name}" for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)]
    if ignored := params.list_ignored(model.capabilities, is_external=model.is_external) + query:
        response.headers["x-eardrum-ignored"] = format_names(ignored)


class JsonUpload:
    """An upload as JSON with base64 audio in `input_audio`, as OpenRouter and Open WebUI send it."""

    def __init__(self, scope: Scope, receive: Receive, limits: LimitSettings):
        self.body = request_body.open_body(scope, receive, limits)
        self.fields: FormFields = {}
        self.content_type = self.file_name = ""
        self._scope = scope
        self._limits = limits
        self._audio = b""

    async def begin(self) -> bool:
        """Read and parse the whole body.

        Raises:
            InvalidRequestError: the body is not JSON, or holds no audio.
        """
        data = await request_body.read_body(self._scope, self.body, self._limits)
        body = request_body.parse_object(data, not_object=NO_JSON_AUDIO, param="input_audio")
        del data
        try:
            audio = body.pop("input_audio")
            is_pcm = str(audio.get("format") or "") in RAW_FORMATS
            encoded = audio["data"].rpartition("base64,")[2]
        except (KeyError, TypeError, AttributeError):
            raise InvalidRequestError(NO_JSON_AUDIO, param="input_audio") from None
        try:
            self._audio = await _decode_base64(encoded)
        except ValueError as error:
            raise InvalidRequestError(f"input_audio.data is not valid base64: {error}.", param="input_audio") from None
        self.content_type = "audio/pcm" if is_pcm else ""
        self.fields = flatten_json(body, self._limits)
        return True

    async def read_audio(self, spool: Spool) -> None:
        """Write the decoded audio into `spool`."""
        await spool.write(self._audio)
        self._audio = b""
        spool.finish()


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
