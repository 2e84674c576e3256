"""The scheduler in time: it is told what happens, and what it decides is carried out."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

from eardrum.gateway import scheduler
from eardrum.gateway.inventory import Model
from eardrum.gateway.scheduler import Scheduler, State


class Dispatch:
    """Lends the scheduler a clock, hands out what it grants, and comes back when something is due.

    `start` and `stop` begin and end a life of a model, by its id. `changed` is told when any model's state has become another.
    """

    def __init__(
        self,
        machine: Scheduler,
        *,
        start: Callable[[str], None],
        stop: Callable[[str], None],
        changed: Callable[[], None],
    ):
        self.slots = machine.slots
        """What is known of each model. To be read only."""
        self._machine = machine
        self._start = start
        self._stop = stop
        self._changed = changed
        self._states: list[State] = []
        self._tickets = itertools.count()
        self._granted: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def tell(self, event: scheduler.Event) -> None:
        """Something has happened."""
        for action in self._machine.handle(event, time.monotonic()):
            self._carry_out(action)
        self._set_timer()
        states = [slot.state for slot in self.slots.values()]
        if states != self._states:  # most events change none
            self._states = states
            self._changed()

    async def turn(self, model: Model) -> int:
        """Wait until a request may use the model, and return the ticket that `done` takes back.

        Raises:
            EardrumError: it may not, in words for the client.
        """
        ticket, granted = next(self._tickets), asyncio.get_running_loop().create_future()
        self._granted[ticket] = granted
        try:
            self.tell(wanted(model, ticket))
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                granted.exception()  # seen; asyncio would otherwise complain of an error nobody asked for
            self.tell(scheduler.Cancelled(model.id, ticket))
            self.done(model.id, ticket)  # it may have been granted at that very moment
            raise
        finally:
            del self._granted[ticket]
        return ticket

    def done(self, model: str, ticket: int) -> None:
        """The request is over."""
        self.tell(scheduler.Done(model, ticket))

    def close(self) -> None:
        """Nothing is due any more."""
        if self._timer:
            self._timer.cancel()

    def _carry_out(self, action: scheduler.Action) -> None:
        match action:
            case scheduler.Grant(ticket):
                if (granted := self._granted.get(ticket)) and not granted.done():
                    granted.set_result(None)
            case scheduler.Reject(ticket, error):
                if (granted := self._granted.get(ticket)) and not granted.done():
                    granted.set_exception(error)
            case scheduler.Start(model):
                self._start(model)
            case scheduler.Stop(model):
                self._stop(model)

    def _set_timer(self) -> None:
        """Come back when the first time to live, or somebody's patience, is over.

        To come once too early costs less than to move the timer with every request, which makes its model live longer.
        """
        due = self._machine.due
        if due is None or (self._timer and self._due <= due):
            return
        if self._timer:
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.tell(scheduler.Tick())


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
