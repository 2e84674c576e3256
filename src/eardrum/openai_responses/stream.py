"""Parses streamed transcripts: OpenAI's `transcript.text.delta` events, and the chunks of vLLM."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from eardrum import bounded_json
from eardrum.openai_responses.transcript import QWEN_PREFIX, UpstreamTranscript, clean_text, find_language_code
from eardrum.text import choose_separator, join_texts

QWEN_MARK = "language "
"""How a mark of Qwen3-ASR begins."""
MAX_MARK_LENGTH = 60
"""No mark is longer; what has not ended by then is text."""
MAX_EVENT_BYTES = 64 << 20
"""Longest event that is read: the last one may have all segments of a day in it."""


async def decode_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of server-sent events, however the stream was cut up. `[DONE]` is `{}`.

    Raises:
        ValueError: an event is no JSON object, or longer than any.
    """
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        if len(buffer) > MAX_EVENT_BYTES:
            raise ValueError(f"an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        *lines, rest = bytes(buffer).split(b"\n") if b"\n" in chunk else (bytes(buffer),)
        if lines:
            buffer = bytearray(rest)
        for line in lines:
            if line.startswith(b"data:"):
                yield _parse_event(line.removeprefix(b"data:").strip())


def _parse_event(data: bytes) -> dict[str, Any]:
    if data == b"[DONE]":
        return {}
    event = bounded_json.parse_upstream_json(data)
    if not isinstance(event, dict):
        raise ValueError("an event that is no object")
    return event


@dataclass(slots=True)
class StreamedTranscript:
    """The transcript so far."""

    text: str = ""
    is_done: bool = False
    """The end of the stream has arrived."""
    language: str = ""
    """The language the text was marked with."""
    _last: UpstreamTranscript | None = None
    """The last event, for the fields besides the text."""
    _parts: list[UpstreamTranscript] = field(default_factory=list)
    """Segments that came one by one, each as an answer of its own."""
    _undecided: str | None = ""
    """The beginning, as long as it may be a mark; None once it is known."""

    def add_event(self, event: dict[str, Any]) -> str:
        """Take in the next event and return the text it adds.

        Raises:
            ValueError: it cannot be read.
        """
        kind = event.get("type") or event.get("object")
        if not event or kind == "transcript.text.done":
            self.is_done = True
            self._last = UpstreamTranscript.model_validate({"text": "", **event}) if event else self._last
            return ""
        if kind == "transcription.chunk":
            deltas = (choice.get("delta") or {} for choice in event.get("choices") or ())
            return self._add_text("".join(str(delta.get("content") or "") for delta in deltas))
        if kind == "transcript.text.delta" or "delta" in event:
            return self._add_text(str(event.get("delta") or ""))
        if kind == "transcript.text.segment":
            self._parts.append(UpstreamTranscript.model_validate({"segments": [event]}))
        elif not kind and ("text" in event or "segments" in event):  # faster-whisper-server's: every segment is an answer
            self._parts.append(UpstreamTranscript.model_validate(event))
            return self._add_part(self._parts[-1])
        return ""

    def finish(self) -> str:
        """The text that the end adds: the text held back, and any that only the last event has.

        A stream of parts has no final event.
        """
        self.is_done = self.is_done or bool(self._parts)
        rest = self._add_text("", last=True)
        final_text = clean_text(self._last.text)[0] if self._last else ""
        if final_text.startswith(self.text) and len(final_text) > len(self.text):
            rest += final_text[len(self.text) :]
            self.text = final_text
        return rest

    def build_transcript(self) -> UpstreamTranscript:
        """The whole, as if it had come at once."""
        said, parts = self._last or UpstreamTranscript.model_validate({"text": ""}), self._parts
        language = said.language or self.language or next((part.language for part in parts if part.language), "")
        whole: dict[str, Any] = {"text": self.text or said.text, "language": language}
        if not said.segments and parts:
            segments = [segment for part in parts for segment in part.segments or ()]
            words = [word for part in parts for word in part.words or ()]
            whole |= {"segments": segments, "words": words, "duration": said.duration or max(part.duration for part in parts)}
        return said.model_copy(update=whole)

    def _add_part(self, part: UpstreamTranscript) -> str:
        text = part.text.strip() or join_texts(segment.text for segment in part.segments or ())
        return self._add_text(choose_separator(self.text, text) + text)

    def _add_text(self, text: str, *, last: bool = False) -> str:
        if self._undecided is not None:
            text = self._undecided + text
            self._undecided = None if last or not _may_be_mark(text) else text
            if self._undecided is not None:
                return ""
            if marked := QWEN_PREFIX.match(text):
                text, self.language = text[marked.end() :], find_language_code(marked["language"].strip())
        if not self.text:
            text = text.lstrip()
        self.text += text
        return text


def _may_be_mark(text: str) -> bool:
    text = text.lstrip()
    if QWEN_PREFIX.match(text) or len(text) > MAX_MARK_LENGTH:
        return False
    return QWEN_MARK.startswith(text[: len(QWEN_MARK)])
