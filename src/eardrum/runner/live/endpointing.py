"""Finds stretches of speech in a stream while it comes: where each begins, pauses and ends, and where nobody speaks any more.

A stretch is a window for the engine; one or more of them are what somebody says before a pause that ends it. A pure state
machine: samples and speech probabilities go in, marks come out, and nothing is kept but the stretch in the making.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eardrum.engines.base import Audio
from eardrum.live import Endpointing
from eardrum.runner.live.tape import Tape
from eardrum.runner.vad import FRAME, Probabilities
from eardrum.runner.windows import FRAMES_PER_SECOND, Cut, best_pause
from eardrum.types import Capabilities

CERTAIN = 3
"""Frames of speech before it is believed that somebody speaks; clicks are shorter."""

BREATH = 3
"""Frames of silence that are a pause at all."""

DOUBT = 10
"""Frames of silence after which what was not believed is forgotten."""

TAIL_S = 0.25
"""Audio kept after the last speech. A pause this long is worth a look: the stretch, should it end here, is complete."""

HYSTERESIS = 0.15
"""Speech goes on until the probability falls this far below the threshold."""

WINDOW_PAUSE_S, FULL_WINDOW_PAUSE_S = 0.8, 2.0
"""The longest pause within a stretch: text that must come fast wants small windows, but where every window costs the same not
many of them."""

WINDOW_PREFIX = 11
"""Frames before the speech of a stretch that is not the first one."""

LONG = 0.5
"""Part of the longest stretch from which on shorter pauses end it: the longer, the shorter."""

LATE_S = 1.4
"""The end of the longest stretch: who speaks on without a pause is interrupted there, at the best moment. No text of it is
promised yet (`agreement.APART_S`), so none is on the wrong side of the cut."""


@dataclass(frozen=True, slots=True)
class Rule:
    """When a stretch begins and ends. Lengths are in frames."""

    longest: int
    threshold: float
    prefix: int
    silence: int
    over: int | None
    """Frames of silence after which nobody speaks any more; None: only a command says so."""
    certain: int = CERTAIN

    @classmethod
    def of(cls, endpointing: Endpointing | None, capabilities: Capabilities) -> Rule:
        """The rule for utterances that end by themselves; without endpointing, that for the windows of an utterance."""
        longest = int(capabilities.max_window_s * FRAMES_PER_SECOND)
        pause = _frames(FULL_WINDOW_PAUSE_S if capabilities.fixed_window else WINDOW_PAUSE_S)
        if endpointing is None:
            return cls(longest, threshold=0.4, prefix=WINDOW_PREFIX, silence=pause, over=None, certain=1)
        over = max(_frames(endpointing.silence_s), 1)
        return cls(
            longest,
            threshold=endpointing.threshold,
            prefix=min(_frames(endpointing.prefix_s), longest // 4),
            silence=min(pause, over),
            over=over,
        )

    @property
    def low(self) -> float:
        """The probability down to which speech goes on."""
        return max(self.threshold - HYSTERESIS, 0.01)

    def pause(self, length: int) -> int:
        """Frames of silence that end a stretch of this length."""
        begin, end = self.longest * LONG, self.longest - _frames(LATE_S)
        late = min(max((length - begin) / max(end - begin, 1), 0.0), 1.0)
        return max(round(self.silence * (1 - late)), min(BREATH, self.silence))

    @property
    def tail(self) -> int:
        """Frames kept after the last speech."""
        return min(_frames(TAIL_S), self.silence)


@dataclass(frozen=True, slots=True)
class Began:
    """Somebody speaks, since frame `at`."""

    at: int


@dataclass(frozen=True, slots=True)
class Paused:
    """The stretch is complete, unless speech goes on before the pause is long enough to end it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The stretch is over: at a pause, or because it cannot be longer."""

    cut: Cut


@dataclass(frozen=True, slots=True)
class Over:
    """Nobody has spoken since the last stretch for as long as ends what is said."""


Mark = Began | Paused | Ended | Over


class Endpointer:
    """Follows one stream. `rule` may be changed between two calls."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self._tape = Tape()
        self._next = 0  # first frame not yet looked at
        self._floor = 0  # frames before belong to earlier stretches
        self._first: int | None = None  # first and last speech frame of the stretch in the making
        self._last = 0
        self._voiced = 0
        self._going_on = False  # somebody has spoken, and may go on after a pause or the end of a stretch
        self._torn = False  # the last stretch ended in mid-speech
        self.begin = 0
        """The frame at which the stretch in the making begins."""
        self.speaking = False
        """Whether a stretch is in the making."""

    @property
    def now(self) -> int:
        """Frames heard so far."""
        return self._tape.end

    @property
    def heard(self) -> int:
        """Frames looked at: at a mark there may be more to come."""
        return self._next

    def feed(self, samples: Audio, probs: Probabilities) -> Iterator[Mark]:
        """Take the next frames. At each mark that is yielded the state is that of its moment."""
        self._tape.append(samples, probs)
        while self._next < self._tape.end:
            self._look(self._next)
            self._next += 1
            if self._first is not None:
                yield from self._marks()
            if self._going_on and self.rule.over is not None and self._next - 1 - self._last >= self.rule.over:
                self._going_on = self._torn = False
                yield Over()
        self._tape.forget(self.begin if self._first is not None else max(self._next - self._lead, self._floor))

    def stretch(self, *, whole: bool) -> Cut:
        """The stretch in the making: up to now, or, as `whole`, as it would be if it ended here."""
        return self._cut(self._complete if whole else self._next)

    def stop(self, rest: Audio | None = None) -> Cut | None:
        """End the stretch now, however little was said of it. `rest` are the samples heard since the last whole frame."""
        cut = None
        if self._first is not None:
            end = self._complete
            cut = self._cut(end, rest if end == self._next else None)
        self._begin_anew(self._next)
        self._going_on = self._torn = False
        return cut

    @property
    def _lead(self) -> int:
        """Frames before speech that belong to its stretch: as few as the client likes, but a word at a cut is heard whole."""
        return max(self.rule.prefix, WINDOW_PREFIX) if self._going_on else self.rule.prefix

    @property
    def _complete(self) -> int:
        return min(self._last + 1 + self.rule.tail, self._next)

    def _look(self, frame: int) -> None:
        going_on = self._first is not None and self._last == frame - 1
        if self._tape.prob(frame) >= (self.rule.low if going_on else self.rule.threshold):
            if self._first is None:
                self._first = frame
                self.begin = max(frame - self._lead, self._floor, self._tape.begin)
            self._last = frame
            self._voiced += 1

    def _marks(self) -> Iterator[Mark]:
        pause = self._next - 1 - self._last
        if not self.speaking:
            if self._torn or self._voiced >= self.rule.certain:
                self.speaking = self._going_on = True
                self._torn = False
                yield Began(self.begin)
            elif pause > DOUBT:
                self._begin_anew(self._next, self._floor)
        elif pause >= self.rule.pause(self._next - self.begin):
            yield self._end(self._complete, self._last + 1)
        elif self._next - self.begin >= self.rule.longest:
            end = self._best_pause()
            yield self._end(end, end)
            self._last, self._torn = min(self._last, end - 1), True
        elif pause == self.rule.tail:
            yield Paused()

    def _end(self, end: int, floor: int) -> Ended:
        """The stretch up to `end`; the next one may begin with the same silence, at `floor` at the earliest."""
        cut = self._cut(end)
        self._begin_anew(end, floor)
        return Ended(cut)

    def _best_pause(self) -> int:
        searched = self._next - _frames(LATE_S)
        return searched + best_pause(self._tape.probs(searched, self._next), self.rule.low)

    def _cut(self, end: int, rest: Audio | None = None) -> Cut:
        assert self._first is not None
        audio = self._tape.samples(self.begin, end)
        return Cut(
            audio=audio if rest is None else np.concatenate([audio, rest]),
            pieces=((0, self.begin * FRAME),),
            speech=float(self._tape.probs(self._first, max(end, self._first + 1)).max()),
            speech_start=(self._first - self.begin) * FRAME,
            speech_end=(min(self._last + 1, end) - self.begin) * FRAME,
        )

    def _begin_anew(self, frame: int, floor: int | None = None) -> None:
        """Look for the next stretch from a frame on."""
        self._next = frame
        self._floor = frame if floor is None else floor
        self._first = None
        self._voiced = 0
        self.speaking = False


def _frames(seconds: float) -> int:
    return round(seconds * FRAMES_PER_SECOND)
