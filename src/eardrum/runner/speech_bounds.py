"""Keeps the times of segments and words within the speech that the voice activity detector found.

A Whisper tells times by its attention, which puts the first word after a pause up to a second too early and lets a cue begin
where the one before it ended, however long the pause between them. Pure.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eardrum.engines.base import Window
from eardrum.runner.vad import FRAME, Probabilities
from eardrum.types import SAMPLE_RATE, Segment, Word

MARGIN_S = 0.1
"""The detector may be so late at a beginning and so early at an end: quiet consonants are no speech to it."""

PAUSE_S = 0.3
"""Stretches closer together than this are one: nothing is gained by cutting a word at a stop consonant."""

TOUCH_S = 0.2
"""An interval that reaches less than this into a stretch, and further into another one, does not belong to it."""

Stretches = tuple[tuple[float, float], ...]
"""Where somebody speaks: (begin, end) in seconds of a window, in order."""


def find_stretches(probs: Probabilities, threshold: float, low: float) -> tuple[tuple[int, int], ...]:
    """Samples at which speech begins and ends, by the probabilities of frames.

    Speech begins with a probability of `threshold` and goes on down to `low`; stretches less than `PAUSE_S` apart are joined.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], probs >= low, [0]]).astype(np.int8))).reshape(-1, 2)
    found: list[tuple[int, int]] = []
    for first, last in edges:
        if probs[first:last].max() < threshold:
            continue
        begin, end = int(first) * FRAME, int(last) * FRAME
        if found and begin - found[-1][1] < PAUSE_S * SAMPLE_RATE:
            begin = found.pop()[0]
        found.append((begin, end))
    return tuple(found)


def clamp_to_speech(segment: Segment, window: Window) -> Segment:
    """The segment with its times, words included, moved out of the silence around its speech.

    A word keeps to the one stretch that it overlaps most: nobody pauses in the middle of a word. Times that touch no speech at
    all are left as they are.
    """
    if not window.speech_stretches:
        return segment
    words = [_clamp_word(word, window.speech_stretches) for word in segment.words]
    start, end = _clamp(segment.start, segment.end, window.speech_stretches)
    if words:
        start, end = max(start, words[0].start), min(end, words[-1].end)
    return replace(segment, start=start, end=max(end, start), words=words)


def _clamp_word(word: Word, stretches: Stretches) -> Word:
    stretch = max(stretches, key=lambda stretch: _overlap(word.start, word.end, stretch))
    if _overlap(word.start, word.end, stretch) <= 0:
        return word
    return replace(word, start=max(word.start, stretch[0] - MARGIN_S), end=min(word.end, stretch[1] + MARGIN_S))


def _clamp(start: float, end: float, stretches: Stretches) -> tuple[float, float]:
    overlaps = [(_overlap(start, end, stretch), stretch) for stretch in stretches]
    least = min(TOUCH_S, max(overlap for overlap, _ in overlaps))
    inside = [stretch for overlap, stretch in overlaps if overlap >= least > 0]
    if not inside:
        return start, end
    return max(start, inside[0][0] - MARGIN_S), min(end, inside[-1][1] + MARGIN_S)


def _overlap(start: float, end: float, stretch: tuple[float, float]) -> float:
    return min(end, stretch[1] + MARGIN_S) - max(start, stretch[0] - MARGIN_S)
