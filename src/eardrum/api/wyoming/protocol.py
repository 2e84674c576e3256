"""Decodes Wyoming's frames and encodes its events. Pure, and bounded for any lengths that a frame states.

A frame is a line of JSON (`type`, perhaps `data`), then `data_length` bytes of JSON that extend the line's `data`, then
`payload_length` bytes. Source: the `wyoming` package, 1.7 to 1.10. PCM of any width becomes 16 bits with byte operations
only: the gateway has no decoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Struct, field
from pydantic import Field

from eardrum import bounded_json
from eardrum.api.fields import MAX_PROMPT, WHOLE, Between, Language, ListOf, RequestModel, Text
from eardrum.api.request_body import check_surrogates
from eardrum.errors import InvalidRequestError
from eardrum.live import (
    AudioEncoding,
    AudioFormat,
    CommandRefused,
    FinalTranscript,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    UtteranceFailed,
)
from eardrum.text import choose_separator
from eardrum.transcription import SAMPLE_RATE, Priority, TranscriptionRequest

MAX_LINE_BYTES = MAX_DATA_BYTES = 1 << 20
"""The longest line, and the longest JSON block after it, in bytes; enough for the names of every entity in a house."""
MAX_PAYLOAD_BYTES = 1 << 30
"""The longest payload. It is passed on as it arrives, not buffered; a larger length is a mistake."""


class WyomingEvent(Struct, frozen=True):
    """An event, or a part of one: a long payload arrives as several with the same type and data."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""
    more: bool = False
    """Whether the payload continues in the next event."""


class FrameDecoder:
    """Decodes a byte stream into events."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: FrameHead | None = None

    @property
    def is_midway(self) -> bool:
        """Whether a frame is incomplete."""
        return bool(self._buffer) or self._head is not None

    def feed(self, data: bytes) -> Iterator[WyomingEvent]:
        """Yield the events, or parts of them, that `data` completes.

        Raises:
            InvalidRequestError: a frame is invalid or too long. The rest of the stream is unreadable.
        """
        self._buffer += data
        while event := self._next_event():
            yield event

    def _next_event(self) -> WyomingEvent | None:
        if not self._head:
            line = self._take_line()
            if line is None:
                return None
            self._head = FrameHead(line)
        if self._head.data_left:
            if len(self._buffer) < self._head.data_left:
                return None
            self._head.add(self._take_bytes(self._head.data_left))
        return self._take_event(self._head)

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", 0, MAX_LINE_BYTES + 1)
        if end < 0 and len(self._buffer) > MAX_LINE_BYTES:
            raise InvalidRequestError(f"The first line of a Wyoming event is longer than {MAX_LINE_BYTES} bytes.")
        return self._take_bytes(end + 1) if end >= 0 else None

    def _take_event(self, head: FrameHead) -> WyomingEvent | None:
        if head.payload_left and not self._buffer:
            return None
        piece = self._take_bytes(min(head.payload_left, len(self._buffer)))
        head.payload_left -= len(piece)
        if not head.payload_left:
            self._head = None
        return WyomingEvent(head.type, head.data, piece, more=head.payload_left > 0)

    def _take_bytes(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


class FrameHead:
    """The header line of a frame, and the lengths of the parts that are still missing."""

    def __init__(self, line: bytes):
        parsed = _parse_object(line)
        kind = parsed.get("type")
        if not isinstance(kind, str):
            raise InvalidRequestError("A Wyoming event needs a `type`, which must be a string.")
        self.type = kind
        self.data = _as_object(parsed.get("data"))
        self.data_left = _read_length(parsed, "data_length", MAX_DATA_BYTES)
        self.payload_left = _read_length(parsed, "payload_length", MAX_PAYLOAD_BYTES)

    def add(self, block: bytes) -> None:
        self.data = {**self.data, **_parse_object(block)}
        self.data_left = 0


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        parsed = bounded_json.parse_json(text)
    except ValueError:
        raise InvalidRequestError("This is not a Wyoming event: an event begins with a line of JSON.") from None
    check_surrogates(text, parsed)
    return _as_object(parsed)


def _as_object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError("A Wyoming event and its `data` must be JSON objects.")
    return value


def _read_length(parsed: dict[str, Any], name: str, maximum: int) -> int:
    length = parsed.get(name)
    if length is None:
        return 0
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= maximum:
        raise InvalidRequestError(f"The `{name}` of a Wyoming event must be a number from 0 to {maximum}.")
    return length


def encode_event(event: WyomingEvent) -> bytes:
    """Encode an event as a frame, with its data after the line as the `wyoming` package writes it."""
    data = json.dumps(event.data, ensure_ascii=False).encode() if event.data else b""
    lengths = {"data_length": len(data), "payload_length": len(event.payload)}
    head: dict[str, Any] = {"type": event.type} | {name: length for name, length in lengths.items() if length}
    return b"".join((json.dumps(head).encode(), b"\n", data, event.payload))


class TranscribeRequest(RequestModel):
    """The parameters of the next utterance, from a `transcribe` event. Unknown fields are ignored, as by other servers."""

    name: Text = ""
    """The model's name."""
    language: Language = None
    context: Any = None
    """An object of an open format; other servers read two prompts in it."""
    transcript_names: ListOf[str] = ()
    """Names in a home, the most important first."""
    transcript_terms: ListOf[str] = ()

    @property
    def request(self) -> TranscriptionRequest:
        """The parameters as a transcription request."""
        context = self.context if isinstance(self.context, dict) else {}
        prompts = [text for text in map(context.get, ("initial_prompt", "prompt")) if isinstance(text, str) and text]
        return TranscriptionRequest(
            language=self.language,
            prompt=prompts[0][:MAX_PROMPT] if prompts else "",
            hotwords=self.transcript_names + self.transcript_terms,
            priority=Priority.LIVE,
        )


