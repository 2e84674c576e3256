"""Sends a mapped request to a model's upstream, falls back to other models, and decodes the answer into Ollama's chunks.

The decoders are pure: time is passed in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from eardrum import bounded_json
from eardrum.api.ollama import common_fields, model_info
from eardrum.api.ollama.common_fields import to_nanoseconds
from eardrum.api.ollama.requests import UpstreamRequest
from eardrum.api.ollama.responses import OllamaResponse, UpstreamRefusedError, make_upstream_error
from eardrum.errors import EardrumError, UpstreamError
from eardrum.gateway.fallback import is_retryable, list_fallbacks
from eardrum.gateway.models.inventory import COMMAND, Model
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams import filters
from eardrum.gateway.upstreams.external import iterate_body
from eardrum.gateway.upstreams.http_client import OutgoingRequest, UpstreamResponse
from eardrum.openai_replies import SseDecoder, UpstreamReply

DONE_EVENT = "[DONE]"
REQUEST_HEADERS = ((b"content-type", b"application/json"), (b"accept-encoding", b"identity"))


def build_upstream_request(
    service: Service, model: Model, upstream_request: UpstreamRequest, requested_name: str, authorization: str
) -> OutgoingRequest:
    """Build the upstream's request, with the config's filters for the name `requested_name`.

    The key to this server stays on this machine: an upstream elsewhere does not get it.
    """
    headers = [*REQUEST_HEADERS]
    if authorization and (model.engine == COMMAND or not service.settings.api_keys):
        headers.append((b"authorization", authorization.encode("latin-1")))
    return OutgoingRequest(
        "POST",
        upstream_request.path,
        headers,
        json.dumps(filters.apply_filters(upstream_request.body, model.entry, requested_name)).encode(),
    )


async def read_events(model: Model, response: UpstreamResponse) -> AsyncGenerator[Any, None]:
    """Yield each event of a stream, or the whole response as one; then None, if the stream ended with `[DONE]` or was whole.

    Raises:
        UpstreamRefusedError: the upstream responded with an error status that is passed on.
        UpstreamError: the upstream failed, or sent invalid JSON.
        UpstreamDiedError: the connection broke.
    """
    if response.status >= 400:
        raise _make_refusal(model, response, b"".join([piece async for piece in iterate_body(response)]))
    if response.content_type != "text/event-stream":
        yield _parse_event(model, b"".join([piece async for piece in iterate_body(response)]))
        yield None
        return
    found = SseDecoder()
    async for piece in iterate_body(response):
        for data in found.feed(piece):
            yield None if data == DONE_EVENT else _parse_event(model, data)
            if data == DONE_EVENT:
                return
    for data in found.flush():
        yield None if data == DONE_EVENT else _parse_event(model, data)


def _make_refusal(model: Model, response: UpstreamResponse, content: bytes) -> EardrumError:
    """Make the error for an error response, with its `Retry-After`."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.raw_headers}
    reply = UpstreamReply("", response.status, headers, content)
    body = reply.json if reply.json is not None else reply.text[:500]
    message = (
        describe_upstream_error(body.get("error") or body if isinstance(body, dict) else body)
        or f"It answered {response.status}."
    )
    return make_upstream_error(model.id, response.status, message, reply.retry_after)


def _parse_event(model: Model, data: bytes | str) -> Any:
    try:
        return bounded_json.parse_upstream_json(data)
    except ValueError:
        start = data[:200].decode(errors="replace") if isinstance(data, bytes) else data[:200]
        raise UpstreamError(f"The server behind {model.id} sent invalid JSON: {start}") from None


log = logging.getLogger(__name__)

BUSY_STATUS = 429

T = TypeVar("T")


