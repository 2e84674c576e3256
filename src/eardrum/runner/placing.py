"""Puts what was heard in a window where it was said in the recording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from eardrum.engines.base import Window
from eardrum.runner.parts import tokens_between, word_places
from eardrum.text import units
from eardrum.timing import lengthened
from eardrum.types import Segment, Word

HEARD_S = 0.1
"""Less speech than this in a stretch is the edge of a sound that belongs to another."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Part of a window that is of one piece in the recording: seconds of the window, and the time of its beginning."""

    begin: float
    end: float
    time: float

    def overlap(self, begin: float, end: float) -> float:
        """Seconds that both have in common."""
        return max(0.0, min(end, self.end) - max(begin, self.begin))

    def at(self, position: float) -> float:
        """The time in the recording; of what lies outside, that of the nearer end."""
        return self.time + min(max(position, self.begin), self.end) - self.begin


def placed(segment: Segment, window: Window) -> list[Segment]:
    """A segment of a window, with the times of the recording.

    A pause that was cut out of the window is not inside of any segment: the segment ends, or begins, where the pause was cut
    out, on the side where it was said. One that was said on both sides becomes one for each.
    """
    if len(window.pieces) < 2:
        moved = segment.on(window.clock)
        moved.words = lengthened(moved.words, moved.start, moved.end)
        return [moved]
    stretches = _stretches(window)
    parts = _by_words(segment, stretches, window) if segment.words else None
    return [_moved(part, stretch) for part, stretch in parts or _by_speech(segment, stretches, window)]


def _stretches(window: Window) -> list[Stretch]:
    ends = [*(position for position, _ in window.pieces[1:]), max(window.seconds, window.pieces[-1][0])]
    return [Stretch(begin, end, time) for (begin, time), end in zip(window.pieces, ends, strict=True)]


def _moved(segment: Segment, stretch: Stretch) -> Segment:
    words = [replace(word, start=stretch.at(word.start), end=stretch.at(word.end)) for word in segment.words]
    start, end = stretch.at(segment.start), stretch.at(segment.end)
    return replace(segment, start=start, end=end, words=lengthened(words, start, end))


def _speech(window: Window, stretch: Stretch, begin: float, end: float) -> float:
    """Seconds of speech that both have in common."""
    begin, end = max(begin, stretch.begin), min(end, stretch.end)
    return sum(max(0.0, min(end, stop) - max(begin, start)) for start, stop in window.speech_stretches or ((begin, end),))


def _where(begin: float, end: float, stretches: Sequence[Stretch], window: Window) -> int:
    """The stretch in which something was said."""
    shares = [(_speech(window, stretch, begin, end), stretch.overlap(begin, end)) for stretch in stretches]
    if max(shares) > (0.0, 0.0):
        return shares.index(max(shares))
    return max((number for number, stretch in enumerate(stretches) if stretch.begin <= begin), default=0)


def _by_words(segment: Segment, stretches: Sequence[Stretch], window: Window) -> list[tuple[Segment, Stretch]] | None:
    """The segment by the stretches of its words; None if they are not those of its text."""
    where, last = [], 0
    for word in segment.words:
        last = max(last, _where(word.start, word.end, stretches, window))
        where.append(last)
    groups = [(number, len(list(group))) for number, group in groupby(where)]
    if len(groups) == 1:
        return [(segment, stretches[groups[0][0]])]
    cuts = word_places(segment.text, segment.words)
    if cuts is None:
        return None
    parts, first = [], 0
    for number, count in groups:
        words = segment.words[first : first + count]
        start = segment.start if first == 0 else words[0].start
        end = segment.end if first + count == len(segment.words) else words[-1].end
        text = (cuts[first], cuts[first + count])
        parts.append((_part(segment, *text, start, end, words), stretches[number]))
        first += count
    return parts


def _by_speech(segment: Segment, stretches: Sequence[Stretch], window: Window) -> list[tuple[Segment, Stretch]]:
    """The segment by where speech was noticed in it; its text is shared out by length."""
    shares = [_speech(window, stretch, segment.start, segment.end) for stretch in stretches]
    heard = [number for number, share in enumerate(shares) if share > HEARD_S]
    said = units(segment.text)
    if len(heard) < 2 or len(said) < len(heard):
        return [(replace(segment, words=[]), stretches[_where(segment.start, segment.end, stretches, window)])]
    ends = [0]
    done = 0.0
    for number in heard[:-1]:
        done += shares[number] / sum(shares[other] for other in heard)
        ends.append(_best_cut(said, done * len(segment.text), ends[-1] + 1, len(said) - (len(heard) - len(ends)) + 1))
    marks = [len("".join(said[:end])) for end in [*ends, len(said)]]
    return [
        (_part(segment, a, b, segment.start, segment.end, []), stretches[number])
        for number, (a, b) in zip(heard, pairwise(marks), strict=True)
    ]


def _best_cut(said: Sequence[str], letters: float, least: int, most: int) -> int:
    """How many units come before a cut near so many letters; the end of a sentence or clause is worth some distance."""
    best, found, length = float("inf"), least, len("".join(said[:least]))
    for count in range(least, most):
        mark = said[count - 1][-1]
        cost = abs(length - letters) - (20 if mark in ".!?。！？" else 8 if mark in ",;:，、" else 0)  # noqa: RUF001
        if cost < best:
            best, found = cost, count
        length += len(said[count])
    return found


def _part(segment: Segment, first: int, last: int, start: float, end: float, words: list[Word]) -> Segment:
    """The letters `first` to `last` of a segment, with what is known of them. Tokens are not known by letters: the first part
    keeps them."""
    return replace(
        segment,
        start=start,
        end=end,
        text=segment.text[first:last].strip(),
        words=words,
        tokens=segment.tokens if first == 0 else [],
        token_logprobs=tokens_between(segment, first, last),
    )
