"""Cuts a stream into windows: stretches of speech that end at pauses and are never longer than the engine allows.

The segmenter is a pure state machine: samples and speech probabilities go in, chunks of speech come out, and only the window in
progress is kept. `clamp_to_speech` keeps the times of segments and words within the detected speech: Whisper derives times from
attention, which puts the first word after a pause up to a second too early and lets a cue begin where the previous one ended.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from eardrum.engines.base import Audio, Window
from eardrum.runner.vad import FRAME_SAMPLES, SpeechProbabilities
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, Word

FRAMES_PER_SECOND = SAMPLE_RATE / FRAME_SAMPLES


class SegmenterConfig(Struct, frozen=True):
    """Where to cut. The defaults were chosen on phone recordings, joined and one by one."""

    max_s: float
    """Longest window."""
    threshold: float = 0.4
    """A frame at least this probable starts speech."""
    hysteresis: float = 0.15
    """Speech continues until the probability falls this far below the threshold."""
    silence_s: float = 0.8
    """A pause this long ends a window."""
    padding_s: float = 0.35
    """Audio kept before the first and after the last speech of a window."""
    search: float = 0.5
    """Share of a full window, at its end, that is searched for the best pause."""
    pack: bool = False
    """Fill windows with as much speech as they hold, leaving out the pauses: for engines to which all windows cost the same."""

    @classmethod
    def of(cls, capabilities: Capabilities) -> SegmenterConfig:
        """The rule that suits a model. What is packed keeps pauses of up to two seconds, and that much of longer ones: with less
        between them, the model mixes up the text of neighbouring stretches."""
        if capabilities.fixed_window:
            return cls(max_s=capabilities.max_window_s, pack=True, silence_s=2.0, padding_s=1.0, search=0.25)
        return cls(max_s=capabilities.max_window_s)


class SpeechChunk(Struct, frozen=True):
    """A cut-out stretch of `audio` [n]; `speech` is its highest probability, from sample `speech_start` to `speech_end`."""

    audio: Audio
    pieces: tuple[tuple[int, int], ...]
    """Where it comes from: (sample of `audio`, sample of the stream) of each piece; more than one if it was packed."""
    speech: float
    speech_start: int
    speech_end: int
    stretches: tuple[tuple[int, int], ...] = ()
    """Samples of `audio` at which speech begins and ends, in order."""

    @property
    def start(self) -> int:
        """Sample of the stream at which it begins."""
        return self.pieces[0][1]

    @property
    def end(self) -> int:
        """Sample of the stream behind it."""
        at, sample = self.pieces[-1]
        return sample + len(self.audio) - at


class SpeechSegmenter:
    """Turns one recording into cuts. Feed whole frames; then finish once."""

    def __init__(self, cutting: SegmenterConfig):
        self._config = cutting
        self._max = self._room = int(cutting.max_s * FRAMES_PER_SECOND)
        # `_room` is how long the window in the making may become.
        # No more than lies before the part of a full window in which it is cut: a cut is behind the first speech then.
        self._padding = min(round(cutting.padding_s * FRAMES_PER_SECOND), int(self._max * (1 - cutting.search)))
        self._silence = max(round(cutting.silence_s * FRAMES_PER_SECOND), 1)
        self._low = max(cutting.threshold - cutting.hysteresis, 0.01)
        self._samples = np.empty(0, np.float32)
        self._probs = np.empty(0, np.float32)
        self._base = 0  # frame of the stream at which the buffer begins
        self._next = 0  # first frame of the buffer not yet looked at
        self._first: int | None = None  # first and last speech frame of the window in the making
        self._last = 0

    def feed(self, samples: Audio, probs: SpeechProbabilities) -> Iterator[SpeechChunk]:
        """Take the next frames and yield the windows they complete."""
        self._samples = np.concatenate([self._samples, samples])
        self._probs = np.concatenate([self._probs, probs])
        while self._next < len(self._probs):
            self._examine_frame(self._next)
            self._next += 1
            if self._first is None:
                continue
            if self._next - self._last > self._silence:
                yield self._cut_chunk(min(self._last + 1 + self._padding, self._next))
            elif self._next - self._find_begin() >= self._room and (end := self._find_cut()) is not None:
                yield self._cut_chunk(end)
        self._drop_silence()

    def finish(self) -> Iterator[SpeechChunk]:
        """Yield what is left at the end of the stream."""
        if self._first is not None:
            yield self._cut_chunk(self._last + 1 + self._padding)

    def _examine_frame(self, frame: int) -> None:
        prob = self._probs[frame]
        speaking = self._first is not None and self._last == frame - 1
        if prob >= (self._low if speaking else self._config.threshold):
            self._first = frame if self._first is None else self._first
            self._last = frame

    def _find_begin(self) -> int:
        assert self._first is not None
        return max(self._first - self._padding, 0)

    def _find_cut(self) -> int | None:
        """The frame at which to cut the window that fills its room; None if it gets more room instead."""
        begin = self._find_begin() + int(self._max * (1 - self._config.search))
        return begin + find_best_pause(self._probs[begin : self._next], self._low)

    def _cut_chunk(self, end: int) -> SpeechChunk:
        """Cut the window at frame `end` of the buffer; what follows stays for the next one."""
        assert self._first is not None
        begin, end = self._find_begin(), min(end, len(self._probs))
        cut = SpeechChunk(
            audio=self._samples[begin * FRAME_SAMPLES : end * FRAME_SAMPLES].copy(),
            pieces=((0, (self._base + begin) * FRAME_SAMPLES),),
            speech=float(self._probs[self._first : end].max()),
            speech_start=(self._first - begin) * FRAME_SAMPLES,
            speech_end=(min(self._last + 1, end) - begin) * FRAME_SAMPLES,
            stretches=find_stretches(self._probs[begin:end], self._config.threshold, self._low),
        )
        self._drop_frames(end)
        return cut

    def _drop_frames(self, frames: int) -> None:
        """Forget the first `frames` of the buffer and look again at those that follow."""
        self._samples = self._samples[frames * FRAME_SAMPLES :]
        self._probs = self._probs[frames:]
        self._base += frames
        self._next = 0
        self._first = None

    def _drop_silence(self) -> None:
        """Between windows only the padding of the next one is worth keeping."""
        if self._first is None and self._next > self._padding:
            self._drop_frames(self._next - self._padding)
            self._next = min(self._padding, len(self._probs))


def find_best_pause(probs: SpeechProbabilities, low: float) -> int:
    """The frame where cutting hurts least: the middle of the longest run of quiet, else where speech is least likely."""
    pauses = _find_pauses(probs, low)
    if not len(pauses):
        return _find_least_likely(probs)
    start, stop = pauses[np.argmax(pauses[:, 1] - pauses[:, 0])]
    return int((start + stop + 1) // 2)


def find_late_pause(probs: SpeechProbabilities, low: float) -> int:
    """The frame where cutting hurts little: the middle of the last long pause, else where speech is least likely."""
    pauses = _find_pauses(probs, low)
    if not len(pauses):
        return len(probs) - 1 - _find_least_likely(probs[::-1])
    lengths = pauses[:, 1] - pauses[:, 0]
    enough = min(LONG_PAUSE_S * FRAMES_PER_SECOND, NEARLY_LONGEST * lengths.max())
    start, stop = pauses[np.flatnonzero(lengths >= enough)[-1]]
    return int((start + stop + 1) // 2)


def _find_pauses(probs: SpeechProbabilities, low: float) -> np.ndarray[tuple[int, int], np.dtype[np.intp]]:
    """Runs of quiet: (first frame, frame behind it) of each, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], probs < low, [0]]).astype(np.int8)))
    return edges.reshape(-1, 2)


