"""OpenAI's text to speech: `/v1/audio/speech`, and the lists of voices and voice models that other servers have in addition."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Iterable
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse

from eardrum.api import openapi
from eardrum.api.asgi import (
    Receive,
    Scope,
    Send,
    StreamedResponse,
    abort_response,
    build_stream_headers,
    encode_event,
    format_names,
)
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.fields import UNSET_IF_EMPTY, Between, RequestModel, Text, describe_form, expect
from eardrum.api.openai import responses
from eardrum.api.openapi import ApiOperation
from eardrum.api.request_body import check_surrogates
from eardrum.api.request_log import get_record
from eardrum.errors import EardrumError, EmptyTextError, InvalidRequestError, ModelNotFoundError
from eardrum.gateway import speech
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.speech import (
    MAX_SPEED,
    MIN_SPEED,
    OUTPUT_RATE,
    SpeechBegun,
    SpeechEvent,
    SpeechFormat,
    SpeechRequest,
    SpeechSummary,
    check_script,
)
from eardrum.spoken_text import cut_text, is_ssml

MEDIA_TYPES = {
    SpeechFormat.MP3: "audio/mpeg",
    SpeechFormat.OPUS: "audio/ogg",
    SpeechFormat.AAC: "audio/aac",
    SpeechFormat.FLAC: "audio/flac",
    SpeechFormat.WAV: "audio/wav",
    SpeechFormat.PCM: "audio/pcm",
}

THREAD_CHARS = 20_000
"""Characters of text from which on it is checked in a thread: that takes a millisecond for 2,000."""


VOICE_VALUES = "a voice of GET /v1/audio/voices, or an object with its id"
VOICE_SCHEMA = {
    "oneOf": [
        {"type": "string"},
        {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]},
    ]
}


def _take_voice_id(value: Any) -> Any:
    """Take the id of a voice that is an object, as OpenAI's custom voices are."""
    return value["id"] if isinstance(value, dict) and "id" in value else value