async def try_models(
    service: Service,
    model: Model,
    requested_name: str,
    reply: OllamaResponse,
    answer: Callable[[Model, str], Awaitable[T]],
    *,
    keep_alive: Any,
) -> T:
    """Answer with the model, or with the first of its fallbacks that does not fail.

    A response that has begun is not retried.

    Raises:
        EardrumError: the last model tried failed.
    """
    others = [
        (name, other)
        for name, other in list_fallbacks(service.catalog, model)
        if other.is_external and not model_info.is_speech_model(other)
    ]
    tries = [
        (requested_name, model),
        *((name, other.with_ttl(common_fields.parse_keep_alive(keep_alive, other.ttl))) for name, other in others),
    ]
    for number, (name, one) in enumerate(tries, 1):
        reply.record.model = one.id
        try:
            return await answer(one, name)
        except EardrumError as error:
            if number == len(tries) or reply.has_begun or not _may_retry(error):
                raise
            log.warning("%s Trying fallback model %s.", error.sentence, tries[number][1].id)
    raise AssertionError("unreachable")


def _may_retry(error: EardrumError) -> bool:
    """Whether another model may succeed; not if the upstream blames the client's request."""
    if isinstance(error, UpstreamRefusedError):
        return error.upstream_status >= 500 or error.upstream_status == BUSY_STATUS
    return is_retryable(error)


