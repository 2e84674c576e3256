"""`/api/chat`, `/api/generate`, `/api/embed` and `/api/embeddings`: text, transcripts and vectors.

A chat with a speech model carries audio in `images`, and the reply is the transcript. Without messages or prompt a model is
only loaded or unloaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from eardrum.api import transcript_formats
from eardrum.api.ollama import common_fields, model_info, requests
from eardrum.api.ollama.common_fields import ChatTurns, format_timestamp, is_streaming, pack_context, read_model_name, read_text
from eardrum.api.ollama.listing import OllamaNames
from eardrum.api.ollama.requests import MediaAttachment, UpstreamRequest, decode_attachments
from eardrum.api.ollama.responses import OllamaResponse
from eardrum.api.ollama.upstream import ChunkDecoder, ResponseChunk, build_upstream_request, read_events, try_models
from eardrum.api.request_log import TokenUsage
from eardrum.api.transcript_formats import TextDeltas
from eardrum.errors import InvalidRequestError, UpstreamError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import ForwardedRequest, Service
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.external import OutgoingRequest
from eardrum.transcription import TranscriptionRequest, TranscriptionSummary

log = logging.getLogger(__name__)


class GenerationRoutes:
    """The two endpoints."""

    def __init__(self, service: Service, names: OllamaNames):
        self._service = service
        self._names = names
        self._logged: set[tuple[str, str]] = set()

    async def chat(self, wish: dict[str, Any], reply: OllamaResponse) -> None:
        """`/api/chat`; without messages the model is only loaded, or unloaded."""
        await self._respond(wish, reply, ResponseChunk.as_chat, requests.map_chat, empty=not wish.get("messages"))

    async def generate(self, wish: dict[str, Any], reply: OllamaResponse) -> None:
        """`/api/generate`; without a prompt the model is only loaded, or unloaded."""
        empty = not any(wish.get(field) for field in ("prompt", "images", "suffix"))
        await self._respond(wish, reply, ResponseChunk.as_generate, requests.map_generate, empty=empty)

    async def _respond(
        self,
        wish: dict[str, Any],
        reply: OllamaResponse,
        shape: ChunkFormatter,
        mapping: Callable[..., UpstreamRequest],
        *,
        empty: bool,
    ) -> None:
        answering, (found, asked) = GenerationResponse(wish, reply, shape), self._names.resolve(read_model_name(wish))
        model = replace(found, ttl=common_fields.parse_keep_alive(wish.get("keep_alive"), found.ttl))
        reply.record.model = model.id
        if empty and model.ttl == common_fields.MIN_TTL_S:
            await self._service.unload_model(model)
            await answering.send_empty("unload")
        elif empty:
            await self._service.load_model(model)
            await answering.send_empty("load")
        elif model_info.is_speech_model(model):
            await self._transcribe(model, wish, reply, answering)
        else:
            one = partial(self._generate, wish=wish, reply=reply, shape=shape, mapping=mapping)
            await try_models(self._service, model, asked, reply, one, keep_alive=wish.get("keep_alive"))

    async def _generate(
        self,
        model: Model,
        asked: str,
        *,
        wish: dict[str, Any],
        reply: OllamaResponse,
        shape: ChunkFormatter,
        mapping: Callable[..., UpstreamRequest],
    ) -> None:
        ask = mapping(wish, model.id, model_info.get_server_features(model))
        self._log_ignored(model, ask)
        reply.ignored = ask.ignored
        sent = build_upstream_request(self._service, model, ask, asked, reply.authorization)
        await self._stream_upstream(model, sent, GenerationResponse(wish, reply, shape), ask.turns)

    async def _stream_upstream(
        self, model: Model, sent: OutgoingRequest, answering: GenerationResponse, turns: ChatTurns | None
    ) -> None:
        began, ready = time.monotonic(), self._service.get_state(model) is ModelState.READY
        async with ForwardedRequest(self._service, model, sent) as response:
            chunks = ChunkDecoder(began, began if ready else time.monotonic())
            async with aclosing(read_events(model, response)) as said:
                async for event in said:
                    await answering.add(chunks.feed(event, time.monotonic()))
        if not chunks.is_complete:
            raise UpstreamError(f"The server behind {model.id} ended in the middle of its answer.")
        await answering.add(chunks.build_tool_calls())
        last = chunks.build_last(time.monotonic())
        answering.record_usage(last)
        await answering.end(last, turns)

    async def _transcribe(self, model: Model, wish: dict[str, Any], reply: OllamaResponse, answering: GenerationResponse) -> None:
        began, decoding = time.monotonic(), 0.0
        async with aclosing(
            transcribe_recordings(self._service, model, decode_recordings(wish), whole=not answering.streams)
        ) as heard:
            async for text in heard:
                if isinstance(text, TranscriptionSummary):
                    reply.record.set_transcription(model, text)
                    decoding += text.decode_s
                else:
                    await answering.add(ResponseChunk(text))
        took = {"total_duration": time.monotonic() - began, "eval_duration": decoding}
        figures = {name: common_fields.to_nanoseconds(seconds) for name, seconds in took.items() if seconds}
        await answering.end({"done": True, "done_reason": "stop"} | figures)

    def _log_ignored(self, model: Model, ask: UpstreamRequest) -> None:
        """Say once of each option that it has no effect."""
        for option in (name[:40] for name in ask.ignored):  # what is remembered is bounded
            if (model.id, option) not in self._logged and len(self._logged) < 1000:
                self._logged.add((model.id, option))
                log.info(
                    "The option %r of Ollama's API has no effect on %s: set it where the model is started.", option, model.id
                )


MOST_TOKENS = 1 << 53
"""A larger number is no count, and more than clients can hold."""


class EmbeddingRoutes:
    """The two endpoints."""

    def __init__(self, service: Service, names: OllamaNames):
        self._service = service
        self._names = names

    async def embed_inputs(self, wish: dict[str, Any], reply: OllamaResponse) -> None:
        """`/api/embed`: a vector for each input."""
        began = time.monotonic()
        model, asked = self._find_model(wish, reply)
        ask = requests.map_embed(wish, model.id)
        said = await self._request_vectors(model, ask, asked, reply, wish.get("keep_alive"))
        figures = {
            "total_duration": common_fields.to_nanoseconds(time.monotonic() - began),
            "prompt_eval_count": _count_tokens(said),
        }
        vectors = _get_vectors(model, said, len(ask.body["input"]) if ask else 0)
        await reply.send_object(
            {"model": read_model_name(wish), "embeddings": vectors} | {name: value for name, value in figures.items() if value}
        )

    async def embed_prompt(self, wish: dict[str, Any], reply: OllamaResponse) -> None:
        """`/api/embeddings`, the older one: the vector of a prompt."""
        model, asked = self._find_model(wish, reply)
        prompt = read_text(wish, "prompt")
        said = await self._request_vectors(
            model, requests.map_embed({"input": prompt}, model.id), asked, reply, wish.get("keep_alive")
        )
        await reply.send_object({"embedding": (_get_vectors(model, said, 1) if prompt else [[]])[0]})

    def _find_model(self, wish: dict[str, Any], reply: OllamaResponse) -> tuple[Model, str]:
        """The model, kept as long as the client says, and the name it is asked by."""
        found, asked = self._names.resolve(read_model_name(wish))
        reply.record.model = found.id
        if model_info.is_speech_model(found):
            raise InvalidRequestError(f'"{found.id}" does not support embeddings: it turns speech into text.', param="model")
        return replace(found, ttl=common_fields.parse_keep_alive(wish.get("keep_alive"), found.ttl)), asked

    async def _request_vectors(
        self, model: Model, ask: UpstreamRequest | None, asked: str, reply: OllamaResponse, keep_alive: Any
    ) -> Any:
        """What the model says; with nothing to ask it is only loaded."""
        if not ask:
            await self._service.load_model(model)
            return {"data": []}

        async def one(model: Model, asked: str) -> Any:
            renamed = replace(ask, body={**ask.body, "model": model.id})
            sent = build_upstream_request(self._service, model, renamed, asked, reply.authorization)
            async with ForwardedRequest(self._service, model, sent) as response, aclosing(read_events(model, response)) as said:
                return await anext(said)

        return await try_models(self._service, model, asked, reply, one, keep_alive=keep_alive)


def _get_vectors(model: Model, said: Any, count: int) -> list[list[float]]:
    """The vectors in the order of the inputs.

    Raises:
        UpstreamError: they are not all there.
    """
    try:
        vectors = [item["embedding"] for item in sorted(said["data"], key=lambda item: item.get("index", 0))]
    except (KeyError, TypeError, AttributeError):
        vectors = []
    if len(vectors) != count or not all(isinstance(vector, list) for vector in vectors):
        raise UpstreamError(f"The server behind {model.id} answered {len(vectors)} embeddings where {count} were asked for.")
    return vectors


def _count_tokens(said: Any) -> int:
    usage = said.get("usage") if isinstance(said, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
    return count if isinstance(count, int) and 0 < count < MOST_TOKENS else 0


ChunkFormatter = Callable[[ResponseChunk], dict[str, Any]]
"""How a route puts a piece into words."""


class GenerationResponse:
    """One answer in the shape of its route, in lines or whole."""

    def __init__(self, wish: dict[str, Any], reply: OllamaResponse, shape: ChunkFormatter):
        self._name = read_model_name(wish)
        self.streams = is_streaming(wish)
        """Whether the client wants pieces as they come."""
        self._reply = reply
        self._shape = shape
        self._whole = ResponseChunk()
        self._texts: list[str] = []

    async def add(self, piece: ResponseChunk) -> None:
        """Send one more piece, or keep it for the end."""
        if not piece:
            return
        self._texts.append(piece.content)
        if self.streams:
            await self._reply.send_line(self._build_line(piece) | {"done": False})
        else:
            self._whole.add(piece)

    def record_usage(self, last: dict[str, Any]) -> None:
        """Tell whoever runs the server what it took."""
        self._reply.record.tokens = TokenUsage(last.get("prompt_eval_count", 0), last.get("eval_count", 0))

    async def end(self, last: dict[str, Any], before: ChatTurns | None = None) -> None:
        """Send the end: `last` is what comes after `done`. With what was said `before`, the client can go on from here."""
        if before is not None:
            last = last | {"context": pack_context((*before, ("assistant", "".join(self._texts))))}
        if self.streams:
            await self._reply.send_line(self._build_line(ResponseChunk()) | last, last=True)
        else:
            await self._reply.send_object(self._build_line(self._whole) | last)

    async def send_empty(self, reason: str) -> None:
        """Answer without a word."""
        await self._reply.send_object(self._build_line(ResponseChunk()) | {"done": True, "done_reason": reason})

    def _build_line(self, piece: ResponseChunk) -> dict[str, Any]:
        return {"model": self._name, "created_at": format_timestamp(time.time())} | self._shape(piece)


def decode_recordings(wish: dict[str, Any]) -> list[MediaAttachment]:
    """The recordings of the last message that has any, or of a prompt.

    Raises:
        InvalidRequestError: they are not base64.
    """
    messages = wish.get("messages")
    for message in reversed(messages if isinstance(messages, list) else [wish]):
        if isinstance(message, dict) and (found := decode_attachments(message.get("images"))):
            return found
    return []


TranscriptStream = AsyncGenerator[str | TranscriptionSummary, None]
"""Text as it is heard, spaces included, and after each recording what is known of it."""


async def transcribe_recordings(
    service: Service, model: Model, sounds: list[MediaAttachment], *, whole: bool
) -> TranscriptStream:
    """A line of text for each recording; with `whole` only when all of it is there, which outlives a crash of the model.

    Raises:
        InvalidRequestError: there is no recording.
        EardrumError: anything that went wrong, worded for the client.
    """
    if not sounds:
        raise InvalidRequestError(f'"{model.id}" does not support chat: it turns speech into text. Send audio in `images`.')
    for number, sound in enumerate(sounds):
        if number:
            yield "\n"
        with service.create_spool() as spool:
            await spool.write(sound.data)
            spool.finish()
            async with aclosing((_transcribe_whole if whole else _transcribe_deltas)(service, model, spool)) as heard:
                async for said in heard:
                    yield said


async def _transcribe_whole(service: Service, model: Model, spool: Spool) -> TranscriptStream:
    transcript = await service.transcribe(model, TranscriptionRequest(times=False), spool)
    yield transcript_formats.format_text(transcript.segments)
    yield transcript.summary


async def _transcribe_deltas(service: Service, model: Model, spool: Spool) -> TranscriptStream:
    pieces = TextDeltas()
    async with aclosing(service.stream_events(model, TranscriptionRequest(times=False), spool)) as events:
        async for event in events:
            if text := pieces.feed(event):
                yield text
            if isinstance(event, TranscriptionSummary):
                yield event
