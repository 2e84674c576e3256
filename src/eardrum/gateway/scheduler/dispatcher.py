"""Runs the scheduler in real time: feeds it events, carries out its actions, and sets its timer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from operator import attrgetter

from eardrum.concurrency import drop_error
from eardrum.gateway import scheduler
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState, Scheduler

GET_STATE = attrgetter("state")


class SchedulerDispatcher:
    """Passes events and the time to the scheduler, and carries out its actions.

    `start_model` and `stop_model` get the id of a model. `on_change` is called after the state of any model has changed.
    """

    def __init__(
        self,
        state_machine: Scheduler,
        *,
        start_model: Callable[[str], None],
        stop_model: Callable[[str], None],
        on_change: Callable[[], None],
    ):
        self.models = state_machine.models
        """The state of each model; read only."""
        self._scheduler = state_machine
        self._start_model = start_model
        self._stop_model = stop_model
        self._on_change = on_change
        self._states: list[ModelState] = []
        self._tickets = itertools.count()
        self._pending: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def handle_event(self, event: scheduler.SchedulerEvent) -> None:
        """Pass an event to the scheduler, and carry out the actions."""
        for action in self._scheduler.handle_event(event, time.monotonic()):
            self._carry_out(action)
        self._set_timer()
        states = list(map(GET_STATE, self.models.values()))
        if states != self._states:  # most events change none
            self._states = states
            self._on_change()

    async def wait_for_turn(self, model: Model) -> int:
        """Wait until a request may use the model, and return its ticket, for `release_ticket`.

        Raises:
            EardrumError: the scheduler rejects the request.
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
            self.release_ticket(model.id, ticket)  # it may have been granted in the same moment
            raise
        finally:
            del self._pending[ticket]
        return ticket

    def release_ticket(self, model: str, ticket: int) -> None:
        """Report that a granted request has finished."""
        self.handle_event(scheduler.RequestFinished(model, ticket))

    def close(self) -> None:
        """Cancel the timer."""
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
                self._start_model(model)
            case scheduler.StopModel(model):
                self._stop_model(model)

    def _set_timer(self) -> None:
        """Set the timer to the next deadline: the end of a TTL or of a request's patience.

        A timer that fires too early is left alone: that costs less than moving it with every request, which extends a TTL.
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
