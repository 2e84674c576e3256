"""`/api/chat`, `/api/generate`, `/api/embed` and `/api/embeddings`: text, transcripts and vectors.

A chat with a speech model carries audio in `images`, and the reply is the transcript. Without messages or prompt a model is
only loaded or unloaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

from msgspec.structs import replace

from eardrum.api import transcript_formats
from eardrum.api.fields import RequestModel
from eardrum.api.ollama import common_fields, model_info, requests
from eardrum.api.ollama.common_fields import ChatTurns, ModelRequest, Verbatim, format_timestamp, pack_context
from eardrum.api.ollama.listing import OllamaNames
from eardrum.api.ollama.requests import Attachments, MediaAttachment, UpstreamRequest, decode_attachments
from eardrum.api.ollama.responses import OllamaResponse
from eardrum.api.ollama.upstream import ChunkDecoder, ResponseChunk, build_upstream_request, read_events, try_models
from eardrum.api.request_log import TokenUsage
from eardrum.api.transcript_formats import TextDeltas
from eardrum.errors import InvalidRequestError, UpstreamError
from eardrum.gateway.key_usage import check_model_allowed
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import ForwardedRequest, Service
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams.http_client import OutgoingRequest
from eardrum.transcription import TranscriptionRequest, TranscriptionSummary

log = logging.getLogger(__name__)


class GenerationRoutes:
    """Serves `/api/chat` and `/api/generate`."""

    def __init__(self, service: Service, names: OllamaNames):
        self._service = service
        self._names = names
        self._logged: set[tuple[str, str]] = set()

    async def chat(self, request: dict[str, Any], reply: OllamaResponse) -> None:
        """Serve `/api/chat`; without messages, only load or unload the model."""
        await self._respond(request, reply, ResponseChunk.as_chat, requests.map_chat, empty=not request.get("messages"))

    async def generate(self, request: dict[str, Any], reply: OllamaResponse) -> None:
        """Serve `/api/generate`; without a prompt, only load or unload the model."""
        empty = not any(request.get(field) for field in ("prompt", "images", "suffix"))
        await self._respond(request, reply, ResponseChunk.as_generate, requests.map_generate, empty=empty)

    async def _respond(
        self,
        request: dict[str, Any],
        reply: OllamaResponse,
        shape: ChunkFormatter,
        mapping: Callable[..., UpstreamRequest],
        *,
        empty: bool,
    ) -> None:
        head = ModelRequest.parse(request)
        response = GenerationResponse(head, reply, shape)
        found, requested_name = self._names.resolve(head.model_name)
        check_model_allowed(found.id, found.aliases)  # unloading takes no lease, which checks it otherwise
        model = found.with_ttl(common_fields.parse_keep_alive(head.keep_alive, found.ttl))
        reply.record.model = model.id
        if empty and model.ttl == common_fields.MIN_TTL_S:
            await self._service.unload_model(model)
            await response.send_empty("unload")
        elif empty:
            await self._service.load_model(model)
            await response.send_empty("load")
        elif model.is_voice_model and not model.is_external:
            raise InvalidRequestError(f'"{model.id}" does not support generate: it turns text into speech.', param="model")
        elif model_info.is_speech_model(model):
            await self._transcribe(model, request, reply, response)
        else:
            one = partial(self._generate, request=request, reply=reply, shape=shape, mapping=mapping)
            await try_models(self._service, model, requested_name, reply, one, keep_alive=head.keep_alive)

    async def _generate(
        self,
        model: Model,
        requested_name: str,
        *,
        request: dict[str, Any],
        reply: OllamaResponse,
        shape: ChunkFormatter,
        mapping: Callable[..., UpstreamRequest],
    ) -> None:
        upstream_request = mapping(request, model.id, model_info.get_server_features(model))
        self._log_ignored(model, upstream_request)
        reply.ignored = upstream_request.ignored
        sent = build_upstream_request(self._service, model, upstream_request, requested_name, reply.authorization)
        await self._stream_upstream(
            model, sent, GenerationResponse(ModelRequest.parse(request), reply, shape), upstream_request.turns
        )

    async def _stream_upstream(
        self, model: Model, sent: OutgoingRequest, response: GenerationResponse, turns: ChatTurns | None
    ) -> None:
        began, ready = time.monotonic(), self._service.get_state(model) is ModelState.READY
        async with ForwardedRequest(self._service, model, sent) as answer:
            chunks = ChunkDecoder(began, began if ready else time.monotonic())
            async with aclosing(read_events(model, answer)) as events:
                async for event in events:
                    await response.add(chunks.feed(event, time.monotonic()))
        if not chunks.is_complete:
            raise UpstreamError(f"The server behind {model.id} ended its response early.")
        await response.add(chunks.build_tool_calls())
        last = chunks.build_last(time.monotonic())
        response.record_usage(last)
        await response.end(last, turns)

    async def _transcribe(
        self, model: Model, request: dict[str, Any], reply: OllamaResponse, response: GenerationResponse
    ) -> None:
        began, decoding = time.monotonic(), 0.0
        async with aclosing(
            transcribe_recordings(self._service, model, decode_recordings(request), whole=not response.streams)
        ) as events:
            async for text in events:
                if isinstance(text, TranscriptionSummary):
                    reply.record.set_transcription(model, text)
                    decoding += text.decode_s
                else:
                    await response.add(ResponseChunk(text))
        took = {"total_duration": time.monotonic() - began, "eval_duration": decoding}
        figures = {name: common_fields.to_nanoseconds(seconds) for name, seconds in took.items() if seconds}
        await response.end({"done": True, "done_reason": "stop"} | figures)

    def _log_ignored(self, model: Model, upstream_request: UpstreamRequest) -> None:
        """Log each option without effect once per model."""
        for option in (name[:40] for name in upstream_request.ignored):  # bounds the memory
            if (model.id, option) not in self._logged and len(self._logged) < 1000:
                self._logged.add((model.id, option))
                log.info("Option %r has no effect on model %s; set it in the command that starts the model.", option, model.id)


class EmbeddingPrompt(RequestModel):
    """The body of `/api/embeddings`, beside the model."""

    prompt: Verbatim = ""


MAX_TOKENS = 1 << 53
"""The largest token count to report. A larger number is an upstream's mistake, and JSON clients cannot represent it."""


