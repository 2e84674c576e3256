"""The commands and events of a live session, and their encoding between gateway and runner.

A session is one stream of audio. It consists of utterances, numbered from 1: the speech between two pauses, or between two
commits. All times are seconds of audio since the session began, not wall-clock time.

The gateway sends framed messages to the runner, and gets a line of JSON back for each event.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Self

from msgspec import Struct, field
from msgspec.structs import replace

from eardrum.errors import EardrumError, InvalidRequestError, error_from_json
from eardrum.transcription import SAMPLE_RATE, JsonRecord, Priority, Segment, TranscriptionRequest, Word


class AudioEncoding(StrEnum):
    """How the audio of a session is encoded."""

    PCM16 = "s16le"
    PCM32F = "f32le"
    MULAW = "mulaw"
    ALAW = "alaw"
    CONTAINER = "container"
    """Anything that FFmpeg opens as a stream (webm, ogg, mp3 ...). It contains its own sample rate."""


SAMPLE_BYTES = {AudioEncoding.PCM16: 2, AudioEncoding.PCM32F: 4, AudioEncoding.MULAW: 1, AudioEncoding.ALAW: 1}


class AudioFormat(JsonRecord, Struct, frozen=True):
    """The format of the audio bytes. Rate in Hz and channels (mixed down to one) are ignored for a container."""

    encoding: AudioEncoding = AudioEncoding.PCM16
    rate: int = SAMPLE_RATE
    channels: int = 1
    audio_track: int | None = None
    """The audio track of a container, counted from 1; None: its default track."""

    @property
    def frame_bytes(self) -> int:
        """Bytes per frame, a sample of every channel; 1 for a container, which may end anywhere."""
        return 1 if self.encoding is AudioEncoding.CONTAINER else SAMPLE_BYTES[self.encoding] * self.channels


MIN_RATE, MAX_RATE = 1_000, 384_000
"""Sample rates of audio without a container, in Hz."""

MAX_CHANNELS = 64


def check_format(form: AudioFormat) -> None:
    """See that audio of this format can be read.

    Raises:
        InvalidRequestError: rate, channels or track out of range.
    """
    if form.encoding is AudioEncoding.CONTAINER:
        return
    if not MIN_RATE <= form.rate <= MAX_RATE:
        raise InvalidRequestError(
            f"A sample rate of {form.rate} Hz is not supported: send audio of {MIN_RATE} to {MAX_RATE} Hz.", param="rate"
        )
    if (form.audio_track or 1) > 1:
        raise InvalidRequestError(
            f"Audio without a container has one audio track: audio_track cannot be {form.audio_track}.", param="audio_track"
        )
    if not 1 <= form.channels <= MAX_CHANNELS:
        raise InvalidRequestError(f"{form.channels} channels are not supported: send 1 to {MAX_CHANNELS}.", param="channels")


class EndpointingSettings(JsonRecord, Struct, frozen=True):
    """Settings by which utterances begin and end automatically."""

    threshold: float = 0.5
    """Speech probability above which a frame counts as speech, in 0..1."""
    prefix_s: float = 0.3
    """Audio before the speech that is added to the utterance."""
    silence_s: float = 0.5
    """A pause of this length ends the utterance."""
    idle_s: float | None = None
    """Silence this long after an utterance is reported as `SpeechIdle`, once."""


class SessionSettings(JsonRecord, Struct, frozen=True):
    """The settings of a session. They can be changed while it runs; the format only before the first audio."""

    request: TranscriptionRequest = field(default_factory=lambda: TranscriptionRequest(priority=Priority.LIVE))
    format: AudioFormat = field(default_factory=AudioFormat)
    endpointing: EndpointingSettings | None = field(default_factory=EndpointingSettings)
    """None: only `CommitCommand` and `FinishCommand` end an utterance."""
    partials: bool = True
    """Whether partial transcripts are sent during the speech."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The settings from `to_json`'s dict."""
        settings = super().from_json(data)
        return replace(settings, request=replace(settings.request, priority=Priority.LIVE))


# Commands to a session; audio is sent separately.


class ConfigureCommand(JsonRecord, Struct, frozen=True):
    """Change the settings for the following audio. An utterance in progress keeps its settings."""

    settings: SessionSettings


class CommitCommand(JsonRecord, Struct, frozen=True):
    """End the utterance here, and transcribe it."""


class ClearCommand(JsonRecord, Struct, frozen=True):
    """Discard the audio of the utterance in progress."""


class FinishCommand(JsonRecord, Struct, frozen=True):
    """End the audio: transcribe the utterance, and end the session."""


LiveCommand = ConfigureCommand | CommitCommand | ClearCommand | FinishCommand


# Events of a session.


class SpeechStarted(JsonRecord, Struct, frozen=True):
    """Speech began at `at`, including the prefix. Only with endpointing."""

    utterance: int
    at: float


class PartialTranscript(JsonRecord, Struct, frozen=True):
    """The text so far of an utterance in progress.

    `stable` never changes: every later `stable`, and the final text, begins with it. `tentative` follows it and may
    change. The text is both joined, without a space in between.
    """

    utterance: int
    stable: str
    tentative: str
    start: float
    end: float
    """The end of the audio that was transcribed."""
    words: tuple[Word, ...] = ()
    """Words of the stable text, if `request.words` is set and the model provides them."""


class SpeechStopped(JsonRecord, Struct, frozen=True):
    """Speech ended at `at`. Only with endpointing; `UtteranceCommitted` follows."""

    utterance: int
    at: float


