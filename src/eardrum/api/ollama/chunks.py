"""What an upstream streams, or answers at once, as Ollama's chunks. Pure: time is passed in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from eardrum import json_text
from eardrum.api.ollama.durations import nanoseconds
from eardrum.api.ollama.refusals import of_upstream
from eardrum.errors import UpstreamError


@dataclass(slots=True)
class Piece:
    """A piece of an answer, or all of it."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: Piece) -> None:
        """Append what came next."""
        self.content += other.content
        self.thinking += other.thinking
        self.tool_calls += other.tool_calls
        self.logprobs += other.logprobs

    def as_chat(self) -> dict[str, Any]:
        """For `/api/chat`."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.thinking:
            message["thinking"] = self.thinking
        if self.tool_calls:
            message["tool_calls"] = self.tool_calls
        return {"message": message} | self._logprobs()

    def as_generate(self) -> dict[str, Any]:
        """For `/api/generate`."""
        return {"response": self.content} | ({"thinking": self.thinking} if self.thinking else {}) | self._logprobs()

    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": self.logprobs} if self.logprobs else {}

    def __bool__(self) -> bool:
        return bool(self.content or self.thinking or self.tool_calls or self.logprobs)


@dataclass(slots=True)
class Call:
    """A tool call of which fragments have come."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def as_json(self, index: int) -> dict[str, Any]:
        """With its arguments as an object, as Ollama has them.

        Raises:
            UpstreamError: they are none.
        """
        try:
            arguments = json_text.parsed_of_server(self.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise UpstreamError(f"The model called {self.name} with arguments that are not a JSON object: {self.arguments[:200]}")
        function = {"index": index, "name": self.name, "arguments": arguments}
        return ({"id": self.id} if self.id else {}) | {"function": function}


class Chunks:
    """One answer, event by event. Times are seconds of any steady clock."""

    def __init__(self, began: float, sent: float):
        """`began` is when the request came in, `sent` when the model was there and was asked."""
        self._began = began
        self._sent = sent
        self._first: float | None = None
        self._calls: dict[int, Call] = {}
        self._reason = ""
        self._usage: dict[str, Any] = {}
        self._timings: dict[str, Any] = {}

    @property
    def complete(self) -> bool:
        """Whether the upstream has said that it is done."""
        return bool(self._reason)

    def take(self, event: Any, now: float) -> Piece:
        """What an event adds that can be shown. Tool calls come in fragments and are shown at the end.

        None is the end that streams have of their own, `[DONE]`.

        Raises:
            UpstreamError: the event is none, or says that something went wrong; `UpstreamRefusedError` if it has a status.
        """
        if event is None:
            self._reason = self._reason or "stop"
            return Piece()
        if not isinstance(event, dict):
            raise UpstreamError(f"The server behind the model sent what is no event: {json.dumps(event)[:200]}")
        if error := event.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            raise of_upstream("the model", code if isinstance(code, int) else 0, worded(error))
        self._usage = _object(event.get("usage")) or self._usage
        self._timings = _object(event.get("timings")) or self._timings
        choice = _choice(event)
        piece = _piece(choice)
        self._collect(_said(choice).get("tool_calls"))
        self._reason = _text(choice.get("finish_reason")) or self._reason
        if self._first is None and (piece or self._calls):
            self._first = now
        return piece

    def tool_calls(self) -> Piece:
        """The tool calls, once everything is there. One that was cut off by the limit of tokens is none.

        Raises:
            UpstreamError: a call is not well-formed.
        """
        calls = sorted(self._calls.items())
        if self._reason == "length":
            calls = [(index, call) for index, call in calls if _whole(call.arguments)]
        return Piece(tool_calls=[call.as_json(index) for index, call in calls])

    def last(self, now: float) -> dict[str, Any]:
        """Why it ended and what it took: for the last chunk. What is not known is left out."""
        first = self._first if self._first is not None else now
        reading = self._timings.get("prompt_ms")
        writing = self._timings.get("predicted_ms")
        figures = {
            "total_duration": nanoseconds(now - self._began),
            "load_duration": nanoseconds(self._sent - self._began),
            "prompt_eval_count": _count(self._usage.get("prompt_tokens"), self._timings.get("prompt_n")),
            "prompt_eval_duration": nanoseconds(_number(reading) / 1000 if reading else first - self._sent),
            "eval_count": _count(self._usage.get("completion_tokens"), self._timings.get("predicted_n")),
            "eval_duration": nanoseconds(_number(writing) / 1000 if writing else now - first),
        }
        reason = "length" if self._reason == "length" else "stop"
        return {"done": True, "done_reason": reason} | {name: value for name, value in figures.items() if value}

    def _collect(self, fragments: Any) -> None:
        for number, given in enumerate(fragments if isinstance(fragments, list) else []):
            fragment = _object(given)
            index = fragment.get("index")
            call = self._calls.setdefault(index if isinstance(index, int) else number, Call())
            function = _object(fragment.get("function"))
            arguments = function.get("arguments") or ""
            call.id = call.id or _text(fragment.get("id"))
            call.name = call.name or _text(function.get("name"))
            call.arguments += arguments if isinstance(arguments, str) else json.dumps(arguments)


def worded(error: Any) -> str:
    """What an upstream's error says, whatever shape it has."""
    if isinstance(error, dict):
        error = error.get("message") or error.get("error") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error)[:500]


def _choice(event: dict[str, Any]) -> dict[str, Any]:
    """The first choice; what llama-server's `/infill` says without any is put into the shape of one."""
    choices = event.get("choices")
    if isinstance(choices, list):
        return _object(choices[0]) if choices else {}
    reason = ("length" if event.get("stop_type") == "limit" else "stop") if event.get("stop") is True else None
    return {"text": event.get("content"), "finish_reason": reason}


def _said(choice: dict[str, Any]) -> dict[str, Any]:
    """The part of a choice that holds what was said: streamed, whole, or plain text."""
    return _object(choice.get("delta") or choice.get("message") or {"content": choice.get("text")})


def _piece(choice: dict[str, Any]) -> Piece:
    said = _said(choice)
    thinking = said.get("reasoning_content") or said.get("reasoning")
    content, logprobs = said.get("content"), choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return Piece(
        content=_text(content),
        thinking=_text(thinking),
        logprobs=[_logprob(_object(token)) for token in tokens] if isinstance(tokens, list) else [],
    )


def _logprob(token: dict[str, Any]) -> dict[str, Any]:
    return {name: token[name] for name in ("token", "logprob", "bytes", "top_logprobs") if token.get(name) is not None}


def _whole(arguments: str) -> bool:
    try:
        return isinstance(json_text.parsed_of_server(arguments or "{}"), dict)
    except ValueError:
        return False


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(*candidates: Any) -> int:
    return int(next((number for number in map(_number, candidates) if number), 0))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e15 else 0.0
