"""The right to use a ready model for one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from eardrum.gateway import scheduler
from eardrum.gateway.inventory import Model
from eardrum.gateway.processes.lives import Life
from eardrum.gateway.trials import Suspicion, Trial
from eardrum.gateway.upstreams.foreign import ForeignUpstream
from eardrum.gateway.upstreams.upstream import RunnerUpstream


@dataclass(slots=True, eq=False)
class Running:
    """A model that serves, and the task that sees to its end."""

    life: Life
    task: asyncio.Task[None]
    since: float
    """Unix time at which it was ready."""
    forced: bool = False
    """Whether it was told to end whatever it was doing."""
    served: set[Lease] = field(default_factory=set)
    """The leases that are in its hands, and if it has died those that were. Those that rest are not."""

    @property
    def pid(self) -> int | None:
        """Its process; None if it is another server's."""
        return self.life.pid


class Owner(Protocol):
    """Who lets requests in, and sees to what becomes of the model meanwhile."""

    async def admit(self, lease: Lease) -> tuple[int, Running]:
        """The beginning of a lease: its ticket, and the model that serves."""

    async def dismiss(self, lease: Lease, ticket: int, running: Running, error: BaseException | None) -> None:
        """The end of a lease, after this error or without one."""

    def trial(self, lease: Lease) -> Trial:
        """The lease's way in, which may wait for that of others."""

    def tell(self, event: scheduler.Event) -> None:
        """Something has happened to a request."""

    def served(self, model: Model) -> None:
        """The model's process has done some of its work."""


class Lease:
    """A request's time with a ready model, as a context, or from `begin` to `end`. Its owner lets it in.

    A lease holds its model. One that rests, such as that of a silent WebSocket, does not.
    """

    __slots__ = ("_owner", "_running", "_ticket", "model", "suspicion", "trial")

    def __init__(self, owner: Owner, model: Model, suspicion: Suspicion | None = None):
        self.model = model
        self.suspicion = suspicion or Suspicion()
        """What speaks against the request, from one lease to the next."""
        self.trial: Trial
        self._owner = owner
        self._running: Running
        self._ticket: int

    @property
    def upstream(self) -> RunnerUpstream | ForeignUpstream:
        """The way to the model."""
        return self._running.life.upstream

    async def begin(self) -> None:
        """Wait for the model, which is started first if it must be.

        Raises:
            EardrumError: as `Supervisor.hold`.
        """
        self.trial = self._owner.trial(self)
        await self.trial.enter()
        try:
            self._ticket, self._running = await self._owner.admit(self)
        except BaseException:
            self.trial.leave()
            raise
        self._running.served.add(self)
        self.trial.begin()

    async def end(self, error: BaseException | None = None) -> None:
        """Let go of the model, after this error or without one.

        Raises:
            RunnerCrashedError: it was one too: how the process ended.
            UnloadedError, ShuttingDownError: it was one, and the process was meant to end.
        """
        try:
            await self._owner.dismiss(self, self._ticket, self._running, error)
        finally:
            self.trial.leave()

    def rest(self) -> None:
        """From now on the model may be unloaded, which ends the request."""
        self._running.served.discard(self)
        self.trial.leave()
        self._owner.tell(scheduler.Rest(self.model.id, self._ticket))

    def resume(self) -> None:
        """From now on it may not."""
        self._running.served.add(self)
        self._owner.tell(scheduler.Resume(self.model.id, self._ticket))

    def served(self) -> None:
        """The process has done some of its work: its last death is forgiven. For requests that have no end for long."""
        self.suspicion.clear()
        self.trial.leave()
        self._owner.served(self.model)

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.end(error)


class Silence:
    """Lets a lease rest while nothing is said for `within_s` seconds, and says so. To say something costs no timer."""

    def __init__(self, lease: Lease, within_s: float, resting: Callable[[], None] = lambda: None):
        self._lease = lease
        self._resting = resting
        self._within_s = within_s
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(within_s, self._look)
        self._over = False

    def broken(self) -> None:
        """Something was said."""
        self._last = self._loop.time()
        if not self._timer and not self._over:
            self._lease.resume()
            self._timer = self._loop.call_later(self._within_s, self._look)

    def over(self) -> None:
        """Nothing more will be said."""
        self._over = True
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        left = self._last + self._within_s - self._loop.time()
        self._timer = self._loop.call_later(left, self._look) if left > 0 else None
        if not self._timer:
            self._lease.rest()
            self._resting()
