"""Decodes Wyoming's frames and encodes its events. Pure, and bounded whatever lengths a frame claims.

A frame is a line of JSON (`type`, perhaps `data`), then `data_length` bytes of JSON that extend the line's `data`, then
`payload_length` bytes. Source: the `wyoming` package, 1.7 to 1.10. PCM of any width becomes 16 bits with byte operations
only: the gateway has no decoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from eardrum import bounded_json
from eardrum.api.json_body import check_surrogates
from eardrum.errors import InvalidRequestError
from eardrum.languages import parse_language
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
"""Most bytes of a line, and of the JSON behind it: the names of everything in a house fit in."""
MAX_PAYLOAD_BYTES = 1 << 30
"""Longest payload. It is not held but passed on as it comes; more is no length anybody means."""


@dataclass(frozen=True, slots=True)
class WyomingEvent:
    """One event, or a piece of one: a long payload makes several with the same type and data."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""
    more: bool = False
    """Whether more of the payload is to come."""


class FrameDecoder:
    """Takes bytes as they come and gives the events in them."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: FrameHead | None = None

    @property
    def is_midway(self) -> bool:
        """Whether a frame has begun and is not whole."""
        return bool(self._buffer) or self._head is not None

    def feed(self, data: bytes) -> Iterator[WyomingEvent]:
        """The events, or pieces of them, that `data` completes.

        Raises:
            InvalidRequestError: these are no frames, or one is longer than allowed. Nothing after it can be read.
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
            raise InvalidRequestError(f"A line of more than {MAX_LINE_BYTES} bytes is no Wyoming event.")
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
    """The first part of a frame, and what is still to come of it."""

    def __init__(self, line: bytes):
        parsed = _parse_object(line)
        kind = parsed.get("type")
        if not isinstance(kind, str):
            raise InvalidRequestError("A Wyoming event has a `type`, which is a text.")
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
        raise InvalidRequestError("What came is no Wyoming event, which begins with a line of JSON.") from None
    check_surrogates(text, parsed)
    return _as_object(parsed)


