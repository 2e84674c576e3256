"""Dialogues for tests: turns of several voices one after another, and how wrong an answer about them is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from eardrum.speakers import SpeakerTurn
from tests.recordings import RATE, Samples, create_silence

COLLAR_S, STEP_S = 0.25, 0.01
"""Around each change nothing counts; the rest is compared in steps."""
PAUSE_S = 0.5
QUIET = 0.02
"""Share of a recording's loudest sample that is no speech."""


@dataclass(frozen=True)
class Dialogue:
    """A recording, and who speaks when in it."""

    samples: Samples
    turns: tuple[SpeakerTurn, ...]

    @property
    def speakers(self) -> int:
        return len({turn.speaker for turn in self.turns})


def build_dialogue(turns: Iterable[tuple[int, Samples]], *, gap_s: float = 0.4) -> Dialogue:
    """Speech of (speaker, samples) one after another. Nobody speaks in the silence around each, and in pauses inside."""
    pieces: list[Samples] = []
    told: list[SpeakerTurn] = []
    at = 0
    for speaker, samples in turns:
        spans = find_speech(samples)
        first, last = spans[0][0], spans[-1][1]
        told += [SpeakerTurn((at + begin - first) / RATE, (at + end - first) / RATE, speaker) for begin, end in spans]
        pieces += [samples[first:last], create_silence(gap_s)]
        at += last - first + int(gap_s * RATE)
    return Dialogue(np.concatenate(pieces), tuple(told))


def find_speech(samples: Samples) -> list[tuple[int, int]]:
    """Samples where speech begins and ends: what is loud enough, without pauses of `PAUSE_S`."""
    loud = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
    edges = np.flatnonzero(np.diff(loud) > PAUSE_S * RATE)
    starts, ends = loud[[0, *(edges + 1)]], loud[[*edges, -1]] + 1
    return [(max(int(start) - RATE // 50, 0), int(end) + RATE // 50) for start, end in zip(starts, ends, strict=True)]


def measure_error(found: Sequence[SpeakerTurn], dialogue: Dialogue) -> float:
    """The diarization error rate: missed, invented and mistaken speech, of all speech, with the best pairing of speakers."""
    steps = int(len(dialogue.samples) / RATE / STEP_S)
    true, said = rasterize(dialogue.turns, steps), rasterize(found, steps)
    counts = np.ones(steps, bool)
    for turn in dialogue.turns:
        for edge in (turn.start, turn.end):
            counts[max(int((edge - COLLAR_S) / STEP_S), 0) : int((edge + COLLAR_S) / STEP_S)] = False
    true, said = true[counts], said[counts]
    speakers, labels = np.unique(true[true >= 0]), np.unique(said[said >= 0])
    overlap = np.array([[np.sum((true == one) & (said == other)) for other in labels] for one in speakers]).reshape(
        len(speakers), len(labels)
    )
    spoken = np.sum(true >= 0)
    return float((spoken - pair_best(overlap) + np.sum((true < 0) & (said >= 0))) / spoken)


def pair_best(overlap: np.ndarray) -> int:
    """The most that a pairing of rows with columns, one to one, can have in common."""
    if overlap.shape[0] > overlap.shape[1]:
        overlap = overlap.T
    if not overlap.size:
        return 0
    if overlap.shape[1] > 7:  # too many orders: the largest first
        total, rest = 0, overlap.copy()
        for _ in range(len(rest)):
            row, column = np.unravel_index(np.argmax(rest), rest.shape)
            total += max(rest[row, column], 0)
            rest[row, :] = rest[:, column] = -1
        return int(total)
    rows = range(len(overlap))
    return max(
        int(sum(overlap[row, column] for row, column in zip(rows, order, strict=True)))
        for order in itertools.permutations(range(overlap.shape[1]), len(overlap))
    )


def rasterize(turns: Iterable[SpeakerTurn], steps: int) -> np.ndarray:
    """The speaker of each step, -1 for nobody."""
    line = np.full(steps, -1)
    for turn in turns:
        line[round(turn.start / STEP_S) : round(turn.end / STEP_S)] = turn.speaker
    return line
