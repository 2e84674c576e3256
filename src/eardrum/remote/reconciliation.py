"""Puts the text that stands beside segments into them, so that no word of it is lost where they have less. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from eardrum.text import joined
from eardrum.types import Segment

OPENING = "\"'“‘«„¿¡([{（「『《"  # noqa: RUF001 -- they are meant
"""Marks that belong to what follows them."""


@dataclass(frozen=True, slots=True)
class Bare:
    """A text without case, spaces and punctuation, and where in the text each of its letters is."""

    letters: str
    places: Sequence[int]

    @classmethod
    def of(cls, text: str) -> Bare:
        """Only the letters and digits."""
        found = [(low, place) for place, letter in enumerate(text) if letter.isalnum() for low in letter.casefold()]
        return cls("".join(letter for letter, _ in found), [place for _, place in found])


def with_whole_text(text: str, segments: Sequence[Segment], speech: tuple[float, float]) -> list[Segment]:
    """The segments, if all of the text is in them. Else the text cut where they begin, as far as they are found in it.

    What lies between two segments that are found goes to the first of them. `speech` is where the speech begins and ends, in
    seconds, for a text of which nothing is found.
    """
    if not segments:
        return [Segment(*speech, text=text)] if text else []
    if sum(_size(segment.text) for segment in segments) >= _size(text):
        return list(segments)
    whole = Bare.of(text)
    if len(Bare.of(joined(segment.text for segment in segments)).letters) >= len(whole.letters):
        return list(segments)
    found = _found(whole, segments)
    if not found:
        return [replace(_merged(segments), text=text)]
    cuts = [0, *(_cut(text, whole.places[begin]) for _, begin in found[1:]), len(text)]
    firsts = [0, *(number for number, _ in found[1:]), len(segments)]
    pieces = zip(pairwise(cuts), pairwise(firsts), strict=True)
    completed = [replace(_merged(segments[a:b]), text=text[begin:end].strip()) for (begin, end), (a, b) in pieces]
    _stretch(completed, segments, firsts, speech[1])
    return completed


def _size(text: str) -> int:
    """Characters but for spaces: soon counted, also those of a day."""
    return len("".join(text.split()))


def _found(whole: Bare, segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """The segments that are in the text, each by its number, with the place of its first letter there; in order."""
    found: list[tuple[int, int]] = []
    at = 0
    for number, segment in enumerate(segments):
        letters = Bare.of(segment.text).letters
        begin = whole.letters.find(letters, at) if letters else -1
        if begin >= 0:
            found.append((number, begin))
            at = begin + len(letters)
    return found


def _cut(text: str, place: int) -> int:
    """Where a piece begins whose first letter is there: at the marks that open it."""
    while place and text[place - 1] in OPENING:
        place -= 1
    return place


def _merged(segments: Sequence[Segment]) -> Segment:
    """One segment over the time of several, with the words of all."""
    first = segments[0]
    words = [word for segment in segments for word in segment.words]
    return replace(first, end=max(segment.end for segment in segments), words=words)


def _stretch(completed: list[Segment], segments: Sequence[Segment], firsts: Sequence[int], end: float) -> None:
    """Let a segment that has got more text last until the next one begins, or the speech ends."""
    for number, segment in enumerate(completed):
        before = joined(each.text for each in segments[firsts[number] : firsts[number + 1]])
        if len(Bare.of(segment.text).letters) > len(Bare.of(before).letters):
            segment.end = max(segment.end, completed[number + 1].start if number + 1 < len(completed) else end)
