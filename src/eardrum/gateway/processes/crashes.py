"""Deals with crashes: isolates the request that causes them, and pauses models that crash repeatedly.

`CrashIsolation` finds the request that crashes a model's process. All requests that a process served when it died are
suspected, and the next process serves each of them alone, one after the other; others wait meanwhile. A request that is alone
when that process dies too is not served again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

MAX_CRASHES = 6
"""A request is given up after so many crashes, even if it never was the only one."""

ISOLATION_MARGIN_S = 5.0
"""A request that killed a process is expected to do so again within the same time plus this margin."""

ISOLATION_S = 30.0
"""Longest isolation of a request, during which others wait; each further one may be `ISOLATION_GROWTH` times as long."""

ISOLATION_GROWTH = 4


@dataclass(slots=True, eq=False)
class CrashSuspicion:
    """The crashes that one request, or one live session, may have caused."""

    max_crashes: int = 2
    """So many crashes prove that the request causes them, if it was alone at one of them."""
    isolation_s: float = ISOLATION_S
    """Longest time of its first isolation."""
    suspected: bool = False
    """Whether the process that served it died, and no other process has served it since."""
    crashes: int = 0
    crashes_alone: int = 0
    """Crashes while the process served no other request."""
    seconds_to_crash: float = 0.0
    """Time that the process had served it when it died."""
    isolations: int = 0
    """Isolations so far, including the current one."""

    @property
    def is_proven(self) -> bool:
        """Whether the next process is expected to die of it too."""
        return (self.crashes >= self.max_crashes and self.crashes_alone > 0) or self.crashes >= MAX_CRASHES

    @property
    def isolation_limit_s(self) -> float:
        """Longest time of the current isolation."""
        return min(
            self.seconds_to_crash + ISOLATION_MARGIN_S, self.isolation_s * float(ISOLATION_GROWTH ** max(self.isolations - 1, 0))
        )

    def record_crash(self, *, alone: bool, within_s: float) -> None:
        """Record that a process died that served the request."""
        self.suspected = True
        self.crashes += 1
        self.crashes_alone += alone
        self.seconds_to_crash = within_s

    def clear(self) -> None:
        """Clear the suspicion: the request was served."""
        self.suspected, self.crashes, self.crashes_alone = False, 0, 0


@dataclass(slots=True)
class IsolationQueue:
    """The suspected requests of one model, which are served one at a time."""

    pending: int = 0
    """Suspected requests that wait, and the isolated one."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    empty: asyncio.Event = field(default_factory=asyncio.Event)


class LeaseAdmission:
    """Admits one request to a model: at once, after isolated requests, or isolated itself. Always call `leave` at the end."""

    def __init__(self, queue: IsolationQueue, suspicion: CrashSuspicion):
        self._queue = queue
        self._suspicion = suspicion
        self._timer: asyncio.TimerHandle | None = None
        self.isolated = False
        """Whether other requests wait because of this one."""
        self.started_at = time.monotonic()

    async def wait_for_turn(self) -> None:
        """Wait until the request is admitted."""
        queue = self._queue
        if not self._suspicion.suspected:
            while queue.pending:
                await queue.empty.wait()
            return
        queue.pending += 1
        queue.empty.clear()
        try:
            await queue.lock.acquire()
        except BaseException:
            self._remove_pending()
            raise
        self.isolated = True
        self._suspicion.suspected = False  # unless this process dies too
        self._suspicion.isolations += 1

    def start(self) -> None:
        """Start the time of an isolation: the model is ready."""
        self.started_at = time.monotonic()
        if self.isolated:
            self._timer = asyncio.get_running_loop().call_later(self._suspicion.isolation_limit_s, self.leave)

    def leave(self) -> None:
        """End the isolation, if there is one, and admit others."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self.isolated:
            self.isolated = False
            self._queue.lock.release()
            self._remove_pending()

    def _remove_pending(self) -> None:
        self._queue.pending -= 1
        if not self._queue.pending:
            self._queue.empty.set()


class CrashIsolation:
    """The isolation queues of all models."""

    def __init__(self) -> None:
        self._queues: dict[str, IsolationQueue] = {}

    def create_admission(self, model: str, suspicion: CrashSuspicion) -> LeaseAdmission:
        """Create the admission of a request for this model."""
        if not (queue := self._queues.get(model)):
            queue = self._queues[model] = IsolationQueue()
        return LeaseAdmission(queue, suspicion)


BACKOFF_S = (0.0, 0.0, 5.0, 15.0, 60.0)
"""Pause after the first, second ... crash in a row. The first may be one request's fault and is made good at once."""


@dataclass(frozen=True, slots=True)
class CrashStreak:
    """A model's crashes without a request served in between."""

    crashes: int
    retry_at: float
    exit_description: str
    """How the process ended last."""


class CrashBackoff:
    """Pauses models whose processes die again and again."""

    def __init__(self) -> None:
        self._streaks: dict[str, CrashStreak] = {}

    def record_crash(self, model: str, ending: str, now: float) -> None:
        """Record that the model's process died unexpectedly."""
        count = self._streaks[model].crashes if model in self._streaks else 0
        self._streaks[model] = CrashStreak(count + 1, now + BACKOFF_S[min(count, len(BACKOFF_S) - 1)], ending)

    def reset(self, model: str) -> None:
        """Forget the model's crashes: it has finished a request, or its config has changed."""
        self._streaks.pop(model, None)

    def find_pause(self, model: str, now: float) -> CrashStreak | None:
        """Return the crashes because of which the model must not be started now, if there are any."""
        row = self._streaks.get(model)
        return row if row and now < row.retry_at else None