class EmbeddingRoutes:
    """Serves `/api/embed` and `/api/embeddings`."""

    def __init__(self, service: Service, names: OllamaNames):
        self._service = service
        self._names = names

    async def embed_inputs(self, request: dict[str, Any], reply: OllamaResponse) -> None:
        """Serve `/api/embed`: one vector per input."""
        began = time.monotonic()
        model, requested_name = self._find_model(request, reply)
        upstream_request = requests.map_embed(request, model.id)
        result = await self._request_vectors(model, upstream_request, requested_name, reply, request.get("keep_alive"))
        figures = {
            "total_duration": common_fields.to_nanoseconds(time.monotonic() - began),
            "prompt_eval_count": _count_tokens(result),
        }
        vectors = _get_vectors(model, result, len(upstream_request.body["input"]) if upstream_request else 0)
        await reply.send_object(
            {"model": ModelRequest.parse(request).model_name, "embeddings": vectors}
            | {name: value for name, value in figures.items() if value}
        )

    async def embed_prompt(self, request: dict[str, Any], reply: OllamaResponse) -> None:
        """`/api/embeddings`, the older one: the vector of a prompt."""
        model, requested_name = self._find_model(request, reply)
        prompt = EmbeddingPrompt.parse(request).prompt
        result = await self._request_vectors(
            model, requests.map_embed({"input": prompt}, model.id), requested_name, reply, request.get("keep_alive")
        )
        await reply.send_object({"embedding": (_get_vectors(model, result, 1) if prompt else [[]])[0]})

    def _find_model(self, request: dict[str, Any], reply: OllamaResponse) -> tuple[Model, str]:
        """Return the model, with the request's time to live, and the name that the request resolves to."""
        found, requested_name = self._names.resolve(ModelRequest.parse(request).model_name)
        reply.record.model = found.id
        if model_info.is_speech_model(found):
            raise InvalidRequestError(
                f'"{found.id}" does not support embeddings: it {"speaks" if found.is_voice_model else "transcribes audio"}.',
                param="model",
            )
        ttl = common_fields.parse_keep_alive(request.get("keep_alive"), found.ttl)
        return found.with_ttl(ttl), requested_name

    async def _request_vectors(
        self, model: Model, upstream_request: UpstreamRequest | None, requested_name: str, reply: OllamaResponse, keep_alive: Any
    ) -> Any:
        """Request the vectors; without inputs, only load the model."""
        if not upstream_request:
            await self._service.load_model(model)
            return {"data": []}

        async def one(model: Model, requested_name: str) -> Any:
            renamed = replace(upstream_request, body={**upstream_request.body, "model": model.id})
            sent = build_upstream_request(self._service, model, renamed, requested_name, reply.authorization)
            async with ForwardedRequest(self._service, model, sent) as response, aclosing(read_events(model, response)) as events:
                return await anext(events, None)  # a stream may be empty

        return await try_models(self._service, model, requested_name, reply, one, keep_alive=keep_alive)


