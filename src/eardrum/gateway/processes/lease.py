"""Leases: the right to use a loaded model for one request, and the limit of live sessions per model.

`CrashIsolation` finds the request that crashes a model's process. All requests that a process served when it died are
suspected, and the next process serves each of them alone, one after the other; others wait meanwhile. A request that is alone
when that process dies too is not served again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from eardrum.errors import BusyError, ShuttingDownError
from eardrum.gateway import scheduler
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes.launcher import ModelInstance
from eardrum.gateway.slow_clients import PlaceRegistry
from eardrum.gateway.upstreams import Upstream


@dataclass(slots=True, eq=False)
class RunningModel:
    """A model that serves, and the task that sees to its end."""

    instance: ModelInstance
    task: asyncio.Task[None]
    since: float
    """Unix time at which it was ready."""
    forced: bool = False
    """Whether it was told to end whatever it was doing."""
    leases: set[ModelLease] = field(default_factory=set)
    """The leases that are in its hands, and if it has died those that were. Those that rest are not."""

    @property
    def pid(self) -> int | None:
        """Its process; None if it is another server's."""
        return self.instance.pid


class LeaseOwner(Protocol):
    """Who lets requests in, and sees to what becomes of the model meanwhile."""

    async def admit_lease(self, lease: ModelLease) -> tuple[int, RunningModel]:
        """The beginning of a lease: its ticket, and the model that serves."""

    async def release_lease(self, lease: ModelLease, ticket: int, running: RunningModel, error: BaseException | None) -> None:
        """The end of a lease, after this error or without one."""

    def create_admission(self, lease: ModelLease) -> LeaseAdmission:
        """The lease's way in, which may wait for that of others."""

    def handle_event(self, event: scheduler.SchedulerEvent) -> None:
        """Something has happened to a request."""

    def reset_crashes(self, model: Model) -> None:
        """The model's process has done some of its work."""


class ModelLease:
    """A request's time with a ready model, as a context, or from `begin` to `end`. Its owner lets it in.

    A lease holds its model. One that rests, such as that of a silent WebSocket, does not.
    """

    __slots__ = ("_owner", "_running", "_ticket", "admission", "model", "suspicion")

    def __init__(self, owner: LeaseOwner, model: Model, suspicion: CrashSuspicion | None = None):
        self.model = model
        self.suspicion = suspicion or CrashSuspicion()
        """What speaks against the request, from one lease to the next."""
        self.admission: LeaseAdmission
        self._owner = owner
        self._running: RunningModel
        self._ticket: int

    @property
    def upstream(self) -> Upstream:
        """The way to the model."""
        return self._running.instance.upstream

    async def acquire(self) -> None:
        """Wait for the model, which is started first if it must be.

        Raises:
            EardrumError: as `Supervisor.hold`.
        """
        self.admission = self._owner.create_admission(self)
        await self.admission.wait_for_turn()
        try:
            self._ticket, self._running = await self._owner.admit_lease(self)
        except BaseException:
            self.admission.leave()
            raise
        self._running.leases.add(self)
        self.admission.start()

    async def release(self, error: BaseException | None = None) -> None:
        """Let go of the model, after this error or without one.

        Raises:
            RunnerCrashedError: it was one too: how the process ended.
            UnloadedError, ShuttingDownError: it was one, and the process was meant to end.
        """
        try:
            await self._owner.release_lease(self, self._ticket, self._running, error)
        finally:
            self.admission.leave()

    def mark_idle(self) -> None:
        """From now on the model may be unloaded, which ends the request."""
        self._running.leases.discard(self)
        self.admission.leave()
        self._owner.handle_event(scheduler.RequestIdle(self.model.id, self._ticket))

    def mark_active(self) -> None:
        """From now on it may not."""
        self._running.leases.add(self)
        self._owner.handle_event(scheduler.RequestActive(self.model.id, self._ticket))

    def confirm_progress(self) -> None:
        """The process has done some of its work: its last death is forgiven. For requests that have no end for long."""
        self.suspicion.clear()
        self.admission.leave()
        self._owner.reset_crashes(self.model)

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.release(error)


class LeaseIdleTimer:
    """Lets a lease rest while nothing is said for `within_s` seconds, and says so. To say something costs no timer."""

    def __init__(self, lease: ModelLease, within_s: float, resting: Callable[[], None] = lambda: None):
        self._lease = lease
        self._on_idle = resting
        self._within_s = within_s
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(within_s, self._check_idle)
        self._stopped = False

    def record_activity(self) -> None:
        """Something was said."""
        self._last = self._loop.time()
        if not self._timer and not self._stopped:
            self._lease.mark_active()
            self._timer = self._loop.call_later(self._within_s, self._check_idle)

    def stop(self) -> None:
        """Nothing more will be said."""
        self._stopped = True
        if self._timer:
            self._timer.cancel()

    def _check_idle(self) -> None:
        left = self._last + self._within_s - self._loop.time()
        self._timer = self._loop.call_later(left, self._check_idle) if left > 0 else None
        if not self._timer:
            self._lease.mark_idle()
            self._on_idle()


MAX_CRASHES = 6
"""A request is given up after so many, whatever else was there."""

ISOLATION_MARGIN_S = 5.0
"""A request that ended a process will have done so again in the time that it took before, and so much more."""

