"""One utterance of a live session: its windows, their results and its stable text.

The stable text follows LocalAgreement (Liu, Spanakis, Niehues 2020; for Whisper: Machacek et al. 2023): words on which two
hypotheses in a row agree are stable. Where later hypotheses and the final text have other words in place of stable ones, the
stable words stay; what follows them is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from eardrum.engines.base import EngineResult, Window
from eardrum.errors import EardrumError
from eardrum.live import FinalTranscript, PartialTranscript, UtteranceCommitted, UtteranceFailed
from eardrum.runner.postprocessing import place_segment, remove_hallucinations
from eardrum.text import append_text, count_counterparts, join_texts, normalize_word, remove_known_text, split_units
from eardrum.transcription import Segment, TranscriptionRequest, Word

MIN_HYPOTHESIS_GAP_S = 2.0
"""Audio between two hypotheses that count as two: a hypothesis of a moment later repeats the same mistakes."""

UNSTABLE_WORDS = 1
"""Words at the end of a hypothesis that may have been cut in two."""


class LocalAgreement:
    """The hypotheses on one window, oldest first."""

    def __init__(self) -> None:
        self.stable = ""
        self.tentative = ""
        self._hypotheses: list[tuple[float, list[str]]] = []  # time, and the words after the stable ones

    def add_hypothesis(self, text: str, at: float) -> None:
        """Take a hypothesis on the window up to second `at`."""
        rest = split_units(remove_known_text(self.stable, text))
        agreed = min(self._count_agreed(rest, at), max(len(rest) - UNSTABLE_WORDS, 0))
        self.stable = append_text(self.stable, "".join(rest[:agreed]))
        self._hypotheses = [(when, units[agreed:]) for when, units in self._hypotheses] + [(at, rest[agreed:])]
        self.tentative = append_text(self.stable, "".join(rest[agreed:]))[len(self.stable) :]

    def _count_agreed(self, rest: list[str], at: float) -> int:
        """The words that all hypotheses had, from a moment far enough back until now."""
        count = len(rest)
        for number in range(len(self._hypotheses) - 1, -1, -1):
            when, units = self._hypotheses[number]
            count = _count_alike(rest[:count], units[: len(units) - UNSTABLE_WORDS])
            if at - when >= MIN_HYPOTHESIS_GAP_S:
                self._hypotheses = self._hypotheses[number:]
                return count
        return 0


def _count_alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words both begin with, to the letter."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a.strip() != b.strip():
            break
        count += 1
    return count


@dataclass(slots=True, eq=False)
class UtteranceWindow:
    """A finished window of an utterance."""

    stable: str
    """The part of its text that was announced as stable before it was final."""
    segments: list[Segment] | None = None
    error: EardrumError | None = None

    @property
    def is_done(self) -> bool:
        """Whether it was decoded, or the model has failed on it."""
        return self.segments is not None or self.error is not None

    @property
    def text(self) -> str:
        """The text of the window."""
        return join_texts(segment.text for segment in self.segments or ())


@dataclass(slots=True, eq=False)
class Utterance:
    """The speech between two endpoints, in windows; the last one may still be open."""

    number: int
    request: TranscriptionRequest
    start: float
    announced: bool
    """Whether `SpeechStarted` was sent."""
    windows: list[UtteranceWindow] = field(default_factory=list)
    window_s: float = 0.0
    """Seconds of its finished windows."""
    open_window: LocalAgreement = field(default_factory=LocalAgreement)
    """The agreement of the partials of the window that is still open."""
    words: list[Word] = field(default_factory=list)
    """Of the open window's last hypothesis, on the session's clock."""
    stable_until: float | None = None
    """Where the last stable word of the open window ends, if that is known."""
    committed: UtteranceCommitted | None = None
    language: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether all is known that its end needs."""
        return self.committed is not None and all(part.is_done for part in self.windows)

    def close_window(self, seconds: float) -> UtteranceWindow:
        """The open window is finished, and so long."""
        part = UtteranceWindow(self.open_window.stable)
        self.windows.append(part)
        self.window_s += seconds
        self.open_window, self.words, self.stable_until = LocalAgreement(), [], None
        return part

    def add_hypothesis(self, segments: list[Segment], at: float, told_to: float | None = None) -> None:
        """Take a hypothesis on the open window up to second `at`: on all of it, or on what follows the words up to `told_to`."""
        words = [word for segment in segments for word in segment.words]
        text = join_texts(segment.text for segment in segments)
        if told_to is not None:
            known = [word for word in self.words if word.end <= told_to]
            words = known + [word for word in words if (word.start + word.end) / 2 > told_to]
            text = join_texts(word.word for word in words)
        self.open_window.add_hypothesis(text, at)
        self.words = words
        self.stable_until = self._find_stable_end(text)

    def _find_stable_end(self, text: str) -> float | None:
        """Where the stable words end, if the engine returned times for every word of the text."""
        if not self.open_window.stable or [unit.strip() for unit in split_units(text)] != [
            word.word.strip() for word in self.words
        ]:
            return None
        return self.words[len(split_units(self.open_window.stable)) - 1].end if text.startswith(self.open_window.stable) else None

    def build_partial(self, end: float) -> PartialTranscript:
        """The text so far. All finished windows must have been decoded."""
        before = join_texts(part.text for part in self.windows)
        stable = append_text(before, self.open_window.stable)
        tentative = append_text(stable, self.open_window.tentative)[len(stable) :]
        words = [word for part in self.windows for segment in part.segments or () for word in segment.words]
        words += select_words(self.open_window.stable, self.words)
        return PartialTranscript(self.number, stable, tentative, self.start, end, tuple(words))

    def build_result(self) -> FinalTranscript | UtteranceFailed:
        """Its text, or why there is none."""
        assert self.committed is not None
        for part in self.windows:
            if part.error:
                return UtteranceFailed(self.number, part.error)
        text = join_texts(part.text for part in self.windows)
        segments = tuple(segment for part in self.windows for segment in part.segments or ())
        return FinalTranscript(self.number, self.committed.start, self.committed.end, text, segments, self.language)


