"""Handles crashes: isolates the request that causes them, and pauses models that crash repeatedly.

`CrashIsolation` finds the request that crashes a model's process. All requests that a process served when it died are
suspected, and the next process serves each of them alone, one after the other; others wait meanwhile. A request that is alone
when that process dies too is not served again. A live session may outlast its isolation: if the process dies later, while it
serves the next suspect, the session is not suspected of that.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from msgspec import Struct

from eardrum.errors import ModelCoolingError

MAX_CRASHES = 6
"""A request is given up after so many crashes, even if it never was the only one."""

ISOLATION_MARGIN_S = 5.0
"""A request that killed a process is expected to do so again within the same time plus this margin."""

ISOLATION_S = 30.0
"""Longest isolation of a request, during which others wait; each further one may be `ISOLATION_GROWTH` times as long."""

ISOLATION_GROWTH = 4

RETURN_S = 1.0
"""After a crash, other requests wait so long for the suspected ones to return."""


@dataclass(slots=True, eq=False)
class CrashSuspicion:
    """The crashes that one request, or one live session, may have caused."""

    max_crashes: int = 2
    """So many crashes prove that the request causes them, if it was alone at enough of them."""
    isolation_s: float = ISOLATION_S
    """Longest time of its first isolation."""
    min_crashes_alone: int = 1
    """Of `max_crashes`, those while the process served no other request."""
    suspected: bool = False
    """Whether the process that served it died, and no other process has served it since."""
    crashes: int = 0
    crashes_alone: int = 0
    """Crashes while the process served no other request."""
    seconds_to_crash: float = 0.0
    """Time that the process had served it when it died."""
    isolations: int = 0
    """Isolations so far, including the current one."""
    reservation: IsolationReservation | None = None
    """Keeps requests that are not suspected waiting until this one has returned."""

    @property
    def is_proven(self) -> bool:
        """Whether the next process is expected to die of it too."""
        return (self.crashes >= self.max_crashes and self.crashes_alone >= self.min_crashes_alone) or self.crashes >= MAX_CRASHES

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

    def release_reservation(self) -> None:
        """Let other requests continue: this one has returned, or will not."""
        if self.reservation:
            self.reservation.release()
            self.reservation = None

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

    def add_pending(self) -> None:
        """Add a suspected request."""
        self.pending += 1
        self.empty.clear()

    def remove_pending(self) -> None:
        """Remove a suspected request: it was served, failed or gave up."""
        self.pending -= 1
        if not self.pending:
            self.empty.set()


class IsolationReservation:
    """The place of a suspected request in the queue from the crash until it returns, or until `RETURN_S` has passed.

    Without it, a request that is not suspected might return first, and would be in the new process with a suspected one.
    """

    def __init__(self, queue: IsolationQueue):
        self._queue = queue
        self._queue.add_pending()
        self._timer = asyncio.get_running_loop().call_later(RETURN_S, self.release)
        self._released = False

    def release(self) -> None:
        """Leave the queue. Further calls do nothing."""
        if not self._released:
            self._released = True
            self._timer.cancel()
            self._queue.remove_pending()


class LeaseAdmission:
    """Admits one request to a model: at once, after isolated requests, or isolated itself. Always call `leave` at the end."""

    def __init__(self, queue: IsolationQueue, suspicion: CrashSuspicion):
        self._queue = queue
        self._suspicion = suspicion
        self._timer: asyncio.TimerHandle | None = None
        self.isolated = False
        """Whether other requests wait because of this one."""
        self.survived = False
        """Whether the process served the request alone for the longest time of an isolation, and did not die of it."""

    async def wait_for_turn(self) -> None:
        """Wait until the request is admitted."""
        queue = self._queue
        if not self._suspicion.suspected:
            self._suspicion.release_reservation()
            while queue.pending:
                await queue.empty.wait()
            return
        queue.add_pending()
        self._suspicion.release_reservation()
        try:
            await queue.lock.acquire()
        except BaseException:
            queue.remove_pending()
            raise
        self.isolated = True
        self._suspicion.suspected = False  # unless this process dies too
        self._suspicion.isolations += 1

    def start(self) -> None:
        """Start the time of an isolation: the model is ready."""
        if self.isolated:
            self._timer = asyncio.get_running_loop().call_later(self._suspicion.isolation_limit_s, self._handle_expiry)

    def reserve_return(self) -> None:
        """Keep requests that are not suspected waiting until this one, suspected since a moment ago, has returned."""
        self._suspicion.release_reservation()
        self._suspicion.reservation = IsolationReservation(self._queue)

    def leave(self) -> None:
        """End the isolation, if there is one, and admit others."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self.isolated:
            self.isolated = False
            self._queue.lock.release()
            self._queue.remove_pending()

    def _handle_expiry(self) -> None:
        """End an isolation in which nothing happened."""
        self.survived = True
        self.leave()


class CrashIsolation:
    """The isolation queues of the models whose processes have crashed."""

    def __init__(self) -> None:
        self._queues: dict[str, IsolationQueue] = {}

    def needs_admission(self, model: str, suspicion: CrashSuspicion | None) -> bool:
        """Check whether a request must be admitted: it is suspected itself, or others are. Few requests ever are."""
        queue = self._queues.get(model)
        return (queue is not None and queue.pending > 0) or (suspicion is not None and suspicion.suspected)

    def create_admission(self, model: str, suspicion: CrashSuspicion) -> LeaseAdmission:
        """Create the admission of a request for this model."""
        if not (queue := self._queues.get(model)):
            queue = self._queues[model] = IsolationQueue()
        return LeaseAdmission(queue, suspicion)


MAX_BACKOFF_WAIT_S = 15.0
"""Longest pause after crashes that requests wait for which did not cause them."""

BACKOFF_S = (0.0, 0.0, 5.0, 15.0, 60.0)
"""Pause after the first, second ... crash in a row. The first may be one request's fault and is made good at once."""


class CrashStreak(Struct, frozen=True):
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

    def check_over(self, model: str, now: float) -> None:
        """Check that a model is not paused.

        Raises:
            ModelCoolingError: it is.
        """
        streak = self._streaks.get(model)
        if streak and now < streak.retry_at:
            message = f"{streak.exit_description} It has ended {streak.crashes} times in a row."
            raise ModelCoolingError(message, param="model", retry_after=streak.retry_at - now)

    async def wait_for_end(self, model: str) -> None:
        """Wait for the end of a model's pause if that is soon, for a request that did not cause the crashes."""
        streak = self.find_pause(model, now := time.monotonic())
        if streak and (left := streak.retry_at - now) <= MAX_BACKOFF_WAIT_S:
            await asyncio.sleep(left)