def _as_object(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError("A Wyoming event and its `data` are JSON objects.")
    return value


def _read_length(parsed: dict[str, Any], name: str, most: int) -> int:
    length = parsed.get(name)
    if length is None:
        return 0
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= most:
        raise InvalidRequestError(f"The `{name}` of a Wyoming event is a number from 0 to {most}.")
    return length


def encode_event(event: WyomingEvent) -> bytes:
    """The event as a frame, its data behind the line as the `wyoming` package writes it."""
    data = json.dumps(event.data, ensure_ascii=False).encode() if event.data else b""
    lengths = {"data_length": len(data), "payload_length": len(event.payload)}
    head: dict[str, Any] = {"type": event.type} | {name: length for name, length in lengths.items() if length}
    return b"".join((json.dumps(head).encode(), b"\n", data, event.payload))


@dataclass(frozen=True, slots=True)
class TranscribeRequest:
    """The wishes for the utterance that follows; without the event there are none."""

    name: str = ""
    """Of a model."""
    language: str | None = None
    prompt: str = ""
    hotwords: tuple[str, ...] = ()
    """Names and terms of a house, in the order of their weight."""

    @classmethod
    def of(cls, data: dict[str, Any]) -> TranscribeRequest:
        """What the event's data says; what is not known is passed over, as other servers do.

        Raises:
            InvalidRequestError: a field is not of its kind, or the language is none.
        """
        context = data.get("context") or {}
        return cls(
            name=_read_text(data, "name").strip(),
            language=parse_language(_read_text(data, "language")),
            prompt=_read_prompt(context) if isinstance(context, dict) else "",
            hotwords=(*_read_texts(data, "transcript_names"), *_read_texts(data, "transcript_terms")),
        )

    @property
    def request(self) -> TranscriptionRequest:
        """The wishes in the words of the house."""
        return TranscriptionRequest(language=self.language, prompt=self.prompt, hotwords=self.hotwords, priority=Priority.LIVE)


def _read_text(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequestError(f"`{name}` of a transcribe event is a text, not {value!r:.40}.", param=name)
    return value


def _read_texts(data: dict[str, Any], name: str) -> tuple[str, ...]:
    values = data.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InvalidRequestError(f"`{name}` of a transcribe event is a list of texts.", param=name)
    return tuple(value.strip() for value in values if value.strip())


def _read_prompt(context: dict[str, Any]) -> str:
    """`context` is free; these are the words that other servers read in it."""
    found = (context.get(name) for name in ("initial_prompt", "prompt"))
    return next((text for text in found if isinstance(text, str) and text), "")


SAMPLE_RATES = range(1_000, 384_001)
WIDTHS = range(1, 5)
CHANNELS = range(1, 33)

SIGNED_BYTES = bytes(byte ^ 0x80 for byte in range(256))
"""8-bit samples are unsigned, all others signed."""


@dataclass(frozen=True, slots=True)
class SampleFormat:
    """What the samples are: rate in Hz, bytes per sample, channels."""

    rate: int = SAMPLE_RATE
    width: int = 2
    channels: int = 1

    @classmethod
    def of(cls, data: dict[str, Any], otherwise: SampleFormat) -> SampleFormat:
        """What an event says of its audio; what it does not say is as in `otherwise`.

        Raises:
            InvalidRequestError: no audio is like that.
        """
        return cls(
            _read_number(data, "rate", SAMPLE_RATES, otherwise.rate),
            _read_number(data, "width", WIDTHS, otherwise.width),
            _read_number(data, "channels", CHANNELS, otherwise.channels),
        )

    @property
    def live_format(self) -> AudioFormat:
        """What `Samples` makes of it."""
        return AudioFormat(AudioEncoding.PCM16, self.rate, self.channels)


class SampleConverter:
    """Turns bytes of one shape into 16-bit samples. What is no whole sample of every channel waits for its rest."""

    def __init__(self, shape: SampleFormat):
        self._width = shape.width
        self._frame = shape.width * shape.channels
        self._rest = b""

    def feed(self, audio: bytes) -> bytes:
        """The 16-bit samples that are whole now."""
        if self._rest:
            audio = self._rest + audio
        whole = len(audio) - len(audio) % self._frame
        self._rest = audio[whole:]
        return _convert_to_16_bits(audio[:whole], self._width)


def _convert_to_16_bits(audio: bytes, width: int) -> bytes:
    """Little-endian samples, of which the upper 16 bits stay."""
    if width == 2:
        return audio
    samples = bytearray(len(audio) // width * 2)
    if width == 1:
        samples[1::2] = audio.translate(SIGNED_BYTES)
    else:
        samples[0::2] = audio[width - 2 :: width]
        samples[1::2] = audio[width - 1 :: width]
    return bytes(samples)


def _read_number(data: dict[str, Any], name: str, allowed: range, otherwise: int) -> int:
    value = data.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise InvalidRequestError(f"The `{name}` of audio is a number from {allowed[0]} to {allowed[-1]}, not {value!r:.40}.")
    return value


class TranscriptEncoder:
    """The answer to one utterance of the client, which may be several of the session's: endless speech is cut.

    With `streaming` the text goes out in chunks as soon as it is never taken back. Joined, they are the transcript.
    """

    def __init__(self, language: str | None = None, *, streaming: bool = True):
        self._language = language or ""
        self._streaming = streaming
        self._started = False
        self._whole = ""
        """The text of the session's finished utterances."""
        self._sent_chars = 0
        """Characters that went out in chunks."""

    def feed(self, event: LiveEvent) -> list[WyomingEvent]:
        """What the client is told because of this.

        Raises:
            EardrumError: the utterance has no text, and why.
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
        """The transcript; the streamed one ends behind it, because those who do not stream read no further."""
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
