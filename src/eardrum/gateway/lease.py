"""The right to use a ready model for one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from eardrum.gateway import scheduler
from eardrum.gateway.inventory import Model
from eardrum.gateway.upstreams.foreign import ForeignUpstream
from eardrum.gateway.upstreams.upstream import RunnerUpstream


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease holds its model. One that rests, such as that of a silent WebSocket, does not."""

    upstream: RunnerUpstream | ForeignUpstream
    _model: str
    _ticket: int
    _tell: Callable[[scheduler.Event], None]
    served: Callable[[], None]
    """Tells that the process has done some of its work, where a request has no end for long: its last death is forgiven."""

    def rest(self) -> None:
        """From now on the model may be unloaded, which ends the request."""
        self._tell(scheduler.Rest(self._model, self._ticket))

    def resume(self) -> None:
        """From now on it may not."""
        self._tell(scheduler.Resume(self._model, self._ticket))


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


def wanted(model: Model, ticket: int) -> scheduler.Wanted:
    """What the scheduler is told of a request, with all that the config says of the model's."""
    return scheduler.Wanted(
        model.id,
        ticket,
        limit=model.max_requests,
        ttl=model.ttl,
        concurrency=model.concurrency,
        at_once=model.at_once,
        priority=model.priority,
    )
