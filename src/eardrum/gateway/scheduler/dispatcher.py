"""Runs the scheduler in real time: feeds it events, carries out its actions, and sets its timer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

from eardrum.concurrency import drop_error
from eardrum.gateway import scheduler
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState, Scheduler


class SchedulerDispatcher:
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
        self.models = machine.models
        """What is known of each model. To be read only."""
        self._scheduler = machine
        self._start = start
        self._stop = stop
        self._on_change = changed
        self._states: list[ModelState] = []
        self._tickets = itertools.count()
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def handle_event(self, event: scheduler.SchedulerEvent) -> None:
        """Something has happened."""
        for action in self._scheduler.handle_event(event, time.monotonic()):
            self._carry_out(action)
        self._set_timer()
        states = [slot.state for slot in self.models.values()]
        if states != self._states:  # most events change none
            self._states = states
            self._on_change()

    async def wait_for_turn(self, model: Model) -> int:
        """Wait until a request may use the model, and return the ticket that `done` takes back.

        Raises:
            EardrumError: it may not, in words for the client.
        """
        ticket, granted = next(self._tickets), asyncio.get_running_loop().create_future()
        self._pending[ticket] = granted
        try:
            self.handle_event(scheduler.RequestArrived(model.id, ticket, model.scheduling))
            await granted
        except asyncio.CancelledError:
            if granted.done():
                drop_error(granted)
            self.handle_event(scheduler.RequestCancelled(model.id, ticket))
            self.release_ticket(model.id, ticket)  # it may have been granted at that very moment
            raise
        finally:
            del self._pending[ticket]
        return ticket

    def release_ticket(self, model: str, ticket: int) -> None:
        """The request is over."""
        self.handle_event(scheduler.RequestFinished(model, ticket))

    def close(self) -> None:
        """Nothing is due any more."""
        if self._timer:
            self._timer.cancel()

    def _carry_out(self, action: scheduler.SchedulerAction) -> None:
        match action:
            case scheduler.GrantRequest(ticket):
                if (granted := self._pending.get(ticket)) and not granted.done():
                    granted.set_result(None)
            case scheduler.RejectRequest(ticket, error):
                if (granted := self._pending.get(ticket)) and not granted.done():
                    granted.set_exception(error)
            case scheduler.StartModel(model):
                self._start(model)
            case scheduler.StopModel(model):
                self._stop(model)

    def _set_timer(self) -> None:
        """Come back when the first time to live, or somebody's patience, is over.

        To come once too early costs less than to move the timer with every request, which makes its model live longer.
        """
        due = self._scheduler.next_deadline
        if due is None or (self._timer and self._due <= due):
            return
        if self._timer:
            self._timer.cancel()
        self._due = due
        self._timer = asyncio.get_running_loop().call_later(max(0.0, due - time.monotonic()), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.handle_event(scheduler.TimerFired())
