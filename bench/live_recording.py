"""Recordings for live sessions: phone announcements one after another, of which it is known when each word was said."""

from __future__ import annotations

import csv
import io
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from typing import cast

import numpy as np

from bench.recordings import PAUSE_S, PHONE, Samples, decode_file
from eardrum.transcription import SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word of the reference, and the seconds at which it begins and ends."""

    word: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class SpokenAnnouncement:
    """One recording of a few seconds, with the pause behind it."""

    samples: Samples
    text: str
    words: Sequence[SpokenWord]

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class AnnouncementRecording:
    """Announcements one after another."""

    parts: Sequence[SpokenAnnouncement]

    @property
    def seconds(self) -> float:
        """Its length."""
        return sum(part.seconds for part in self.parts)

    @property
    def text(self) -> str:
        """What is said."""
        return " ".join(part.text for part in self.parts)

    @property
    def pcm(self) -> bytes:
        """The samples as s16le."""
        return b"".join((part.samples * 32767).astype("<i2").tobytes() for part in self.parts)

    @property
    def wav(self) -> bytes:
        """The same as a file."""
        file = io.BytesIO()
        with wave.open(file, "wb") as writing:
            writing.setnchannels(1)
            writing.setsampwidth(2)
            writing.setframerate(SAMPLE_RATE)
            writing.writeframes(self.pcm)
        return file.getvalue()

    @property
    def words(self) -> list[SpokenWord]:
        """What is said, word for word."""
        said, at = [], 0.0
        for part in self.parts:
            said += [SpokenWord(word.word, at + word.start, at + word.end) for word in part.words]
            at += part.seconds
        return said


@cache
def load_announcements() -> list[SpokenAnnouncement]:
    """All of them, in the order of their names."""
    pause = np.zeros(int(PAUSE_S * SAMPLE_RATE), np.float32)
    words: dict[str, list[SpokenWord]] = {}
    for row in _read_rows("words.tsv"):
        words.setdefault(row["name"], []).append(SpokenWord(row["word"], float(row["start"]), float(row["end"])))
    found = []
    for row in _read_rows("references.tsv"):
        samples = cast(Samples, np.concatenate([decode_file(PHONE / f"{row['name']}.flac"), pause]))
        found.append(SpokenAnnouncement(samples, row["text"], words[row["name"]]))
    return found


def build_recording(seconds: float, *, skip: int = 0) -> AnnouncementRecording:
    """Announcements for at least so many seconds; the first few may be skipped, so that no two sessions say the same at once."""
    endless = cycle(load_announcements())
    for _ in range(skip):
        next(endless)
    return AnnouncementRecording(list(_fill_seconds(endless, seconds)))


@dataclass(frozen=True, slots=True)
class FramedRecording:
    """A recording with the same announcements near its beginning and its end, and before both the same one: so that what is left
    to decode when they begin is the same too."""

    recording: AnnouncementRecording
    frame_s: float
    begins: tuple[float, float]


def build_framed(seconds: float, frame_s: float) -> FramedRecording:
    """Of at least so many seconds, of which about `frame_s` come twice."""
    endless = cycle(load_announcements())
    frame = list(_fill_seconds(endless, frame_s))
    length, before = sum(part.seconds for part in frame), frame[-1]
    opening = [before, *frame]
    middle = list(_fill_seconds(endless, seconds - 2 * (length + before.seconds) - frame[0].seconds))
    whole = AnnouncementRecording([*opening, *middle, *opening, frame[0]])
    return FramedRecording(whole, length, (before.seconds, whole.seconds - frame[0].seconds - length))


def _fill_seconds(endless: Iterator[SpokenAnnouncement], seconds: float) -> Iterator[SpokenAnnouncement]:
    while seconds > 0:
        part = next(endless)
        seconds -= part.seconds
        yield part


def _read_rows(table: str) -> list[dict[str, str]]:
    with (PHONE / table).open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))
