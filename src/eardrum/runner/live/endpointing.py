"""Finds stretches of speech in a live stream: where each begins, pauses and ends, and where an utterance is over.

A stretch is a window for the engine; one or more of them make an utterance, which a longer pause ends. A pure state machine:
samples and speech probabilities go in, marks come out, and only the stretch in progress is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from msgspec import Struct

from eardrum.engines.base import Audio
from eardrum.live import EndpointingSettings
from eardrum.runner.segmenter import FRAMES_PER_SECOND, SpeechChunk, find_best_pause
from eardrum.runner.vad import FRAME_SAMPLES, SpeechProbabilities
from eardrum.transcription import Capabilities

MIN_SPEECH_FRAMES = 3
"""Frames of speech that confirm the start of an utterance; clicks are shorter."""

MIN_PAUSE_FRAMES = 3
"""Frames of silence that are a pause at all."""

MAX_DOUBT_FRAMES = 10
"""Frames of silence after which an unconfirmed start is dropped."""

TAIL_S = 0.25
"""Audio kept after the last speech. A pause this long is worth a look: the stretch, should it end here, is complete."""

HYSTERESIS = 0.15
"""Speech continues until the probability falls this far below the threshold."""

WINDOW_PAUSE_S, FULL_WINDOW_PAUSE_S = 0.8, 2.0
"""The longest pause within a stretch: fast text needs small windows, but where every window costs the same not
many of them."""

WINDOW_PREFIX = 11
"""Frames before the speech of a stretch that is not the first one."""

LONG_SHARE = 0.5
"""Part of the longest stretch from which on shorter pauses end it: the longer, the shorter."""

LATE_S = 1.4
"""The end of the longest stretch: who speaks on without a pause is interrupted there, at the best moment. No text of it is
promised yet (`utterance.MIN_HYPOTHESIS_GAP_S`), so none is on the wrong side of the cut."""


class EndpointingRule(Struct, frozen=True):
    """When a stretch begins and ends. Lengths are in frames."""

    max_frames: int
    threshold: float
    prefix: int
    silence: int
    end_silence: int | None
    """Frames of silence that end an utterance; None: only a command ends it."""
    min_speech: int = MIN_SPEECH_FRAMES

    @classmethod
    def of(cls, endpointing: EndpointingSettings | None, capabilities: Capabilities) -> EndpointingRule:
        """The rule for utterances that end by themselves; without endpointing, that for the windows of an utterance."""
        longest = int(capabilities.max_window_s * FRAMES_PER_SECOND)
        pause = _to_frames(FULL_WINDOW_PAUSE_S if capabilities.fixed_window else WINDOW_PAUSE_S)
        if endpointing is None:
            return cls(longest, threshold=0.4, prefix=WINDOW_PREFIX, silence=pause, end_silence=None, min_speech=1)
        over = max(_to_frames(endpointing.silence_s), 1)
        return cls(
            longest,
            threshold=endpointing.threshold,
            prefix=min(_to_frames(endpointing.prefix_s), longest // 4),
            silence=min(pause, over),
            end_silence=over,
        )

    @property
    def continue_threshold(self) -> float:
        """The probability down to which speech continues."""
        return max(self.threshold - HYSTERESIS, 0.01)

    def compute_pause(self, length: int) -> int:
        """Frames of silence that end a stretch of this length."""
        begin, end = self.max_frames * LONG_SHARE, self.max_frames - _to_frames(LATE_S)
        late = min(max((length - begin) / max(end - begin, 1), 0.0), 1.0)
        return max(round(self.silence * (1 - late)), min(MIN_PAUSE_FRAMES, self.silence))

    @property
    def tail(self) -> int:
        """Frames kept after the last speech."""
        return min(_to_frames(TAIL_S), self.silence)


class StretchBegan(Struct, frozen=True):
    """Speech has begun, at frame `at`."""

    at: int


class StretchPaused(Struct, frozen=True):
    """The stretch is complete, unless speech continues before the pause is long enough to end it."""


class StretchEnded(Struct, frozen=True):
    """The stretch is over: at a pause, or because it cannot be longer."""

    cut: SpeechChunk


class SpeechOver(Struct, frozen=True):
    """The silence since the last stretch is long enough to end the utterance."""


EndpointMark = StretchBegan | StretchPaused | StretchEnded | SpeechOver


class Endpointer:
    """Follows one stream. `rule` may be changed between two calls."""

    def __init__(self, rule: EndpointingRule):
        self.rule = rule
        self._frames = FrameBuffer()
        self._next = 0  # first frame not yet looked at
        self._floor = 0  # frames before belong to earlier stretches
        self._first: int | None = None  # first and last speech frame of the stretch in the making
        self._last = 0
        self._speech_frames = 0
        self._may_continue = False  # speech may continue after a pause or the end of a stretch
        self._ended_in_speech = False  # the last stretch ended in mid-speech
        self.begin = 0
        """The frame at which the stretch in the making begins."""
        self.is_speaking = False
        """Whether a stretch is in the making."""

    @property
    def frame_count(self) -> int:
        """Frames processed so far."""
        return self._frames.end

    @property
    def examined_frames(self) -> int:
        """Frames looked at: at a mark there may be more to come."""
        return self._next

    def feed(self, samples: Audio, probs: SpeechProbabilities) -> Iterator[EndpointMark]:
        """Take the next frames. At each mark that is yielded the state is that of its moment."""
        self._frames.append(samples, probs)
        while self._next < self._frames.end:
            self._examine_frame(self._next)
            self._next += 1
            if self._first is not None:
                yield from self._find_marks()
            if self._may_continue and self.rule.end_silence is not None and self._next - 1 - self._last >= self.rule.end_silence:
                self._may_continue = self._ended_in_speech = False
                yield SpeechOver()
        self._frames.drop_before(self.begin if self._first is not None else max(self._next - self._lead_frames, self._floor))

    def cut_open_stretch(self, *, whole: bool) -> SpeechChunk:
        """The stretch in the making: up to now, or, as `whole`, as it would be if it ended here."""
        return self._build_chunk(self._complete_end if whole else self._next)

    def end_stretch(self, rest: Audio | None = None) -> SpeechChunk | None:
        """End the stretch now, however short. `rest` are the samples since the last whole frame."""
        cut = None
        if self._first is not None:
            end = self._complete_end
            cut = self._build_chunk(end, rest if end == self._next else None)
        self._start_over(self._next)
        self._may_continue = self._ended_in_speech = False
        return cut

    @property
    def _lead_frames(self) -> int:
        """Frames before speech that belong to its stretch: the client's choice, but enough for the whole word at a cut."""
        return max(self.rule.prefix, WINDOW_PREFIX) if self._may_continue else self.rule.prefix

    @property
    def _complete_end(self) -> int:
        return min(self._last + 1 + self.rule.tail, self._next)

    def _examine_frame(self, frame: int) -> None:
        going_on = self._first is not None and self._last == frame - 1
        if self._frames.get_probability(frame) >= (self.rule.continue_threshold if going_on else self.rule.threshold):
            if self._first is None:
                self._first = frame
                self.begin = max(frame - self._lead_frames, self._floor, self._frames.begin)
            self._last = frame
            self._speech_frames += 1

    def _find_marks(self) -> Iterator[EndpointMark]:
        pause = self._next - 1 - self._last
        if not self.is_speaking:
            if self._ended_in_speech or self._speech_frames >= self.rule.min_speech:
                self.is_speaking = self._may_continue = True
                self._ended_in_speech = False
                yield StretchBegan(self.begin)
            elif pause > MAX_DOUBT_FRAMES:
                self._start_over(self._next, self._floor)
        elif pause >= self.rule.compute_pause(self._next - self.begin):
            yield self._close_stretch(self._complete_end, self._last + 1)
        elif self._next - self.begin >= self.rule.max_frames:
            end = self._find_cut()
            yield self._close_stretch(end, end)
            self._last, self._ended_in_speech = min(self._last, end - 1), True
        elif pause == self.rule.tail:
            yield StretchPaused()

    def _close_stretch(self, end: int, floor: int) -> StretchEnded:
        """The stretch up to `end`; the next one may begin with the same silence, at `floor` at the earliest."""
        cut = self._build_chunk(end)
        self._start_over(end, floor)
        return StretchEnded(cut)

    def _find_cut(self) -> int:
        searched = self._next - _to_frames(LATE_S)
        return searched + find_best_pause(self._frames.get_probabilities(searched, self._next), self.rule.continue_threshold)

    def _build_chunk(self, end: int, rest: Audio | None = None) -> SpeechChunk:
        assert self._first is not None
        audio = self._frames.copy_samples(self.begin, end)
        return SpeechChunk(
            audio=audio if rest is None else np.concatenate([audio, rest]),
            pieces=((0, self.begin * FRAME_SAMPLES),),
            speech=float(self._frames.get_probabilities(self._first, max(end, self._first + 1)).max()),
            speech_start=(self._first - self.begin) * FRAME_SAMPLES,
            speech_end=(min(self._last + 1, end) - self.begin) * FRAME_SAMPLES,
        )

    def _start_over(self, frame: int, floor: int | None = None) -> None:
        """Look for the next stretch from a frame on."""
        self._next = frame
        self._floor = frame if floor is None else floor
        self._first = None
        self._speech_frames = 0
        self.is_speaking = False


