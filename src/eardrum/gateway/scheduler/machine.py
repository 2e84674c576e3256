"""The state machine: takes events and the time, owns every transition, answers with actions.

No clock, lock, log or I/O in here, so every hard case is a test that passes time in. The supervisor carries the actions
out and reports back what became of them.

    stopped ──its turn──▶ starting ──ready──▶ ready ──unload, swap──▶ draining ──nothing left──▶ stopping ──exited──▶ stopped
                             │                  ├──shutdown──────────────────────────────────────▲
                             │                  └──exited──▶ stopped
                             └──start failed──▶ failed ──wanted, after retry_at──▶ stopped
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eardrum.errors import (
    BusyError,
    ConcurrencyLimitError,
    EardrumError,
    ModelCoolingError,
    ModelNotFoundError,
    ShuttingDownError,
    UnloadedError,
)
from eardrum.gateway.rules import Nothing, Rules
from eardrum.gateway.scheduler import events
from eardrum.gateway.scheduler.events import Action, Event, Going, Grant, Reason, Reject, Start, State, Stop
from eardrum.gateway.scheduler.slots import Slot, Waiter
from eardrum.gateway.scheduler.turns import deadlines, turns

BACK_OFF_S = (2.0, 5.0, 15.0, 60.0)
"""Pause after the first, second ... failed start in a row."""

RETRY_AFTER_S = 5.0
"""What a full model tells its clients."""

CONCURRENCY_RETRY_AFTER_S = 1.0
"""What llama-swap tells them."""

PATIENCE_S = 10.0


class Scheduler:
    """Owns every transition. `handle` is the only way in."""

    def __init__(self, rules: Rules | None = None, patience: float = PATIENCE_S) -> None:
        self.slots: dict[str, Slot] = {}
        """Read by whoever reports states; changed only here."""
        self._rules: Rules = rules or Nothing()
        self._patience = patience
        self._arrivals = 0
        self._now = 0.0
        self._down = False
        self._on: dict[type, Callable[[Any, float], list[Action]]] = {
            events.Wanted: self._wanted,
            events.Done: self._done,
            events.Cancelled: self._cancelled,
            events.Rest: self._rest,
            events.Resume: self._resume,
            events.Ready: self._ready,
            events.StartFailed: self._failed,
            events.Exited: self._exited,
            events.Unload: self._unload,
            events.Keep: self._keep,
            events.Reconfigured: self._reconfigured,
            events.Remeasured: self._remeasured,
            events.Tick: self._tick,
            events.Shutdown: self._shutdown,
        }

    def handle(self, event: Event, now: float) -> list[Action]:
        """The actions that follow from `event` at time `now` (seconds of any steady clock)."""
        self._now = now
        return self._on[type(event)](event, now) + self._settled(now)

    @property
    def due(self) -> float | None:
        """When to come back with a `Tick`, if ever."""
        times: list[float] = []
        for slot in self.slots.values():
            if slot.waiting:
                times += [at for at in deadlines(slot, self._patience) if at > self._now]
            elif slot.ttl and (at := slot.unload_at) is not None:
                times.append(at)
        return min(times, default=None)

    def _slot(self, model: str) -> Slot:
        return self.slots.get(model) or self.slots.setdefault(model, Slot(model))

    # What is told about requests.

    def _wanted(self, event: events.Wanted, now: float) -> list[Action]:
        slot = self._slot(event.model)
        slot.ttl, slot.at_once, slot.priority = event.ttl, event.at_once, event.priority
        if error := self._refusal(event, slot, now):
            return [Reject(event.ticket, error)]
        if slot.state is State.FAILED:
            slot.state = State.STOPPED
        self._arrivals += 1
        if slot.state is State.READY and slot.has_room and not self._restless:
            slot.active.add(event.ticket)
            return [Grant(event.ticket)]
        slot.waiting[event.ticket] = Waiter(self._arrivals, now)
        return []

    def _refusal(self, event: events.Wanted, slot: Slot, now: float) -> EardrumError | None:
        if self._down:
            return shutting_down()
        if 0 < event.concurrency <= slot.held:
            message = f"{event.model} already holds {event.concurrency} requests (concurrencyLimit); try again soon."
            return ConcurrencyLimitError(message, retry_after=CONCURRENCY_RETRY_AFTER_S)
        if slot.held >= event.limit:
            return BusyError(f"{event.model} already holds {event.limit} requests; try again soon.", retry_after=RETRY_AFTER_S)
        if slot.state is State.FAILED and now < slot.retry_at and slot.error:
            pause = slot.retry_at - now
            message = f"{slot.error.message} The next attempt is in {pause:.0f} s."
            return ModelCoolingError(message, param="model", retry_after=pause)
        return None

    def _done(self, event: events.Done, now: float) -> list[Action]:
        slot = self._slot(event.model)
        if event.ticket in slot.active:
            rested = event.ticket in slot.resting
            slot.active.discard(event.ticket)
            slot.resting.discard(event.ticket)
            slot.idle_since = slot.idle_since if rested else now
        return []

    def _cancelled(self, event: events.Cancelled, _: float) -> list[Action]:
        slot = self._slot(event.model)
        slot.waiting.pop(event.ticket, None)
        if slot.state is State.STARTING and slot.unloading and not slot.waiting and slot.going:
            return self._stop(slot, slot.going)
        return []

    def _rest(self, event: events.Rest, now: float) -> list[Action]:
        slot = self._slot(event.model)
        if event.ticket in slot.active - slot.resting:
            slot.resting.add(event.ticket)
            slot.idle_since = now
        return []

    def _resume(self, event: events.Resume, now: float) -> list[Action]:
        slot = self._slot(event.model)
        if event.ticket in slot.resting:
            slot.resting.discard(event.ticket)
            slot.idle_since = now
        return []

    # What is told about processes.

    def _ready(self, event: events.Ready, now: float) -> list[Action]:
        slot = self._slot(event.model)
        if slot.state is State.STARTING:
            slot.come_up(self._arrivals + 1, now)
        return []

    def _failed(self, event: events.StartFailed, now: float) -> list[Action]:
        slot = self._slot(event.model)
        if slot.state is not State.STARTING:  # it was being stopped anyway
            slot.go_down(State.STOPPED, slot.going or Going(Reason.FAILED))
            return []
        slot.go_down(State.FAILED, Going(Reason.FAILED))
        slot.error = event.error
        slot.retry_at = now + BACK_OFF_S[min(slot.failures, len(BACK_OFF_S) - 1)]
        slot.failures += 1
        return _reject_all(slot, event.error)

    def _exited(self, event: events.Exited, _: float) -> list[Action]:
        slot = self._slot(event.model)
        meant = slot.going if slot.state is State.STOPPING else None
        slot.go_down(State.STOPPED, meant or Going(Reason.CRASH))
        return []

    # What is told about the server.

    def _unload(self, event: events.Unload, _: float) -> list[Action]:
        """Who waits for it is not forgotten, except with force."""
        slot = self._slot(event.model)
        going = Going(Reason.FORCE if event.force else Reason.HAND)
        if event.force:
            return _reject_all(slot, unloaded(event.model)) + (
                self._stop(slot, going) if slot.up and slot.state is not State.STOPPING else []
            )
        if slot.state is State.STARTING and slot.waiting:
            slot.unloading, slot.going = True, going
            return []
        return self._leave(slot, going)

    def _leave(self, slot: Slot, going: Going) -> list[Action]:
        """Make the model end as soon as it has finished what it has begun. A start is nothing begun."""
        if slot.state is State.STARTING:
            return self._stop(slot, going)
        if slot.serves:
            slot.drain(0, going, for_good=True)
        return []

    def _keep(self, event: events.Keep, _: float) -> list[Action]:
        self._slot(event.model).ttl = event.ttl
        return []

    def _reconfigured(self, event: events.Reconfigured, now: float) -> list[Action]:
        self._rules, self._patience = event.rules, event.patience
        actions: list[Action] = []
        for model in event.changed | event.removed:
            slot = self._slot(model)
            slot.failures, slot.retry_at = 0, 0.0
            actions += self._leave(slot, Going(Reason.RELOAD))
            if model in event.removed:
                actions += _reject_all(slot, ModelNotFoundError(f"{model} is no longer in the config."))
        return actions + self._obey(now)

    def _obey(self, now: float) -> list[Action]:
        """Let go what the rules, which are new, do not allow beside what was used later."""
        actions: list[Action] = []
        staying: list[str] = []
        up = [slot for slot in self.slots.values() if slot.up and slot.state is not State.STOPPING and not slot.unloading]
        for slot in sorted(up, key=lambda slot: slot.used(now), reverse=True):
            if self._rules.allows([*staying, slot.model]):
                staying.append(slot.model)
            else:
                actions += self._leave(slot, Going(Reason.RELOAD))
        return actions

    def _remeasured(self, event: events.Remeasured, _: float) -> list[Action]:
        self._rules = event.rules
        return []

    def _tick(self, _: events.Tick, now: float) -> list[Action]:
        for slot in self.slots.values():
            if slot.unload_at is not None and slot.unload_at <= now:
                self._leave(slot, Going(Reason.TTL))
        return []

    def _shutdown(self, _: events.Shutdown, __: float) -> list[Action]:
        self._down = True
        actions: list[Action] = []
        for slot in self.slots.values():
            actions += _reject_all(slot, shutting_down())
            if slot.up and slot.state is not State.STOPPING:
                actions += self._stop(slot, Going(Reason.SHUTDOWN))
        return actions

    # What follows, whatever was told.

    def _settled(self, now: float) -> list[Action]:
        """Let in who may come in, start what may start, stop what has drained."""
        if not self._restless:
            return []
        actions = self._take_turns(now)
        for slot in self.slots.values():
            while slot.serves and slot.admits:
                ticket = next(iter(slot.waiting))
                del slot.waiting[ticket]
                slot.active.add(ticket)
                actions.append(Grant(ticket))
            if slot.drained and slot.going:
                actions += self._stop(slot, slot.going)
        return actions

    @property
    def _restless(self) -> bool:
        """Whether anybody waits, or drains for somebody who may have stopped waiting."""
        return any(slot.waiting or slot.state is State.DRAINING for slot in self.slots.values())

    def _take_turns(self, now: float) -> list[Action]:
        decided = turns(self.slots, self._rules, self._patience, now)
        for slot in self.slots.values():
            if slot.model in decided.barriers:
                slot.drain(decided.barriers[slot.model], decided.going[slot.model], for_good=False)
            elif slot.state is State.DRAINING and not slot.unloading:
                slot.serve_on()
        actions = [action for slot in decided.stop.values() for action in self._stop(slot, decided.going[slot.model])]
        for slot in decided.start:
            slot.state = State.STARTING
            actions.append(Start(slot.model))
        return actions

    def _stop(self, slot: Slot, going: Going) -> list[Action]:
        slot.state, slot.going = State.STOPPING, going
        return [Stop(slot.model)]


def _reject_all(slot: Slot, error: EardrumError) -> list[Action]:
    tickets = list(slot.waiting)
    slot.waiting.clear()
    return [Reject(ticket, error) for ticket in tickets]


def shutting_down() -> EardrumError:
    """What every client is told from then on."""
    return ShuttingDownError("The server is shutting down; try again in a moment.", retry_after=RETRY_AFTER_S)


def unloaded(model: str) -> EardrumError:
    """What the clients of a model are told that is unloaded by force."""
    return UnloadedError(f"{model} was unloaded by force; try again.", retry_after=RETRY_AFTER_S)