@dataclass(slots=True)
class ResponseChunk:
    """A part of a response, or the whole of it."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: ResponseChunk) -> None:
        """Append the following chunk."""
        self.content += other.content
        self.thinking += other.thinking
        self.tool_calls += other.tool_calls
        self.logprobs += other.logprobs

    def as_chat(self) -> dict[str, Any]:
        """Format the chunk for `/api/chat`."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.thinking:
            message["thinking"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return {"message": message} | self._describe_logprobs()

    def as_generate(self) -> dict[str, Any]:
        """Format the chunk for `/api/generate`."""
        return {"response": self.content} | ({"thinking": self.thinking} if self.thinking else {}) | self._describe_logprobs()

    def _describe_logprobs(self) -> dict[str, Any]:
        return {"logprobs": self.logprobs} if self.logprobs else {}

    def __bool__(self) -> bool:
        return bool(self.content or self.thinking or self.tool_calls or self.logprobs)


@dataclass(slots=True)
class PartialToolCall:
    """A tool call, assembled from fragments."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def as_json(self, index: int) -> dict[str, Any]:
        """Format the call as Ollama does, with its arguments as an object.

        Raises:
            UpstreamError: the arguments are not a JSON object.
        """
        try:
            arguments = bounded_json.parse_upstream_json(self.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise UpstreamError(f"The model called {self.name} with arguments that are not a JSON object: {self.arguments[:200]}")
        function = {"index": index, "name": self.name, "arguments": arguments}
        return ({"id": self.id} if self.id else {}) | {"function": function}


class ChunkDecoder:
    """Decodes one response, event by event. Times are seconds of any monotonic clock."""

    def __init__(self, began: float, sent: float):
        """`began` is the arrival of the request, `sent` the time at which the loaded model got it."""
        self._began = began
        self._sent = sent
        self._first: float | None = None
        self._calls: dict[int, PartialToolCall] = {}
        self._reason = ""
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    @property
    def is_complete(self) -> bool:
        """Whether the upstream has finished its response."""
        return bool(self._reason)

    def feed(self, event: Any, now: float) -> ResponseChunk:
        """Return the chunk in an event. Tool calls arrive in fragments and are collected for the end.

        The event None stands for `[DONE]`.

        Raises:
            UpstreamError: the event is invalid or reports an error; `UpstreamRefusedError` if the error has a status.
        """
        if event is None:
            self._reason = self._reason or "stop"
            return ResponseChunk()
        if not isinstance(event, dict):
            raise UpstreamError(f"The server behind the model sent an invalid event: {json.dumps(event)[:200]}")
        if error := event.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            raise make_upstream_error("the model", code if isinstance(code, int) else 0, describe_upstream_error(error))
        self._usage = _as_object(event.get("usage")) or self._usage
        self._timings = _as_object(event.get("timings")) or self._timings
        choice = _get_choice(event)
        piece = _build_chunk(choice)
        self._collect_calls(_get_message(choice).get("tool_calls"))
        self._reason = _as_text(choice.get("finish_reason")) or self._reason
        if self._first is None and (piece or self._calls):
            self._first = now
        return piece

    def build_tool_calls(self) -> ResponseChunk:
        """Build the collected tool calls, without one that the token limit cut off.

        Raises:
            UpstreamError: the arguments of a call are not a JSON object.
        """
        calls = sorted(self._calls.items())
        if self._reason == "length":
            calls = [(index, call) for index, call in calls if _is_complete_object(call.arguments)]
        return ResponseChunk(tool_calls=[call.as_json(index) for index, call in calls])

    def build_last(self, now: float) -> dict[str, Any]:
        """Build the fields of the last chunk: the reason of the end, durations and token counts. Unknown ones are left out."""
        first = self._first if self._first is not None else now
        reading = self._timings.get("prompt_ms")
        writing = self._timings.get("predicted_ms")
        figures = {
            "total_duration": to_nanoseconds(now - self._began),
            "load_duration": to_nanoseconds(self._sent - self._began),
            "prompt_eval_count": _find_count(self._usage.get("prompt_tokens"), self._timings.get("prompt_n")),
            "prompt_eval_duration": to_nanoseconds(_as_number(reading) / 1000 if reading else first - self._sent),
            "eval_count": _find_count(self._usage.get("completion_tokens"), self._timings.get("predicted_n")),
            "eval_duration": to_nanoseconds(_as_number(writing) / 1000 if writing else now - first),
        }
        reason = "length" if self._reason == "length" else "stop"
        return {"done": True, "done_reason": reason} | {name: value for name, value in figures.items() if value}

    def _collect_calls(self, fragments: Any) -> None:
        for number, given in enumerate(fragments if isinstance(fragments, list) else []):
            fragment = _as_object(given)
            index = fragment.get("index")
            call = self._calls.setdefault(index if isinstance(index, int) else number, PartialToolCall())
            function = _as_object(fragment.get("function"))
            arguments = function.get("arguments") or ""
            call.id = call.id or _as_text(fragment.get("id"))
            call.name = call.name or _as_text(function.get("name"))
            call.arguments += arguments if isinstance(arguments, str) else json.dumps(arguments)


def describe_upstream_error(error: Any) -> str:
    """Return the message of an upstream's error, in any format."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("error") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error)[:500]


def _get_choice(event: dict[str, Any]) -> dict[str, Any]:
    """Return the first choice; llama-server's `/infill` has none, so its fields are converted into one."""
    choices = event.get("choices")
    if isinstance(choices, list):
        return _as_object(choices[0]) if choices else {}
    reason = ("length" if event.get("stop_type") == "limit" else "stop") if event.get("stop") is True else None
    return {"text": event.get("content"), "finish_reason": reason}


def _get_message(choice: dict[str, Any]) -> dict[str, Any]:
    """Return the message of a choice, which may be streamed, whole, or plain text."""
    return _as_object(choice.get("delta") or choice.get("message") or {"content": choice.get("text")})


def _build_chunk(choice: dict[str, Any]) -> ResponseChunk:
    message = _get_message(choice)
    thinking = message.get("reasoning_content") or message.get("reasoning")
    content, logprobs = message.get("content"), choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return ResponseChunk(
        content=_as_text(content),
        thinking=_as_text(thinking),
        logprobs=[_convert_logprob(_as_object(token)) for token in tokens] if isinstance(tokens, list) else [],
    )


def _convert_logprob(token: dict[str, Any]) -> dict[str, Any]:
    return {name: token[name] for name in ("token", "logprob", "bytes", "top_logprobs") if token.get(name) is not None}


def _is_complete_object(arguments: str) -> bool:
    try:
        return isinstance(bounded_json.parse_upstream_json(arguments or "{}"), dict)
    except ValueError:
        return False


def _as_object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _find_count(*candidates: Any) -> int:
    return int(next((number for number in map(_as_number, candidates) if number), 0))


def _as_number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e15 else 0.0