SIGNED_BYTES = bytes(byte ^ 0x80 for byte in range(256))
"""8-bit samples are unsigned, all others signed."""


class SampleFormat(RequestModel):
    """Rate in Hz, bytes per sample and channels of PCM audio, as in an audio event."""

    rate: Annotated[int, Field(strict=True), Between(1_000, 384_000, WHOLE)] = SAMPLE_RATE
    width: Annotated[int, Field(strict=True), Between(1, 4, WHOLE)] = 2
    channels: Annotated[int, Field(strict=True), Between(1, 32, WHOLE)] = 1

    def __str__(self) -> str:
        return f"{self.rate} Hz, {8 * self.width} bit, {self.channels} channel{'' if self.channels == 1 else 's'}"

    def update(self, data: dict[str, Any]) -> SampleFormat:
        """Return the format after an audio event. Fields that are missing or null stay.

        Raises:
            InvalidRequestError: a field is not a number within its range.
        """
        return self.model_copy(update=SampleFormat.parse({k: v for k, v in data.items() if v is not None}).changes)

    @property
    def live_format(self) -> AudioFormat:
        """The format of a `SampleConverter`'s output."""
        return AudioFormat(AudioEncoding.PCM16, self.rate, self.channels)


class SampleConverter:
    """Converts PCM of one format into 16-bit samples. Buffers an incomplete frame, a sample of every channel."""

    def __init__(self, format: SampleFormat):
        self._width = format.width
        self._frame = format.width * format.channels
        self._rest = b""

    def feed(self, audio: bytes) -> bytes:
        """Return the 16-bit samples that `audio` completes."""
        if self._rest:
            audio = self._rest + audio
        whole = len(audio) - len(audio) % self._frame
        self._rest = audio[whole:]
        return _convert_to_16_bits(audio[:whole], self._width)


def _convert_to_16_bits(audio: bytes, width: int) -> bytes:
    """Convert little-endian samples; keeps the upper 16 bits."""
    if width == 2:
        return audio
    samples = bytearray(len(audio) // width * 2)
    if width == 1:
        samples[1::2] = audio.translate(SIGNED_BYTES)
    else:
        samples[0::2] = audio[width - 2 :: width]
        samples[1::2] = audio[width - 1 :: width]
    return bytes(samples)


class TranscriptEncoder:
    """Encodes the response to one utterance of the client, which the session may split: it cuts long speech.

    With `streaming`, text is sent in chunks as soon as it is final. Joined, the chunks are the transcript.
    """

    def __init__(self, language: str | None = None, *, streaming: bool = True):
        self._language = language or ""
        self._streaming = streaming
        self._started = False
        self._whole = ""
        """The text of the session's finished utterances."""
        self._sent_chars = 0
        """The number of characters sent in chunks."""

    def feed(self, event: LiveEvent) -> list[WyomingEvent]:
        """Return the Wyoming events for an event of the session.

        Raises:
            EardrumError: the transcription failed.
        """
        match event:
            case PartialTranscript(stable=stable):
                return self._encode_chunk(self._append_text(stable)) if stable else []
            case FinalTranscript(text=text, language=language):
                self._language = language or self._language
                self._whole = self._append_text(text)
                return self._encode_chunk(self._whole) if text else []
            case SessionEnded(language=language):
                self._language = language or self._language
                return self.end()
            case UtteranceFailed(error=error) | CommandRefused(error=error):
                raise error
        return []

    def end(self) -> list[WyomingEvent]:
        """Return the final events. The transcript precedes `transcript-stop`: clients that do not stream read no further."""
        spoken = {"language": self._language} if self._language else {}
        transcript = WyomingEvent("transcript", {"text": self._whole, **spoken})
        return [*self._encode_start(), transcript, WyomingEvent("transcript-stop")] if self._streaming else [transcript]

    def _append_text(self, text: str) -> str:
        return self._whole + choose_separator(self._whole, text) + text

    def _encode_chunk(self, text: str) -> list[WyomingEvent]:
        new, self._sent_chars = text[self._sent_chars :], len(text)
        return [*self._encode_start(), WyomingEvent("transcript-chunk", {"text": new})] if new and self._streaming else []

    def _encode_start(self) -> list[WyomingEvent]:
        if self._started:
            return []
        self._started = True
        return [WyomingEvent("transcript-start", {"language": self._language} if self._language else {})]


PROGRAM_NAME = "eardrum"
"""Home Assistant derives the entity's name from it and stores that name."""


def describe_artifact(name: str, description: str, maker: str, version: str | None = None) -> dict[str, Any]:
    """Describe a program, model or voice as Wyoming's info does."""
    return {
        "name": name,
        "attribution": {"name": maker, "url": ""},
        "installed": True,
        "description": description,
        "version": version,
    }
