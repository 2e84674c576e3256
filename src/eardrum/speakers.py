"""The data types of speaker diarization that gateway and runner share.

They are plain data that converts itself to JSON, because it crosses the process boundary. A voice print is a vector that
describes a voice: it is kept in memory as long as its request lasts, and is written nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from eardrum.transcription import JsonRecord, Priority


@dataclass(frozen=True, slots=True)
class SpeakerRequest(JsonRecord):
    """The parameters of a diarization: the recording's format, and the speakers in it as far as they are known."""

    raw_pcm: bool = False
    audio_track: int | None = None
    priority: Priority = Priority.INTERACTIVE
    min_speakers: int | None = None
    max_speakers: int | None = None
    known_voices: tuple[VoicePrint, ...] = ()
    """Voices of known speakers."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The request from `to_json`'s dict."""
        known = tuple(VoicePrint.from_json(voice) for voice in data.get("known_voices", ()))
        priority = Priority(data.get("priority", Priority.INTERACTIVE))
        return cls(**{**cls._select_known(data), "known_voices": known, "priority": priority})


@dataclass(frozen=True, slots=True)
class VoicePrint(JsonRecord):
    """The voice of one speaker."""

    values: tuple[float, ...] = field(repr=False)
    """A vector of length 1; empty if there was no speech."""
    speech_s: float = 0.0
    """Seconds of speech that it was computed from."""

    def compare(self, other: VoicePrint) -> float:
        """Return the cosine of the angle between two voices: 1 for the same one."""
        return sum(one * two for one, two in zip(self.values, other.values, strict=True))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The voice from `to_json`'s dict."""
        return cls(tuple(map(float, data["values"])), float(data["speech_s"]))


@dataclass(frozen=True, slots=True)
class SpeakerTurn(JsonRecord):
    """A stretch of speech of one speaker, in seconds. Pauses belong to no turn."""

    start: float
    end: float
    speaker: int
    """The speaker's number in the recording, in order of appearance from 0."""


@dataclass(frozen=True, slots=True)
class SpeakerTurns(JsonRecord):
    """The turns of all speakers in a recording."""

    turns: tuple[SpeakerTurn, ...] = ()
    known: dict[int, int] = field(default_factory=dict)
    """The index in `known_voices` of the speakers that were recognised, by number."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The turns from `to_json`'s dict; JSON has no numbers as keys."""
        known = {int(number): int(index) for number, index in data["known"].items()}
        return cls(tuple(SpeakerTurn.from_json(turn) for turn in data["turns"]), known)
