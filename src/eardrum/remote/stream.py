"""Reads transcripts that come in pieces: OpenAI's `transcript.text.delta`, and the chunks of vLLM."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from eardrum import json_text
from eardrum.remote.answers import QWEN, Answer, code_of, plain
from eardrum.text import joined, separator

MARK = "language "
"""How a mark of Qwen3-ASR begins."""
MARK_LENGTH = 60
"""No mark is longer; what has not ended by then is text."""
EVENT_BYTES = 64 << 20
"""Longest event that is read: the last one may have all segments of a day in it."""


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of server-sent events, however the stream was cut up. `[DONE]` is `{}`.

    Raises:
        ValueError: an event is no JSON object, or longer than any.
    """
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        if len(buffer) > EVENT_BYTES:
            raise ValueError(f"an event of more than {EVENT_BYTES >> 20} MiB")
        *lines, rest = bytes(buffer).split(b"\n") if b"\n" in chunk else (bytes(buffer),)
        if lines:
            buffer = bytearray(rest)
        for line in lines:
            if line.startswith(b"data:"):
                yield _parsed(line.removeprefix(b"data:").strip())


def _parsed(data: bytes) -> dict[str, Any]:
    if data == b"[DONE]":
        return {}
    event = json_text.parsed_of_server(data)
    if not isinstance(event, dict):
        raise ValueError("an event that is no object")
    return event


@dataclass(slots=True)
class Streamed:
    """What was heard so far."""

    text: str = ""
    done: bool = False
    """The stream has said that it is over."""
    language: str = ""
    """The language the text was marked with."""
    _last: Answer | None = None
    """What its last event told besides."""
    _parts: list[Answer] = field(default_factory=list)
    """Segments that came one by one, each as an answer of its own."""
    _held: str | None = ""
    """The beginning, as long as it may be a mark; None once it is known."""

    def take(self, event: dict[str, Any]) -> str:
        """Take in the next event and return the text it adds.

        Raises:
            ValueError: it cannot be read.
        """
        kind = event.get("type") or event.get("object")
        if not event or kind == "transcript.text.done":
            self.done = True
            self._last = Answer.model_validate({"text": "", **event}) if event else self._last
            return ""
        if kind == "transcription.chunk":
            deltas = (choice.get("delta") or {} for choice in event.get("choices") or ())
            return self._add("".join(str(delta.get("content") or "") for delta in deltas))
        if kind == "transcript.text.delta" or "delta" in event:
            return self._add(str(event.get("delta") or ""))
        if kind == "transcript.text.segment":
            self._parts.append(Answer.model_validate({"segments": [event]}))
        elif not kind and ("text" in event or "segments" in event):  # faster-whisper-server's: every segment is an answer
            self._parts.append(Answer.model_validate(event))
            return self._add_part(self._parts[-1])
        return ""

    def end(self) -> str:
        """The text that the end adds: what was held back, and what only the last event told.

        A stream of parts ends without saying so.
        """
        self.done = self.done or bool(self._parts)
        rest = self._add("", last=True)
        told = plain(self._last.text)[0] if self._last else ""
        if told.startswith(self.text) and len(told) > len(self.text):
            rest += told[len(self.text) :]
            self.text = told
        return rest

    def answer(self) -> Answer:
        """The whole, as if it had come at once."""
        said, parts = self._last or Answer.model_validate({"text": ""}), self._parts
        language = said.language or self.language or next((part.language for part in parts if part.language), "")
        whole: dict[str, Any] = {"text": self.text or said.text, "language": language}
        if not said.segments and parts:
            segments = [segment for part in parts for segment in part.segments or ()]
            words = [word for part in parts for word in part.words or ()]
            whole |= {"segments": segments, "words": words, "duration": said.duration or max(part.duration for part in parts)}
        return said.model_copy(update=whole)

    def _add_part(self, part: Answer) -> str:
        text = part.text.strip() or joined(segment.text for segment in part.segments or ())
        return self._add(separator(self.text, text) + text)

    def _add(self, text: str, *, last: bool = False) -> str:
        if self._held is not None:
            text = self._held + text
            self._held = None if last or not _may_be_mark(text) else text
            if self._held is not None:
                return ""
            if marked := QWEN.match(text):
                text, self.language = text[marked.end() :], code_of(marked["language"].strip())
        if not self.text:
            text = text.lstrip()
        self.text += text
        return text


def _may_be_mark(text: str) -> bool:
    text = text.lstrip()
    if QWEN.match(text) or len(text) > MARK_LENGTH:
        return False
    return MARK.startswith(text[: len(MARK)])
