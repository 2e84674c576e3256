"""Decoding what is still being said: when it is worth it, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass

from eardrum.engines.base import Hearing, Window

STEP_S = 0.4
"""Least audio between two attempts, and before the first one."""

PACE = 3.0
"""Audio between two attempts, in times of what decoding takes: partials of a session keep the engine busy a third of the time."""


@dataclass(slots=True, eq=False)
class Attempt:
    """A stretch that was given to the engine before its end."""

    id: int
    window: Window
    complete: bool
    """It ends with a pause."""
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
        self.last: Attempt | None = None
        self.decoded = 0
        self.left_out = 0

    @property
    def waiting(self) -> bool:
        """Whether the engine has one."""
        return self.last is not None and self.last.hearing is None

    def due(self, heard_to: float, begin: float) -> bool:
        """Whether enough of a stretch from `begin` is new at `heard_to`, in seconds of the session."""
        seconds = heard_to - begin
        since = begin
        if self.last is not None:
            since = max(begin, self.last.window.start + self.last.window.seconds)
        cost = self._cost if self._fixed_cost else self._cost * seconds
        return heard_to - since >= max(STEP_S, PACE * cost + self._waited)

    def decoded_in(self, seconds: float, waited: float) -> None:
        """The last one took the engine so long, after it had waited for its turn."""
        assert self.last is not None
        self.decoded += 1
        self._waited = waited
        self._cost = seconds if self._fixed_cost else seconds / max(self.last.window.seconds, 1.0)