class SpeechForm(RequestModel):
    """The body of `/v1/audio/speech`. Fields of other servers are accepted, and named in the answer as ignored."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    input: str = Field("", description="The text. Markdown, addresses and emoji are not read aloud.")
    model: Text = Field(
        "", description="A model of GET /v1/audio/models, or tts-1, tts-1-hd, gpt-4o-mini-tts for the default one."
    )
    voice: Annotated[str, expect(VOICE_VALUES), UNSET_IF_EMPTY, BeforeValidator(_take_voice_id), WithJsonSchema(VOICE_SCHEMA)] = (
        Field("", description="A voice of GET /v1/audio/voices or one of OpenAI's names, as text or as an object with an `id`.")
    )
    response_format: Annotated[SpeechFormat, expect("mp3, opus, aac, flac, wav or pcm"), UNSET_IF_EMPTY] = Field(
        SpeechFormat.MP3, description="Format of the audio; pcm is 16-bit little-endian, mono, 24 kHz."
    )
    speed: Annotated[float, Between(MIN_SPEED, MAX_SPEED)] = Field(1.0, description="1 is the voice's own pace.")
    stream_format: Annotated[Literal["audio", "sse"], expect("audio or sse"), UNSET_IF_EMPTY] = Field(
        "audio", description="`audio` sends bytes as they come, `sse` events with base64; WAV and FLAC are sent whole as `audio`."
    )
    sample_rate: Annotated[int, Between(8_000, 48_000, "a whole number of Hz")] = Field(
        OUTPUT_RATE, description="Hz of the audio."
    )

    def list_ignored(self) -> list[str]:
        """List the fields that have no effect: `instructions`, which no voice here understands, and those of other servers.
        Their `stream` asks for what happens anyway."""
        return [name for name in self.model_extra or {} if name != "stream"]

    def build_request(self, voice: str) -> SpeechRequest:
        """Build the request to a model, with its own name of the voice."""
        return SpeechRequest(
            voice, self.speed, self.response_format, self.sample_rate, streamed=self.stream_format == "sse" or not self._is_whole
        )

    @property
    def _is_whole(self) -> bool:
        return self.response_format in (SpeechFormat.WAV, SpeechFormat.FLAC)


class SpeechEndpoint:
    """Answers `/v1/audio/speech` for models of this server, and prepares requests that are forwarded to others."""

    operation = ApiOperation(
        "post",
        "/v1/audio/speech",
        "Turn text into speech; forwarded if another server has the model",
        (*MEDIA_TYPES.values(), openapi.EVENTS),
        (*openapi.INFERENCE_ERRORS, 405, 415),
        body=lambda: describe_form(SpeechForm),
        required=("input",),
    )

    def __init__(self, service: Service):
        self._service = service

    def choose_model_name(self, body: dict[str, Any]) -> str:
        """Return the id of the model that a body means, which may name none, or a model by its voice."""
        name, voice = body.get("model") or "", _take_voice_id(body.get("voice")) or ""
        if not isinstance(name, str) or not isinstance(voice, str):
            SpeechForm.parse(body)  # raises
            raise InvalidRequestError("model and voice must be strings.", param="model")
        if speech.is_any_voice_model(self._service, name.strip()) or not self._has_model(name.strip()):
            return speech.find_voice_model(self._service, name.strip(), voice.strip()).id
        return name

    def _has_model(self, name: str) -> bool:
        try:
            return bool(self._service.find_model(name))
        except ModelNotFoundError:
            return False

    def adapt_body(self, model: Model, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body for a model of another server: with the format named, as servers differ in the default, and the voice
        by its name there."""
        voice = _take_voice_id(body.get("voice"))
        changed = {"response_format": str(SpeechFormat.MP3)} if not body.get("response_format") else {}
        if isinstance(voice, str) and (own := speech.choose_voice(model, voice)) != voice and own:
            changed["voice"] = own
        return body | changed if changed else body

    async def __call__(self, model: Model, body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with speech.

        Raises:
            EardrumError: before the response began; later errors end the stream.
            ClientGoneError: the client disconnected.
        """
        record = get_record(scope)
        record.model = model.id
        check_surrogates(b"\\ud", body)
        form = SpeechForm.parse(body)
        request = await prepare_request(self._service, model, form)
        headers = [(b"x-eardrum-ignored", format_names(ignored).encode())] if (ignored := form.list_ignored()) else []
        reply = (SpeechEvents if form.stream_format == "sse" else SpeechBody)(form, send, headers)
        async with DisconnectWatcher(receive=receive, scope=scope):
            try:
                async with aclosing(speech.stream_speech(self._service, model, request, form.input)) as events:
                    async for event in events:
                        if isinstance(event, SpeechSummary):
                            record.speech = event
                        await reply.add_event(event)
            except EardrumError as error:
                if not reply.has_begun:
                    raise
                record.note = error.message
                if not await reply.end_with_error(error):
                    await abort_response(scope, receive)


def choose_voice(model: Model, voice: str, name: str) -> str:
    """Return the model's own name of the voice that a client names: in `voice`, or in `model`, as LocalAI's clients do.

    Raises:
        InvalidRequestError: the model has no such voice.
    """
    return speech.choose_voice(model, voice if voice or not speech.has_voice(model, name) else name)


async def prepare_request(service: Service, model: Model, form: SpeechForm) -> SpeechRequest:
    """Choose the voice, check the text, and build the request to the model.

    Raises:
        InvalidRequestError: there is no such voice, or the text cannot be spoken.
    """
    request = form.build_request(choose_voice(model, form.voice, form.model))
    language = speech.get_voice_language(model, request.voice)
    await check_text(form.input, language, request.voice or model.id, service.settings.limits.speech_chars)
    return request


async def check_text(text: str, language: str, voice: str, limit: int) -> None:
    """Check a text before anything is synthesized: an error after the first audio could not be told.

    Raises:
        InvalidRequestError: the text is empty, too long, or SSML.
        UnspeakableTextError: it holds nothing that can be spoken, or a sentence that the voice cannot read.
    """
    if not text.strip():
        raise EmptyTextError("`input` is required: the text to speak.")
    if len(text) > limit:
        raise InvalidRequestError(
            f"input has {len(text):,} characters; the limit is {limit:,} (limits.speech_chars). Send it in parts.", param="input"
        )
    if is_ssml(text):
        raise InvalidRequestError("input is SSML, which no model here reads: send plain text.", param="input")
    sentences = await asyncio.to_thread(cut_text, text) if len(text) > THREAD_CHARS else cut_text(text)
    if not sentences:
        raise EmptyTextError("input holds nothing that can be spoken: send letters or digits.")
    for sentence in sentences:
        check_script(sentence, language, voice)


class SpeechBody:
    """A response with the audio itself."""

    def __init__(self, form: SpeechForm, send: Send, headers: list[tuple[bytes, bytes]]):
        self._headers = [*build_stream_headers(MEDIA_TYPES[form.response_format]), *headers]
        self._stream = StreamedResponse(send, self._headers)

    @property
    def has_begun(self) -> bool:
        """Whether a part has been sent."""
        return self._stream.has_begun

    async def add_event(self, event: SpeechEvent) -> None:
        """Send the audio of an event."""
        if isinstance(event, SpeechBegun):  # once more if a process died: another one's audio may have another length
            length = [] if event.size is None else [(b"content-length", str(event.size).encode())]
            self._stream.headers = [*self._headers, *length]
        elif isinstance(event, bytes):
            await self._stream.send(event)
        elif isinstance(event, SpeechSummary):
            await self._stream.send(b"", last=True)

    async def end_with_error(self, error: EardrumError) -> bool:
        """Tell an error if the format allows it: audio does not."""
        return False


class SpeechEvents:
    """A response of server-sent events with the audio in base64, as OpenAI's `stream_format: sse`."""

    def __init__(self, form: SpeechForm, send: Send, headers: list[tuple[bytes, bytes]]):
        self._stream = StreamedResponse(send, [*build_stream_headers(responses.EVENT_STREAM), *headers])

    @property
    def has_begun(self) -> bool:
        """Whether an event has been sent."""
        return self._stream.has_begun

    async def add_event(self, event: SpeechEvent) -> None:
        """Send an event."""
        if isinstance(event, bytes):
            await self._send({"type": "speech.audio.delta", "audio": base64.b64encode(event).decode()})
        elif isinstance(event, SpeechSummary):
            # The models here have no tokens: characters go in, seconds of audio come out.
            seconds = math.ceil(event.duration)
            usage = {"input_tokens": event.characters, "output_tokens": seconds, "total_tokens": event.characters + seconds}
            await self._send({"type": "speech.audio.done", "usage": usage}, last=True)

    async def end_with_error(self, error: EardrumError) -> bool:
        """Send the event that OpenAI's clients raise."""
        await self._stream.send(responses.encode_error(error), last=True)
        return True

    async def _send(self, event: dict[str, Any], *, last: bool = False) -> None:
        await self._stream.send(encode_event(json.dumps(event), event=event["type"]), last=last)


VOICES_OPERATION = ApiOperation(
    "get",
    "/v1/audio/voices",
    "List the voices of all models, or of one; forwarded if another server has the model. Needs no key",
    errors=(*openapi.INFERENCE_ERRORS, 405),
    query=openapi.MODEL_FIELD,
)


class VoiceRoutes:
    """Lists of voices and of models that speak, in the shapes that Open WebUI and other clients read."""

    def __init__(self, service: Service):
        self._service = service

    def build_voices(self, model: Model | None) -> JSONResponse:
        """List the voices of a model, or of all."""
        voices = describe_voices([model] if model else speech.list_voice_models(self._service))
        return JSONResponse({"object": "list", "voices": voices, "data": voices})

    async def list_models(self, _: Request) -> JSONResponse:
        """List the models that speak."""
        models = [
            {
                "id": model.id,
                "name": (model.entry.name if model.entry else "") or model.id,
                "object": "model",
                "owned_by": "eardrum",
            }
            for model in speech.list_voice_models(self._service)
        ]
        return JSONResponse({"object": "list", "models": models, "data": models})


def describe_voices(models: Iterable[Model]) -> list[dict[str, Any]]:
    """Describe the voices of models as OpenAI's voice objects, with the fields that other servers' clients read."""
    return [
        {
            "id": voice,
            "voice_id": voice,
            "name": voice,
            "object": "audio.voice",
            "model": model.id,
            **({"language": language} if language else {}),
        }
        for model in models
        for voice, language in speech.list_voices(model)
    ]