ISOLATION_S = 30.0
"""Longest time for which others wait for the first trial of a request; each further one may take `LONGER` times as long."""

ISOLATION_GROWTH = 4


@dataclass(slots=True, eq=False)
class CrashSuspicion:
    """What speaks against one request, or one live session, for one model."""

    max_crashes: int = 2
    """Deaths that are too many, if it was alone at one of them."""
    isolation_s: float = ISOLATION_S
    """Longest time for which others wait for its first trial."""
    suspected: bool = False
    """Whether the process it was in has died, and no other has served it since."""
    crashes: int = 0
    crashes_alone: int = 0
    """Deaths at which nobody else was there."""
    seconds_to_crash: float = 0.0
    """How long it had been there when the process died."""
    isolations: int = 0
    """Those it has had, and the one that it has."""

    @property
    def is_proven(self) -> bool:
        """Whether another process would die of it too, for all that is known."""
        return (self.crashes >= self.max_crashes and self.crashes_alone > 0) or self.crashes >= MAX_CRASHES

    @property
    def isolation_limit_s(self) -> float:
        """How long its trial may take."""
        return min(
            self.seconds_to_crash + ISOLATION_MARGIN_S, self.isolation_s * float(ISOLATION_GROWTH ** max(self.isolations - 1, 0))
        )

    def record_crash(self, *, alone: bool, within_s: float) -> None:
        """A process has died that served it."""
        self.suspected = True
        self.crashes += 1
        self.crashes_alone += alone
        self.seconds_to_crash = within_s

    def clear(self) -> None:
        """It was served: nothing speaks against it."""
        self.suspected, self.crashes, self.crashes_alone = False, 0, 0


@dataclass(slots=True)
class IsolationQueue:
    """The trials of one model."""

    pending: int = 0
    """Suspects that wait for their trial, and the one that has it."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    empty: asyncio.Event = field(default_factory=asyncio.Event)


class LeaseAdmission:
    """The way in of one request: at once, after the trials of others, or by a trial of its own. Leave it in any case."""

    def __init__(self, court: IsolationQueue, suspicion: CrashSuspicion):
        self._queue = court
        self._suspicion = suspicion
        self._timer: asyncio.TimerHandle | None = None
        self.isolated = False
        """Whether nobody else is let in because of this one."""
        self.started_at = time.monotonic()

    async def wait_for_turn(self) -> None:
        """Wait until it may."""
        court = self._queue
        if not self._suspicion.suspected:
            while court.pending:
                await court.empty.wait()
            return
        court.pending += 1
        court.empty.clear()
        try:
            await court.lock.acquire()
        except BaseException:
            self._remove_pending()
            raise
        self.isolated = True
        self._suspicion.suspected = False  # unless this process dies too
        self._suspicion.isolations += 1

    def start(self) -> None:
        """The model is there: from now on its time counts."""
        self.started_at = time.monotonic()
        if self.isolated:
            self._timer = asyncio.get_running_loop().call_later(self._suspicion.isolation_limit_s, self.leave)

    def leave(self) -> None:
        """It has had its trial: others may come in."""
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
    """Those of all models."""

    def __init__(self) -> None:
        self._queues: dict[str, IsolationQueue] = {}

    def create_admission(self, model: str, suspicion: CrashSuspicion) -> LeaseAdmission:
        """The way of a request to this model."""
        if not (queue := self._queues.get(model)):
            queue = self._queues[model] = IsolationQueue()
        return LeaseAdmission(queue, suspicion)


SESSION_RETRY_AFTER_S = 5.0
"""What one too many is told."""


class LiveSessionRegistry:
    """Everybody who opens one is listed here until it is over, its last events told."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._stops: set[Callable[[], None]] = set()
        self._places = PlaceRegistry()
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        self._shutting_down = False

    @asynccontextmanager
    async def register_session(self, model: str, most: int, stop: Callable[[], None]) -> AsyncIterator[None]:
        """List one for the duration of the block. `stop` tells it that the server goes down. One with a slow client may have
        to go for it.

        Raises:
            BusyError: the model has as many as it may.
            ShuttingDownError: the server goes down.
        """
        while self._count[model] >= most and not self._shutting_down and await self._places.make_room(model):
            pass  # another newcomer may have been faster
        if self._shutting_down:
            raise make_session_shutdown_error()
        if self._count[model] >= most:
            message = f"{model} already has {most} live sessions (live.sessions); try again soon."
            raise BusyError(message, retry_after=SESSION_RETRY_AFTER_S)
        self._count[model] += 1
        self._stops.add(stop)
        self._all_ended.clear()
        self._places.add_place(model, stop)
        try:
            yield
        finally:
            self._places.remove_place(model, stop)
            self._count[model] -= 1
            self._stops.discard(stop)
            if not self._stops:
                self._all_ended.set()

    async def end_all(self) -> None:
        """Take no new ones, have those there are give their last texts, and wait until all are over."""
        self._shutting_down = True
        for stop in list(self._stops):
            stop()
        await self._all_ended.wait()


def make_session_shutdown_error() -> ShuttingDownError:
    """What the clients of sessions are told."""
    return ShuttingDownError(
        "The server is shutting down; open the session again in a moment.", retry_after=SESSION_RETRY_AFTER_S
    )