def _find_least_likely(probs: SpeechProbabilities) -> int:
    smooth = np.convolve(probs, np.ones(5) / 5, mode="same")
    return int(np.argmin(smooth[2:-2]) + 2)


LONG_PAUSE_S, NEARLY_LONGEST = 0.6, 0.85
"""A pause this long is as good a place to cut as a longer one; where none is, those with this share of the longest are. Of
several, the last one fills the window best."""


class ChunkPacker(SpeechSegmenter):
    """Joins consecutive chunks to full windows, and cuts a chunk that does not fit where there is a pause late in the window.

    With little room left the window ends before the chunk instead: the pause there is longer than any inside of it.
    """

    def __init__(self, cutting: SegmenterConfig):
        super().__init__(cutting)
        self._search = int(self._max * cutting.search)
        self._chunks: list[SpeechChunk] = []
        self._full: list[SpeechChunk] = []

    def feed(self, samples: Audio, probs: SpeechProbabilities) -> Iterator[SpeechChunk]:
        """Take the next frames and yield the windows they complete."""
        for cut in super().feed(samples, probs):
            self._add_chunk(cut)
            yield from self._take_full()
        yield from self._take_full()

    def finish(self) -> Iterator[SpeechChunk]:
        """Yield what is left at the end of the stream."""
        for cut in super().finish():
            self._add_chunk(cut)
        self._close_window()
        yield from self._take_full()

    def _find_cut(self) -> int | None:
        assert self._first is not None
        if self._chunks and self._room < self._search + self._padding:
            self._close_window()
            return None
        begin = max(self._find_begin() + self._room - self._search, self._first + 1)
        return begin + find_late_pause(self._probs[begin : self._next], self._low)

    def _add_chunk(self, cut: SpeechChunk) -> None:
        self._chunks.append(cut)
        self._room -= len(cut.audio) // FRAME_SAMPLES
        if self._room <= 2 * self._padding:  # too little for anything between its paddings
            self._close_window()

    def _close_window(self) -> None:
        if self._chunks:
            self._full.append(_join_chunks(self._chunks))
        self._chunks, self._room = [], self._max

    def _take_full(self) -> list[SpeechChunk]:
        full, self._full = self._full, []
        return full


