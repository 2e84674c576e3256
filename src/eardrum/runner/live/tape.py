"""The last stretch of a stream, with its speech probabilities."""

from __future__ import annotations

import numpy as np

from eardrum.engines.base import Audio
from eardrum.runner.vad import FRAME, Probabilities

ROOM = 256
"""Frames that a tape has room for at first."""


class Tape:
    """Samples and speech probabilities from one frame of the stream to its end. Frames are counted from the beginning."""

    def __init__(self) -> None:
        self._samples = np.empty(ROOM * FRAME, np.float32)
        self._probs = np.empty(ROOM, np.float32)
        self._from = 0  # where in the arrays the tape begins
        self.begin = 0
        self.end = 0
        """The frame behind the last one."""

    def append(self, samples: Audio, probs: Probabilities) -> None:
        """Add frames at the end."""
        self._make_room(len(probs))
        at = self._from + self.end - self.begin
        self._probs[at : at + len(probs)] = probs
        self._samples[at * FRAME : (at + len(probs)) * FRAME] = samples
        self.end += len(probs)

    def forget(self, frame: int) -> None:
        """Give up what lies before a frame."""
        if frame > self.begin:
            self._from += frame - self.begin
            self.begin = frame

    def prob(self, frame: int) -> float:
        """The speech probability of a frame."""
        return float(self._probs[self._from + frame - self.begin])

    def probs(self, begin: int, end: int) -> Probabilities:
        """Those of the frames from `begin` up to `end`."""
        return self._probs[self._from + begin - self.begin : self._from + end - self.begin]

    def samples(self, begin: int, end: int) -> Audio:
        """A copy of the samples of these frames."""
        at = self._from - self.begin
        return self._samples[(at + begin) * FRAME : (at + end) * FRAME].copy()

    def _make_room(self, frames: int) -> None:
        held = self.end - self.begin
        if self._from + held + frames <= len(self._probs):
            return
        size = max(2 * (held + frames), ROOM)
        probs, samples = np.empty(size, np.float32), np.empty(size * FRAME, np.float32)
        probs[:held] = self.probs(self.begin, self.end)
        samples[: held * FRAME] = self._samples[self._from * FRAME : (self._from + held) * FRAME]
        self._probs, self._samples, self._from = probs, samples, 0
