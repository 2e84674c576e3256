"""Chats with speech models: audio comes as a part of a message, and the transcript is the answer. As vLLM has it."""

from __future__ import annotations

import base64
import binascii
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.responses import JSONResponse

from eardrum.api import access, render
from eardrum.api.activity import Record
from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.openai import answers, fields
from eardrum.api.pieces import Pieces
from eardrum.api.watch import Watch
from eardrum.errors import EardrumError, InvalidRequestError, UnsupportedFeatureError
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.fetch import Fetcher
from eardrum.types import Request, Summary, Task

WISHES = ("language", "prompt", "hotwords", "keywords")
"""Keys of the body beside the messages that mean here what they mean in transcriptions. A chat's temperature does not."""


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording in a message: its bytes, or where it is to be fetched."""

    data: bytes = b""
    url: str = ""
    raw_pcm: bool = False


class Chat:
    """Answers a chat whose model is one of our own."""

    def __init__(self, service: Service):
        self._service = service

    async def __call__(self, model: Model, body: dict[str, Any], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with what is said in the recordings of the last message that has any, a line for each.

        Raises:
            EardrumError: before anything was sent; later errors end the stream.
            ClientGoneError: the client left.
        """
        record = access.record(scope)
        wishes = {name: body[name] for name in WISHES if name in body}
        request = fields.wish(fields.from_json(wishes, self._service.settings.limits), Task.TRANSCRIBE).request
        if isinstance(name := body.get("model"), str):
            model = self._service.find(name.strip(), request)
        record.model = model.id
        if not (sounds := recordings(body)):
            raise UnsupportedFeatureError(
                f"{model.id} turns speech into text: send audio as an `input_audio` or `audio_url` part of a message, "
                "or use /v1/audio/transcriptions.",
                param="messages",
            )
        reply = Reply(model.id, scope, send, record)
        async with Watch(receive=receive, scope=scope):
            await (self._stream if body.get("stream") is True else self._whole)(model, request, sounds, reply)

    async def _whole(self, model: Model, request: Request, sounds: list[Sound], reply: Reply) -> None:
        lines = []
        for sound in sounds:
            with self._service.spool() as spool:
                await self._fill(spool, sound)
                transcript = await self._service.transcribe(model, replace(request, raw_pcm=sound.raw_pcm), spool)
            lines.append(render.text(transcript.segments))
            reply.record.about(model, transcript.summary)
        await reply.whole("\n".join(lines))

    async def _stream(self, model: Model, request: Request, sounds: list[Sound], reply: Reply) -> None:
        try:
            async with aclosing(self._pieces(model, request, sounds, reply)) as pieces:
                async for piece in pieces:
                    await reply.piece({"content": piece})
            await reply.end()
        except EardrumError as error:
            if not reply.begun:
                raise
            await reply.failed(error)

    async def _pieces(self, model: Model, request: Request, sounds: list[Sound], reply: Reply) -> AsyncGenerator[str, None]:
        for number, sound in enumerate(sounds):
            pieces = Pieces()
            with self._service.spool() as spool:
                await self._fill(spool, sound)
                wanted = replace(request, raw_pcm=sound.raw_pcm)
                if number:
                    yield "\n"
                async with aclosing(self._service.stream(model, wanted, spool)) as events:
                    async for event in events:
                        if text := pieces.take(event):
                            yield text
                        if isinstance(event, Summary):
                            reply.record.about(model, event)

    async def _fill(self, spool: Spool, sound: Sound) -> None:
        if sound.url:
            await Fetcher(self._service.settings.limits).pour(sound.url, spool)
            return
        await spool.write(sound.data)
        spool.finish()


class Reply:
    """The answer on its way: one object, or chunks of one."""

    def __init__(self, model: str, scope: Scope, send: Send, record: Record):
        self.record = record
        self.begun = False
        self._scope = scope
        self._send = send
        self._about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    async def whole(self, text: str) -> None:
        """All of it."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        response = JSONResponse({**self._about, "object": "chat.completion", "choices": [choice]})
        await response(self._scope, _nothing, self._send)

    async def piece(self, delta: dict[str, str], finish_reason: str | None = None) -> None:
        """A chunk; the first one says who speaks."""
        if not self.begun:
            self.begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": answers.STREAM})
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        await self._event(json.dumps({**self._about, "object": "chat.completion.chunk", "choices": [choice]}))

    async def end(self) -> None:
        """The last chunks."""
        await self.piece({}, "stop")
        await self._event("[DONE]", last=True)

    async def failed(self, error: EardrumError) -> None:
        """An error after the stream has begun."""
        self.record.note = error.message
        await self._event(json.dumps(answers.worded(error)), last=True)

    async def _event(self, data: str, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": not last})


def recordings(body: dict[str, Any]) -> list[Sound]:
    """The recordings of the last message that has any.

    Raises:
        InvalidRequestError: one is not as it should be.
    """
    messages = body.get("messages")
    for message in reversed(messages if isinstance(messages, list) else []):
        content = message.get("content") if isinstance(message, dict) else None
        parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
        if sounds := [_sound(part) for part in parts if part.get("type") in ("input_audio", "audio_url")]:
            return sounds
    return []


def _sound(part: dict[str, Any]) -> Sound:
    kind = part["type"]
    value = part.get(kind)
    if kind == "audio_url":
        url = value.get("url") if isinstance(value, dict) else value
        if not isinstance(url, str) or not url:
            raise InvalidRequestError('An audio_url part must hold {"audio_url": {"url": ...}}.', param="audio_url")
        return Sound(data=_inside(url)) if url[:5].lower() == "data:" else Sound(url=url)
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, str) or not isinstance(value, dict):
        raise InvalidRequestError(
            'An input_audio part must hold {"input_audio": {"data": base64, "format": "wav"}}.', param="input_audio"
        )
    raw = str(value.get("format") or "") in fields.RAW_FORMATS
    return Sound(data=_decoded(data.rpartition("base64,")[2], "input_audio.data"), raw_pcm=raw)


def _inside(url: str) -> bytes:
    """What a data: URL holds."""
    head, comma, content = url.partition(",")
    if not comma:
        raise InvalidRequestError("A data: URL has a comma before its content.", param="audio_url")
    return _decoded(content, "audio_url") if head.lower().endswith(";base64") else unquote_to_bytes(content)


def _decoded(encoded: str, param: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidRequestError(f"{param} is not valid base64: {error}.", param=param) from None


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}
