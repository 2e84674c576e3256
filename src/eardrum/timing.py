"""Times of words, made such that each word has some."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eardrum.types import Word

LEAST_S = 0.02
"""Alignments move in steps of this; a word that takes less was given no time of its own."""
GIVEN_S = 0.04
"""What such a word gets: from the silence beside it, else from its neighbours, which keep as much."""


def lengthened(words: Sequence[Word], begin: float, end: float) -> list[Word]:
    """The words with time for each: those without are spread over what their neighbours leave between `begin` and `end`."""
    if all(word.end - word.start >= LEAST_S for word in words):
        return list(words)
    begin, end = min(begin, words[0].start), max(end, words[-1].end)
    needs = [GIVEN_S if word.end - word.start < LEAST_S else min(word.end - word.start, GIVEN_S) for word in words]
    scale = min(1.0, (end - begin) / sum(needs))
    needs = [need * scale for need in needs]
    times = [(word.start, word.end) for word in words]
    at = begin
    for number, word in enumerate(words):  # forwards: from the silence before, from that behind, from the next word
        start, stop = max(word.start, at), max(word.end, at)
        if stop - start < needs[number]:
            then = words[number + 1].start if number + 1 < len(words) else end
            start = max(at, min(start, max(stop, then) - needs[number]))
            stop = start + needs[number]
        times[number] = (start, stop)
        at = stop
    at = end
    for number in range(len(words) - 1, -1, -1):  # backwards: what was pushed over the end
        stop = min(times[number][1], at)
        at = min(times[number][0], stop - needs[number])
        times[number] = (at, stop)
    return [replace(word, start=max(start, begin), end=stop) for word, (start, stop) in zip(words, times, strict=True)]
