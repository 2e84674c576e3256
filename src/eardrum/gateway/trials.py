"""Which request it is that ends a model's process: all that were in its hands may be, so each is tried alone.

Who was there when a process died is suspected, and served by the next process while nobody else is, one after the other; others
wait meanwhile. Whoever is alone when that one dies too has done it, and is not served again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

MOST_DEATHS = 6
"""A request is given up after so many, whatever else was there."""

MORE_S = 5.0
"""A request that ended a process will have done so again in the time that it took before, and so much more."""

TRIAL_S = 30.0
"""Longest time for which others wait for the first trial of a request; each further one may take `LONGER` times as long."""

LONGER = 4


@dataclass(slots=True, eq=False)
class Suspicion:
    """What speaks against one request, or one live session, for one model."""

    most: int = 2
    """Deaths that are too many, if it was alone at one of them."""
    trial_s: float = TRIAL_S
    """Longest time for which others wait for its first trial."""
    suspected: bool = False
    """Whether the process it was in has died, and no other has served it since."""
    deaths: int = 0
    alone: int = 0
    """Deaths at which nobody else was there."""
    within_s: float = 0.0
    """How long it had been there when the process died."""
    trials: int = 0
    """Those it has had, and the one that it has."""

    @property
    def convicted(self) -> bool:
        """Whether another process would die of it too, for all that is known."""
        return (self.deaths >= self.most and self.alone > 0) or self.deaths >= MOST_DEATHS

    @property
    def bound_s(self) -> float:
        """How long its trial may take."""
        return min(self.within_s + MORE_S, self.trial_s * float(LONGER ** max(self.trials - 1, 0)))

    def died(self, *, alone: bool, within_s: float) -> None:
        """A process has died that served it."""
        self.suspected = True
        self.deaths += 1
        self.alone += alone
        self.within_s = within_s

    def clear(self) -> None:
        """It was served: nothing speaks against it."""
        self.suspected, self.deaths, self.alone = False, 0, 0


@dataclass(slots=True)
class Court:
    """The trials of one model."""

    pending: int = 0
    """Suspects that wait for their trial, and the one that has it."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Trial:
    """The way in of one request: at once, after the trials of others, or by a trial of its own. Leave it in any case."""

    def __init__(self, court: Court, suspicion: Suspicion):
        self._court = court
        self._suspicion = suspicion
        self._timer: asyncio.TimerHandle | None = None
        self.on = False
        """Whether nobody else is let in because of this one."""
        self.began = time.monotonic()

    async def enter(self) -> None:
        """Wait until it may."""
        court = self._court
        if not self._suspicion.suspected:
            while court.pending:
                await court.over.wait()
            return
        court.pending += 1
        court.over.clear()
        try:
            await court.turn.acquire()
        except BaseException:
            self._less()
            raise
        self.on = True
        self._suspicion.suspected = False  # unless this process dies too
        self._suspicion.trials += 1

    def begin(self) -> None:
        """The model is there: from now on its time counts."""
        self.began = time.monotonic()
        if self.on:
            self._timer = asyncio.get_running_loop().call_later(self._suspicion.bound_s, self.leave)

    def leave(self) -> None:
        """It has had its trial: others may come in."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self.on:
            self.on = False
            self._court.turn.release()
            self._less()

    def _less(self) -> None:
        self._court.pending -= 1
        if not self._court.pending:
            self._court.over.set()


class Trials:
    """Those of all models."""

    def __init__(self) -> None:
        self._courts: dict[str, Court] = {}

    def of(self, model: str, suspicion: Suspicion) -> Trial:
        """The way of a request to this model."""
        return Trial(self._courts.setdefault(model, Court()), suspicion)