def _join_chunks(cuts: list[SpeechChunk]) -> SpeechChunk:
    ends = list(itertools.accumulate(len(cut.audio) for cut in cuts))
    offsets = [0, *ends[:-1]]
    return SpeechChunk(
        audio=np.concatenate([cut.audio for cut in cuts]),
        pieces=tuple((offset, cut.start) for offset, cut in zip(offsets, cuts, strict=True)),
        speech=max(cut.speech for cut in cuts),
        speech_start=cuts[0].speech_start,
        speech_end=offsets[-1] + cuts[-1].speech_end,
        stretches=tuple(
            (offset + begin, offset + end) for offset, cut in zip(offsets, cuts, strict=True) for begin, end in cut.stretches
        ),
    )


MARGIN_S = 0.1
"""The detector may be so late at a beginning and so early at an end: quiet consonants are no speech to it."""

MAX_JOINED_PAUSE_S = 0.3
"""Stretches closer together than this are one: nothing is gained by cutting a word at a stop consonant."""

MIN_OVERLAP_S = 0.2
"""An interval that reaches less than this into a stretch, and further into another one, does not belong to it."""

SpeechStretches = tuple[tuple[float, float], ...]
"""Stretches of speech: (begin, end) in seconds of a window, in order."""


def find_stretches(probs: SpeechProbabilities, threshold: float, low: float) -> tuple[tuple[int, int], ...]:
    """Samples at which speech begins and ends, by the probabilities of frames.

    Speech begins with a probability of `threshold` and continues down to `low`; stretches less than `MAX_JOINED_PAUSE_S`
    apart are joined.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], probs >= low, [0]]).astype(np.int8))).reshape(-1, 2)
    found: list[tuple[int, int]] = []
    for first, last in edges:
        if probs[first:last].max() < threshold:
            continue
        begin, end = int(first) * FRAME_SAMPLES, int(last) * FRAME_SAMPLES
        if found and begin - found[-1][1] < MAX_JOINED_PAUSE_S * SAMPLE_RATE:
            begin = found.pop()[0]
        found.append((begin, end))
    return tuple(found)


def clamp_to_speech(segment: Segment, window: Window) -> Segment:
    """The segment with its times, words included, moved out of the silence around its speech.

    A word keeps to the one stretch that it overlaps most: people do not pause inside a word. Times that touch no speech at
    all are left as they are.
    """
    if not window.speech_stretches:
        return segment
    words = [_clamp_word(word, window.speech_stretches) for word in segment.words]
    start, end = _clamp_span(segment.start, segment.end, window.speech_stretches)
    if words:
        start, end = max(start, words[0].start), min(end, words[-1].end)
    return replace(segment, start=start, end=max(end, start), words=words)


def _clamp_word(word: Word, stretches: SpeechStretches) -> Word:
    stretch = max(stretches, key=lambda stretch: _compute_overlap(word.start, word.end, stretch))
    if _compute_overlap(word.start, word.end, stretch) <= 0:
        return word
    return replace(word, start=max(word.start, stretch[0] - MARGIN_S), end=min(word.end, stretch[1] + MARGIN_S))


def _clamp_span(start: float, end: float, stretches: SpeechStretches) -> tuple[float, float]:
    overlaps = [(_compute_overlap(start, end, stretch), stretch) for stretch in stretches]
    least = min(MIN_OVERLAP_S, max(overlap for overlap, _ in overlaps))
    inside = [stretch for overlap, stretch in overlaps if overlap >= least > 0]
    if not inside:
        return start, end
    return max(start, inside[0][0] - MARGIN_S), min(end, inside[-1][1] + MARGIN_S)


def _compute_overlap(start: float, end: float, stretch: tuple[float, float]) -> float:
    return min(end, stretch[1] + MARGIN_S) - max(start, stretch[0] - MARGIN_S)
