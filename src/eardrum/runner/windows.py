"""Cuts a stream into windows: stretches of speech, ended at pauses, never longer than the engine allows.

A pure state machine: samples and speech probabilities go in, cut-out stretches come out, and nothing is
kept but the window in the making.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from eardrum.engines.base import Audio
from eardrum.runner.speech_bounds import find_stretches
from eardrum.runner.vad import FRAME, Probabilities
from eardrum.types import SAMPLE_RATE, Capabilities

FRAMES_PER_SECOND = SAMPLE_RATE / FRAME


@dataclass(frozen=True, slots=True)
class Cutting:
    """Where to cut. The defaults were chosen on phone recordings, joined and one by one."""

    max_s: float
    """Longest window."""
    threshold: float = 0.4
    """A frame at least this probable starts speech."""
    hysteresis: float = 0.15
    """Speech goes on until the probability falls this far below the threshold."""
    silence_s: float = 0.8
    """A pause this long ends a window."""
    padding_s: float = 0.35
    """Audio kept before the first and after the last speech of a window."""
    search: float = 0.5
    """Share of a full window, at its end, that is searched for the best pause."""
    pack: bool = False
    """Fill windows with as much speech as they hold, leaving out the pauses: for engines to which all windows cost the same."""

    @classmethod
    def of(cls, capabilities: Capabilities) -> Cutting:
        """The rule that suits a model. What is packed keeps pauses of up to two seconds, and that much of longer ones: with less
        between them, what is said in one stretch is mixed up with what is said in the next."""
        if capabilities.fixed_window:
            return cls(max_s=capabilities.max_window_s, pack=True, silence_s=2.0, padding_s=1.0)
        return cls(max_s=capabilities.max_window_s)


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut-out stretch of `audio` [n]; `speech` is its highest probability, from sample `speech_start` to `speech_end`."""

    audio: Audio
    pieces: tuple[tuple[int, int], ...]
    """Where it comes from: (sample of `audio`, sample of the stream) of each piece; more than one if it was packed."""
    speech: float
    speech_start: int
    speech_end: int
    stretches: tuple[tuple[int, int], ...] = ()
    """Samples of `audio` at which somebody begins and ends to speak, in order."""

    @property
    def start(self) -> int:
        """Sample of the stream at which it begins."""
        return self.pieces[0][1]

    @property
    def end(self) -> int:
        """Sample of the stream behind it."""
        at, sample = self.pieces[-1]
        return sample + len(self.audio) - at


class Cutter:
    """Turns one recording into cuts. Feed whole frames; then finish once."""

    def __init__(self, cutting: Cutting):
        self._rule = cutting
        self._max = int(cutting.max_s * FRAMES_PER_SECOND)
        self._padding = round(cutting.padding_s * FRAMES_PER_SECOND)
        self._silence = max(round(cutting.silence_s * FRAMES_PER_SECOND), 1)
        self._low = max(cutting.threshold - cutting.hysteresis, 0.01)
        self._samples = np.empty(0, np.float32)
        self._probs = np.empty(0, np.float32)
        self._base = 0  # frame of the stream at which the buffer begins
        self._next = 0  # first frame of the buffer not yet looked at
        self._first: int | None = None  # first and last speech frame of the window in the making
        self._last = 0

    def feed(self, samples: Audio, probs: Probabilities) -> Iterator[Cut]:
        """Take the next frames and yield the windows they complete."""
        self._samples = np.concatenate([self._samples, samples])
        self._probs = np.concatenate([self._probs, probs])
        while self._next < len(self._probs):
            self._look(self._next)
            self._next += 1
            if self._first is None:
                continue
            if self._next - self._last > self._silence:
                yield self._take(min(self._last + 1 + self._padding, self._next))
            elif self._next - self._lead() >= self._max:
                yield self._take(self._best_pause())
        self._forget_silence()

    def finish(self) -> Iterator[Cut]:
        """Yield what is left at the end of the stream."""
        if self._first is not None:
            yield self._take(self._last + 1 + self._padding)

    def _look(self, frame: int) -> None:
        prob = self._probs[frame]
        speaking = self._first is not None and self._last == frame - 1
        if prob >= (self._low if speaking else self._rule.threshold):
            self._first = frame if self._first is None else self._first
            self._last = frame

    def _lead(self) -> int:
        assert self._first is not None
        return max(self._first - self._padding, 0)

    def _best_pause(self) -> int:
        begin = self._lead() + int(self._max * (1 - self._rule.search))
        return begin + best_pause(self._probs[begin : self._next], self._low)

    def _take(self, end: int) -> Cut:
        """Cut the window at frame `end` of the buffer; what follows stays for the next one."""
        assert self._first is not None
        begin, end = self._lead(), min(end, len(self._probs))
        cut = Cut(
            audio=self._samples[begin * FRAME : end * FRAME].copy(),
            pieces=((0, (self._base + begin) * FRAME),),
            speech=float(self._probs[self._first : end].max()),
            speech_start=(self._first - begin) * FRAME,
            speech_end=(min(self._last + 1, end) - begin) * FRAME,
            stretches=find_stretches(self._probs[begin:end], self._rule.threshold, self._low),
        )
        self._drop(end)
        return cut

    def _drop(self, frames: int) -> None:
        """Forget the first `frames` of the buffer and look again at those that follow."""
        self._samples = self._samples[frames * FRAME :]
        self._probs = self._probs[frames:]
        self._base += frames
        self._next = 0
        self._first = None

    def _forget_silence(self) -> None:
        """Between windows only the padding of the next one is worth keeping."""
        if self._first is None and self._next > self._padding:
            self._drop(self._next - self._padding)
            self._next = min(self._padding, len(self._probs))


