"""The data types of speaker diarization that gateway and runner share.

They are plain data that converts itself to JSON, because it crosses the process boundary. A voice print is a vector that
describes a voice: it is kept in memory as long as its request lasts, and is written nowhere.
"""

from __future__ import annotations

from msgspec import Struct, field

from eardrum.transcription import JsonRecord, Priority


class SpeakerRequest(JsonRecord, Struct, frozen=True):
    """The parameters of a diarization: the recording's format, and the speakers in it as far as they are known."""

    raw_pcm: bool = False
    audio_track: int | None = None
    priority: Priority = Priority.INTERACTIVE
    min_speakers: int | None = None
    max_speakers: int | None = None
    known_voices: tuple[VoicePrint, ...] = ()
    """Voices of known speakers."""


class VoicePrint(JsonRecord, Struct, frozen=True):
    """The voice of one speaker."""

    values: tuple[float, ...]
    """A vector of length 1; empty if there was no speech."""
    speech_s: float = 0.0
    """Seconds of speech that it was computed from."""

    def __repr__(self) -> str:
        return f"VoicePrint(speech_s={self.speech_s})"

    def compare(self, other: VoicePrint) -> float:
        """Return the cosine of the angle between two voices: 1 for the same one."""
        return sum(one * two for one, two in zip(self.values, other.values, strict=True))


class SpeakerTurn(JsonRecord, Struct, frozen=True):
    """A stretch of speech of one speaker, in seconds. Pauses belong to no turn."""

    start: float
    end: float
    speaker: int
    """The speaker's number in the recording, in order of appearance from 0."""


class SpeakerTurns(JsonRecord, Struct, frozen=True):
    """The turns of all speakers in a recording."""

    turns: tuple[SpeakerTurn, ...] = ()
    known: dict[int, int] = field(default_factory=dict)
    """The index in `known_voices` of the speakers that were recognised, by number."""