class UtteranceCommitted(JsonRecord, Struct, frozen=True):
    """The utterance has ended. One `FinalTranscript` or `UtteranceFailed` follows, in the order of utterances."""

    utterance: int
    start: float
    end: float


class FinalTranscript(JsonRecord, Struct, frozen=True):
    """The text of a whole utterance; empty if it holds no speech."""

    utterance: int
    start: float
    end: float
    text: str
    segments: tuple[Segment, ...] = ()
    language: str = ""
    speaker: str = ""
    """The name of the speaker, if the session labels speakers. The gateway adds it."""


class UtteranceFailed(JsonRecord, Struct, frozen=True):
    """The model failed on the utterance, which gets no text. The session continues."""

    utterance: int
    error: EardrumError


class UtteranceCleared(JsonRecord, Struct, frozen=True):
    """The answer to `ClearCommand`. `utterance` is the discarded one, 0 if there was none."""

    utterance: int = 0


class CommandRefused(JsonRecord, Struct, frozen=True):
    """A command was refused (an empty commit, a change of the format after audio). The session continues unchanged."""

    error: EardrumError


class SpeechIdle(JsonRecord, Struct, frozen=True):
    """No speech for `EndpointingSettings.idle_s`, up to `at`."""

    at: float


class SessionEnded(JsonRecord, Struct, frozen=True):
    """The answer to `FinishCommand`, after all texts: the session has ended."""

    duration: float
    """Seconds of audio."""
    language: str = ""
    decode_s: float = 0.0
    """Time the engine spent on this session, partials included."""
    partials: int = 0
    """Decodes for partial transcripts, and those that were skipped for lack of time."""
    skipped: int = 0
    warnings: tuple[str, ...] = ()
    """Descriptions of the audio that could not be decoded."""


class SessionPaused(JsonRecord, Struct, frozen=True):
    """No audio arrived for `after_s` seconds: the model may be unloaded until audio arrives again. Sent by the gateway."""

    after_s: float


LiveEvent = (
    SpeechStarted
    | PartialTranscript
    | SpeechStopped
    | UtteranceCommitted
    | FinalTranscript
    | UtteranceFailed
    | UtteranceCleared
    | CommandRefused
    | SpeechIdle
    | SessionEnded
    | SessionPaused
)


# Encoding between gateway and runner.

EVENT_TYPES: dict[str, Any] = {
    "speech_started": SpeechStarted,
    "partial": PartialTranscript,
    "speech_stopped": SpeechStopped,
    "committed": UtteranceCommitted,
    "final": FinalTranscript,
    "failed": UtteranceFailed,
    "cleared": UtteranceCleared,
    "refused": CommandRefused,
    "idle": SpeechIdle,
    "ended": SessionEnded,
    "rested": SessionPaused,
}
EVENT_NAMES = {kind: name for name, kind in EVENT_TYPES.items()}
COMMAND_TYPES: dict[str, Any] = {
    "configure": ConfigureCommand,
    "commit": CommitCommand,
    "clear": ClearCommand,
    "finish": FinishCommand,
}
COMMAND_NAMES = {kind: name for name, kind in COMMAND_TYPES.items()}


def encode_event(event: LiveEvent) -> bytes:
    """Encode an event: a line of JSON with one key."""
    return json.dumps({EVENT_NAMES[type(event)]: event.to_json()}).encode() + b"\n"


def decode_event(line: bytes | str) -> LiveEvent:
    """Decode an event from its line.

    Raises:
        EardrumError: the line is `{"error": ...}`: the session has failed.
    """
    ((kind, data),) = json.loads(line).items()
    if kind == "error":
        raise error_from_json(data)
    event: LiveEvent = EVENT_TYPES[kind].from_json(data)
    return event


MESSAGE_HEADER = struct.Struct(">cI")
"""Before each message to the runner: its kind, and its length in bytes."""
AUDIO_KIND, COMMAND_KIND = b"a", b"c"
MAX_MESSAGE_BYTES = 16 << 20
"""Longest message in bytes."""


def encode_audio(audio: bytes) -> bytes:
    """Encode audio as a framed message."""
    return MESSAGE_HEADER.pack(AUDIO_KIND, len(audio)) + audio


def encode_command(command: LiveCommand) -> bytes:
    """Encode a command as a framed message."""
    body = json.dumps({COMMAND_NAMES[type(command)]: command.to_json()}).encode()
    return MESSAGE_HEADER.pack(COMMAND_KIND, len(body)) + body


class MessageDecoder:
    """Decodes a stream of messages, however it was cut up: audio as bytes, or commands."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | LiveCommand]:
        """Yield the messages that `data` completes.

        Raises:
            InvalidRequestError: the stream is not valid.
        """
        self._buffer += data
        while len(self._buffer) >= MESSAGE_HEADER.size:
            kind, size = MESSAGE_HEADER.unpack_from(self._buffer)
            if kind not in (AUDIO_KIND, COMMAND_KIND) or size > MAX_MESSAGE_BYTES:
                raise InvalidRequestError("The data is not a message of a live session.")
            if len(self._buffer) < MESSAGE_HEADER.size + size:
                return
            body = bytes(self._buffer[MESSAGE_HEADER.size : MESSAGE_HEADER.size + size])
            del self._buffer[: MESSAGE_HEADER.size + size]
            yield body if kind == AUDIO_KIND else _decode_command(body)


def _decode_command(body: bytes) -> LiveCommand:
    try:
        ((name, data),) = json.loads(body).items()
        if name == "configure":
            return ConfigureCommand(SessionSettings.from_json(data["settings"]))
        command: LiveCommand = COMMAND_TYPES[name]()
        return command
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequestError(f"The data is not a command of a live session: {error}") from error