def _get_vectors(model: Model, result: Any, count: int) -> list[list[float]]:
    """Return the vectors in the order of the inputs.

    Raises:
        UpstreamError: the response does not hold one vector per input.
    """
    try:
        vectors = [item["embedding"] for item in sorted(result["data"], key=lambda item: item.get("index", 0))]
    except (KeyError, TypeError, AttributeError):
        vectors = []
    if len(vectors) != count or not all(isinstance(vector, list) for vector in vectors):
        raise UpstreamError(f"The server behind {model.id} returned {len(vectors)} embeddings for {count} inputs.")
    return vectors


def _count_tokens(result: Any) -> int:
    usage = result.get("usage") if isinstance(result, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
    return count if isinstance(count, int) and 0 < count < MAX_TOKENS else 0


ChunkFormatter = Callable[[ResponseChunk], dict[str, Any]]
"""Formats a chunk as the response of one route."""


class GenerationResponse:
    """Sends one response in the format of its route, streamed or as a single object."""

    def __init__(self, head: ModelRequest, reply: OllamaResponse, shape: ChunkFormatter):
        self._name = head.model_name
        self.streams = head.stream
        self._reply = reply
        self._shape = shape
        self._whole = ResponseChunk()
        self._texts: list[str] = []

    async def add(self, piece: ResponseChunk) -> None:
        """Send a chunk, or keep it for a single object."""
        if not piece:
            return
        self._texts.append(piece.content)
        if self.streams:
            await self._reply.send_line(self._build_line(piece) | {"done": False})
        else:
            self._whole.add(piece)

    def record_usage(self, last: dict[str, Any]) -> None:
        """Add the token counts to the request's log record."""
        self._reply.record.tokens = TokenUsage(last.get("prompt_eval_count", 0), last.get("eval_count", 0))

    async def end(self, last: dict[str, Any], before: ChatTurns | None = None) -> None:
        """Send the final fields. With the turns `before`, also send the `context` to continue the conversation."""
        if before is not None:
            last = last | {"context": pack_context((*before, ("assistant", "".join(self._texts))))}
        if self.streams:
            await self._reply.send_line(self._build_line(ResponseChunk()) | last, last=True)
        else:
            await self._reply.send_object(self._build_line(self._whole) | last)

    async def send_empty(self, reason: str) -> None:
        """Send a response without text, for loading or unloading a model."""
        await self._reply.send_object(self._build_line(ResponseChunk()) | {"done": True, "done_reason": reason})

    def _build_line(self, piece: ResponseChunk) -> dict[str, Any]:
        return {"model": self._name, "created_at": format_timestamp(time.time())} | self._shape(piece)


def decode_recordings(request: dict[str, Any]) -> list[MediaAttachment]:
    """Decode the recordings of the last message that has any, or of the prompt.

    Raises:
        InvalidRequestError: a recording is not base64.
    """
    messages = request.get("messages")
    for message in reversed(messages if isinstance(messages, list) else [request]):
        if isinstance(message, dict) and (found := decode_attachments(Attachments.parse(message).images)):
            return found
    return []


TranscriptStream = AsyncGenerator[str | TranscriptionSummary, None]
"""Text deltas, spaces included, and a summary after each recording."""


async def transcribe_recordings(
    service: Service, model: Model, sounds: list[MediaAttachment], *, whole: bool
) -> TranscriptStream:
    """Yield one line of text per recording. With `whole`, each arrives complete, so that a crash of the model can be retried.

    Raises:
        InvalidRequestError: the request has no recording.
        EardrumError: the transcription failed.
    """
    if not sounds:
        raise InvalidRequestError(f'"{model.id}" does not support chat; it transcribes audio. Send audio in `images`.')
    for number, sound in enumerate(sounds):
        if number:
            yield "\n"
        with service.create_spool() as spool:
            await spool.write(sound.data)
            spool.finish()
            async with aclosing((_transcribe_whole if whole else _transcribe_deltas)(service, model, spool)) as events:
                async for event in events:
                    yield event


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