def _to_frames(seconds: float) -> int:
    return round(seconds * FRAMES_PER_SECOND)


INITIAL_FRAMES = 256
"""Frames that a tape has room for at first."""


class FrameBuffer:
    """Samples and speech probabilities from one frame of the stream to its end. Frames are counted from the beginning."""

    def __init__(self) -> None:
        self._samples = np.empty(INITIAL_FRAMES * FRAME_SAMPLES, np.float32)
        self._probs = np.empty(INITIAL_FRAMES, np.float32)
        self._offset = 0  # where in the arrays the tape begins
        self.begin = 0
        self.end = 0
        """The frame behind the last one."""

    def append(self, samples: Audio, probs: SpeechProbabilities) -> None:
        """Add frames at the end."""
        self._reserve(len(probs))
        at = self._offset + self.end - self.begin
        self._probs[at : at + len(probs)] = probs
        self._samples[at * FRAME_SAMPLES : (at + len(probs)) * FRAME_SAMPLES] = samples
        self.end += len(probs)

    def drop_before(self, frame: int) -> None:
        """Give up what lies before a frame."""
        if frame > self.begin:
            self._offset += frame - self.begin
            self.begin = frame

    def get_probability(self, frame: int) -> float:
        """The speech probability of a frame."""
        return float(self._probs[self._offset + frame - self.begin])

    def get_probabilities(self, begin: int, end: int) -> SpeechProbabilities:
        """Those of the frames from `begin` up to `end`."""
        return self._probs[self._offset + begin - self.begin : self._offset + end - self.begin]

    def copy_samples(self, begin: int, end: int) -> Audio:
        """A copy of the samples of these frames."""
        at = self._offset - self.begin
        return self._samples[(at + begin) * FRAME_SAMPLES : (at + end) * FRAME_SAMPLES].copy()

    def _reserve(self, frames: int) -> None:
        held = self.end - self.begin
        if self._offset + held + frames <= len(self._probs):
            return
        size = max(2 * (held + frames), INITIAL_FRAMES)
        probs, samples = np.empty(size, np.float32), np.empty(size * FRAME_SAMPLES, np.float32)
        probs[:held] = self.get_probabilities(self.begin, self.end)
        samples[: held * FRAME_SAMPLES] = self._samples[self._offset * FRAME_SAMPLES : (self._offset + held) * FRAME_SAMPLES]
        self._probs, self._samples, self._offset = probs, samples, 0
