"""Decoding what is still being said: when it is worth it, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from eardrum.engines.base import Hearing, Window
from eardrum.runner.windows import Cut
from eardrum.types import SAMPLE_RATE, Request

STEP_S = 0.5
"""Least audio between two attempts, and before the first one."""

PACE = 4.0
"""Audio between two attempts, in times of what decoding takes: partials of a session have a quarter of the engine at most."""

PAUSED_PACE = 1.0
"""The same where speech pauses: what is decoded then is likely to be the final."""

REST_S, LONGEST_REST_S = 1.0, 30.0
"""Audio after an attempt on which the engine failed."""

CONTEXT_S = 1.0
"""Audio before the first word that is decoded anew, so that it is heard whole."""

WORTH_S = 3.0
"""Less audio is not worth leaving out."""


@dataclass(slots=True, eq=False)
class Attempt:
    """A stretch that was given to the engine before its end."""

    id: int
    window: Window
    told_to: float | None = None
    """The words up to this second were stable; those that the window holds of them are not heard anew."""
    hearing: Hearing | None = None

    def covers(self, window: Window) -> bool:
        """Whether this is the same audio."""
        mine, other = self.window, window
        return (mine.start, len(mine.audio), mine.request) == (other.start, len(other.audio), other.request)


class Attempts:
    """The attempts of a session: at most one at a time is with the engine."""

    def __init__(self, *, fixed_cost: bool):
        self._fixed_cost = fixed_cost
        self._cost = 0.0  # seconds of decoding, per second of audio unless all windows cost the same
        self._waited = 0.0
        self._heard_to = 0.0
        self.last: Attempt | None = None
        self.decoded = 0
        self.left_out = 0

    @property
    def waiting(self) -> bool:
        """Whether the engine has one."""
        return self.last is not None and self.last.hearing is None

    def due(self, heard_to: float, begin: float, *, paused: bool = False) -> bool:
        """Whether enough of a stretch from `begin` is new at `heard_to`, in seconds of the session."""
        since = max(begin, self._heard_to)
        cost = self._cost if self._fixed_cost else self._cost * (heard_to - begin)
        if paused:
            return heard_to - since >= PAUSED_PACE * cost + self._waited
        return heard_to - since >= max(STEP_S, PACE * cost + self._waited)

    def begin(self, attempt: Attempt) -> None:
        """The engine is given one."""
        self.last = attempt
        self._heard_to = attempt.window.start + attempt.window.seconds

    def decoded_in(self, seconds: float, waited: float) -> None:
        """The last one took the engine so long, after it had waited for its turn."""
        assert self.last is not None
        self.decoded += 1
        self._waited = waited
        self._cost = seconds if self._fixed_cost else seconds / max(self.last.window.seconds, 1.0)

    def failed(self) -> None:
        """The engine has failed on the last one: it is left alone for a while, each time longer."""
        self.last = None
        self._waited = min(max(2 * self._waited, REST_S), LONGEST_REST_S)


def window_of(cut: Cut, request: Request) -> Window:
    """What the engine is given of a stretch."""
    return Window(
        audio=cut.audio,
        start=cut.start / SAMPLE_RATE,
        speech=cut.speech,
        speech_span=(cut.speech_start / SAMPLE_RATE, cut.speech_end / SAMPLE_RATE),
        request=request,
    )


def tail_of(window: Window, told_to: float | None) -> Window:
    """The part of a window whose words are not known yet, with word times that show where it goes on."""
    begin = 0.0 if told_to is None else told_to - CONTEXT_S - window.start
    at = int(begin * SAMPLE_RATE) if begin > WORTH_S else 0
    return replace(
        window,
        audio=window.audio[at:],
        start=window.start + at / SAMPLE_RATE,
        speech_span=(0.0 if at else window.speech_span[0], window.speech_span[1] - at / SAMPLE_RATE),
        request=replace(window.request, words=True),
    )
