"""Reads transcripts that come in pieces: OpenAI's `transcript.text.delta`, and the chunks of vLLM."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from eardrum.remote.answers import QWEN, Answer, code_of

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
    event = json.loads(data)
    if not isinstance(event, dict):
        raise ValueError("an event that is no object")
    return event


@dataclass(slots=True)
class Streamed:
    """What was heard so far."""

    text: str = ""
    done: bool = False
    """The stream has said that it is over."""
    answer: Answer | None = None
    """What its last event told besides."""
    language: str = ""
    """The language the text was marked with."""
    _held: str | None = ""
    """The beginning, as long as it may be a mark; None once it is known."""

    def take(self, event: dict[str, Any]) -> str:
        """Take in the next event and return the text it adds.

        Raises:
            ValueError: it is of no known kind.
        """
        kind = event.get("type") or event.get("object")
        if not event or kind == "transcript.text.done":
            self.done = True
            self.answer = Answer.model_validate(event) if event else self.answer
            return self._add("", last=True)
        if kind == "transcript.text.delta":
            return self._add(str(event.get("delta") or ""))
        if kind == "transcription.chunk":
            return self._add("".join(str(choice["delta"].get("content") or "") for choice in event.get("choices") or ()))
        return ""

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
