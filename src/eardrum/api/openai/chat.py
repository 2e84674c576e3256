"""`/v1/chat/completions` for speech models: a message carries the audio, and the reply is the transcript, as in vLLM."""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote_to_bytes

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import JSONResponse

from eardrum.api import openapi, request_log, transcript_formats
from eardrum.api.asgi import Receive, Scope, Send, StreamedResponse, build_stream_headers, encode_event, receive_disconnect
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.openai import params, responses
from eardrum.api.openapi import ApiOperation
from eardrum.api.request_log import RequestRecord
from eardrum.api.transcript_formats import TextDeltas
from eardrum.errors import EardrumError, InvalidRequestError, UnsupportedFeatureError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.remote_audio import AudioFetcher
from eardrum.transcription import SpeechTask, TranscriptionRequest, TranscriptionSummary

PARAMETERS = ("language", "prompt", "hotwords", "keywords")
"""Keys of the body with the same meaning as in transcriptions. The temperature of a chat is not one."""


class AudioPart(Struct, frozen=True):
    """A recording in a message: its bytes, or its URL."""

    data: bytes = b""
    url: str = ""
    raw_pcm: bool = False


class ChatEndpoint:
    """Answers chats with speech models. Those with other models are forwarded."""

    operation = ApiOperation(
        "post",
        "/v1/chat/completions",
        "Forwarded to the model's upstream; speech models answer with a transcript",
        (openapi.ANY,),
        (*openapi.INFERENCE_ERRORS, 405, 415),
        body=openapi.CHAT_FIELDS,
        body_kinds=(openapi.JSON, "multipart/form-data"),
    )

    def __init__(self, service: Service):
        self._service = service

    def choose_model_name(self, body: dict[str, Any]) -> object:
        """Return the model that the body names."""
        return body.get("model")

    def adapt_body(self, model: Model, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body, which is forwarded as it is."""
        return body

    async def __call__(self, model: Model, body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the transcripts of the recordings in the last message that has any, one line for each.

        Raises:
            EardrumError: before the response began; later errors end the stream.
            ClientGoneError: the client disconnected.
        """
        record = request_log.get_record(scope)
        fields = {name: body[name] for name in PARAMETERS if name in body}
        request = params.parse_params(params.flatten_json(fields, self._service.settings.limits), SpeechTask.TRANSCRIBE).request
        if isinstance(name := body.get("model"), str):
            model = self._service.find_model(name.strip(), request)
        record.model = model.id
        if not (recordings := find_recordings(body)):
            raise UnsupportedFeatureError(
                f"{model.id} turns speech into text: send audio as an `input_audio` or `audio_url` part of a message, "
                "or use /v1/audio/transcriptions.",
                param="messages",
            )
        reply = ChatResponse(model.id, scope, send, record)
        async with DisconnectWatcher(receive=receive, scope=scope):
            await (self._answer_stream if body.get("stream") is True else self._answer_whole)(model, request, recordings, reply)

    async def _answer_whole(
        self, model: Model, request: TranscriptionRequest, recordings: list[AudioPart], reply: ChatResponse
    ) -> None:
        lines = []
        for recording in recordings:
            with self._service.create_spool() as spool:
                await self._fill_spool(spool, recording)
                transcript = await self._service.transcribe(model, replace(request, raw_pcm=recording.raw_pcm), spool)
            lines.append(transcript_formats.format_text(transcript.segments))
            reply.record.set_transcription(model, transcript.summary)
        await reply.send_completion("\n".join(lines))

    async def _answer_stream(
        self, model: Model, request: TranscriptionRequest, recordings: list[AudioPart], reply: ChatResponse
    ) -> None:
        try:
            async with aclosing(self._transcribe_parts(model, request, recordings, reply)) as deltas:
                async for delta in deltas:
                    await reply.send_chunk({"content": delta})
            await reply.end()
        except EardrumError as error:
            if not reply.has_begun:
                raise
            await reply.send_error(error)

    async def _transcribe_parts(
        self, model: Model, request: TranscriptionRequest, recordings: list[AudioPart], reply: ChatResponse
    ) -> AsyncGenerator[str, None]:
        for number, recording in enumerate(recordings):
            deltas = TextDeltas()
            with self._service.create_spool() as spool:
                await self._fill_spool(spool, recording)
                wanted = replace(request, raw_pcm=recording.raw_pcm)
                if number:
                    yield "\n"
                async with aclosing(self._service.stream_events(model, wanted, spool)) as events:
                    async for event in events:
                        if text := deltas.feed(event):
                            yield text
                        if isinstance(event, TranscriptionSummary):
                            reply.record.set_transcription(model, event)

    async def _fill_spool(self, spool: Spool, recording: AudioPart) -> None:
        if recording.url:
            await AudioFetcher(self._service.settings.limits).fetch_into(recording.url, spool)
            return
        await spool.write(recording.data)
        spool.finish()


class ChatResponse:
    """Sends the response: one completion object, or a stream of chunks."""

    def __init__(self, model: str, scope: Scope, send: Send, record: RequestRecord):
        self.record = record
        self._stream = StreamedResponse(send, build_stream_headers(responses.EVENT_STREAM))
        self._scope = scope
        self._send = send
        self._header = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    @property
    def has_begun(self) -> bool:
        """Whether a chunk has been sent."""
        return self._stream.has_begun

    async def send_completion(self, text: str) -> None:
        """Send the whole text."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        response = JSONResponse({**self._header, "object": "chat.completion", "choices": [choice]})
        await response(self._scope, receive_disconnect, self._send)

    async def send_chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> None:
        """Send a chunk; the first one also holds the role."""
        if not self.has_begun:
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        await self._send_event(json.dumps({**self._header, "object": "chat.completion.chunk", "choices": [choice]}))

    async def end(self) -> None:
        """Send the last chunks."""
        await self.send_chunk({}, "stop")
        await self._send_event("[DONE]", last=True)

    async def send_error(self, error: EardrumError) -> None:
        """Send an error after the stream has begun."""
        self.record.note = error.message
        await self._send_event(json.dumps(responses.build_error_body(error)), last=True)

    async def _send_event(self, data: str, *, last: bool = False) -> None:
        await self._stream.send(encode_event(data), last=last)


def find_recordings(body: dict[str, Any]) -> list[AudioPart]:
    """Return the recordings of the last message that has any.

    Raises:
        InvalidRequestError: a part is malformed.
    """
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        if recordings := [_parse_audio_part(part) for part in parts if part.get("type") in ("input_audio", "audio_url")]:
            return recordings
    return []


def _parse_audio_part(part: dict[str, Any]) -> AudioPart:
    kind = part["type"]
    value = part.get(kind)
    if kind == "audio_url":
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str) or not url:
            raise InvalidRequestError('An audio_url part must hold {"audio_url": {"url": ...}}.', param="audio_url")
        return AudioPart(data=_decode_data_url(url)) if url[:5].lower() == "data:" else AudioPart(url=url)
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, str) or not isinstance(value, dict):
        raise InvalidRequestError(
            'An input_audio part must hold {"input_audio": {"data": base64, "format": "wav"}}.', param="input_audio"
        )
    raw = str(value.get("format") or "") in params.RAW_FORMATS
    return AudioPart(data=_decode_base64(data.rpartition("base64,")[2], "input_audio.data"), raw_pcm=raw)


def _decode_data_url(url: str) -> bytes:
    """Return the content of a data: URL."""
    head, comma, content = url.partition(",")
    if not comma:
        raise InvalidRequestError("A data: URL needs a comma before its content.", param="audio_url")
    return _decode_base64(content, "audio_url") if head.lower().endswith(";base64") else unquote_to_bytes(content)


def _decode_base64(encoded: str, param: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise InvalidRequestError(f"{param} is not valid base64: {error}.", param=param) from None