def best_pause(probs: Probabilities, low: float) -> int:
    """The frame where cutting hurts least: the middle of the longest run of quiet, else where speech is least likely."""
    quiet = np.flatnonzero(np.diff(np.concatenate([[0], probs < low, [0]]).astype(np.int8)))
    if len(quiet):
        runs = quiet.reshape(-1, 2)
        start, stop = runs[np.argmax(runs[:, 1] - runs[:, 0])]
        return int((start + stop + 1) // 2)
    smooth = np.convolve(probs, np.ones(5) / 5, mode="same")
    return int(np.argmin(smooth[2:-2]) + 2)


PIECES = 2
"""Pieces that a packed window has room for at least: smaller ones fill it better, larger ones are cut at better pauses."""


class Packer:
    """Cuts like a `Cutter`, and puts consecutive cuts together as long as they fit into one window."""

    def __init__(self, cutting: Cutting):
        self._max = int(cutting.max_s * SAMPLE_RATE)
        self._cutter = Cutter(replace(cutting, max_s=cutting.max_s / PIECES))
        self._cuts: list[Cut] = []

    def feed(self, samples: Audio, probs: Probabilities) -> Iterator[Cut]:
        """Take the next frames and yield the windows they complete."""
        for cut in self._cutter.feed(samples, probs):
            yield from self._add(cut)

    def finish(self) -> Iterator[Cut]:
        """Yield what is left at the end of the stream."""
        for cut in self._cutter.finish():
            yield from self._add(cut)
        if self._cuts:
            yield _packed(self._cuts)

    def _add(self, cut: Cut) -> Iterator[Cut]:
        if self._cuts and sum(len(c.audio) for c in self._cuts) + len(cut.audio) > self._max:
            yield _packed(self._cuts)
            self._cuts = []
        self._cuts.append(cut)


def _packed(cuts: list[Cut]) -> Cut:
    ends = list(itertools.accumulate(len(cut.audio) for cut in cuts))
    offsets = [0, *ends[:-1]]
    return Cut(
        audio=np.concatenate([cut.audio for cut in cuts]),
        pieces=tuple((offset, cut.start) for offset, cut in zip(offsets, cuts, strict=True)),
        speech=max(cut.speech for cut in cuts),
        speech_start=cuts[0].speech_start,
        speech_end=offsets[-1] + cuts[-1].speech_end,
        stretches=tuple(
            (offset + begin, offset + end) for offset, cut in zip(offsets, cuts, strict=True) for begin, end in cut.stretches
        ),
    )