def build_segments(window: Window, result: EngineResult) -> list[Segment]:
    """Return the window's segments with times of the session. Those without speech are left out."""
    segments = [segment for relative in result.segments for segment in place_segment(relative, window)]
    for segment in segments:
        segment.no_speech_prob = segment.no_speech_prob or 1 - window.speech
    kept = [remove_hallucinations(segment, window.speech).segment for segment in segments if segment.text.strip()]
    return [segment for segment in kept if segment]


def select_words(text: str, words: list[Word]) -> list[Word]:
    """Return the words that make up a text, which is the beginning of what they spell."""
    left = len(normalize_word(text))
    found = []
    for word in words:
        left -= len(normalize_word(word.word))
        if left < 0:
            break
        found.append(word)
    return found


def keep_stable_text(stable: str, segments: list[Segment], window: Window) -> list[Segment]:
    """The segments such that their text begins with what is stable: its words replace others of the final result."""
    text = join_texts(segment.text for segment in segments)
    if text.startswith(stable):
        return segments
    if not segments:
        begin, end = window.speech_span
        return [Segment(window.clock(begin), window.clock(end, ending=True), stable)]
    units = [(unit, number) for number, segment in enumerate(segments) for unit in split_units(segment.text.strip())]
    promised = split_units(stable)
    count = count_counterparts(promised, [unit for unit, _ in units])
    owners = [units[max(min(at, count - 1), 0)][1] for at in range(len(promised))]
    fixed = []
    for number, segment in enumerate(segments):
        mine = [unit for unit, owner in zip(promised, owners, strict=True) if owner == number]
        rest = [unit for unit, owner in units[count:] if owner == number]
        changed = append_text("".join(mine), "".join(rest)).strip()
        if changed:
            fixed.append(replace(segment, text=changed, words=_replace_words(segment.words, split_units(changed))))
    return fixed


def _replace_words(words: list[Word], units: list[str]) -> list[Word]:
    """Word times for a text that differs from the one they belong to: counted from the end, where both are the same."""
    if not words:
        return []
    late = [words[max(len(words) - len(units) + at, 0)] for at in range(len(units))]
    return [replace(word, word=unit) for word, unit in zip(late, units, strict=True)]
