"""Which models are up and whose turn it is. Pure: events and the time go in, actions come out.

No clock, lock, log or I/O in here, so every hard case is a test that passes time in. The supervisor carries
the actions out and reports back what became of them.

    stopped ──wanted──▶ starting ──ready──▶ ready ──unload──▶ draining ──last done──▶ stopping ──exited──▶ stopped
                           │                  ├──idle for its ttl, shutdown──────────────▲
                           │                  └──exited──▶ stopped
                           └──start failed──▶ failed ──wanted, after retry_at──▶ starting

A draining model serves what it has begun; who comes now waits for its next life.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

from eardrum.errors import BusyError, EardrumError, ModelCoolingError, ShuttingDownError

BACK_OFF_S = (2.0, 5.0, 15.0, 60.0)
"""Pause after the first, second ... failed start in a row."""

RETRY_AFTER_S = 5.0
"""What a full model tells its clients."""


class State(StrEnum):
    """States of a model."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request needs the model; `limit` is how many it may hold, this one included.

    `ttl` is the time in seconds without a request after which the model is unloaded; 0 is never.
    """

    model: str
    ticket: int
    limit: int
    ttl: float = 0.0


@dataclass(frozen=True, slots=True)
class Done:
    """A granted request is over."""

    model: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A request gave up before it was granted."""

    model: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The model's process serves."""

    model: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The model's process did not become ready."""

    model: str
    error: EardrumError


@dataclass(frozen=True, slots=True)
class Exited:
    """A process that had been ready is gone, asked to or not."""

    model: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Somebody wants the model's memory back."""

    model: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `due` was reached."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The server goes down: stop everything, start nothing."""


Event = Wanted | Done | Cancelled | Ready | StartFailed | Exited | Unload | Tick | Shutdown


@dataclass(frozen=True, slots=True)
class Start:
    """Start the model's process."""

    model: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the model's process, also in the middle of its start."""

    model: str


@dataclass(frozen=True, slots=True)
class Grant:
    """The ticket's request may use the model."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Reject:
    """The ticket's request ends with this error."""

    ticket: int
    error: EardrumError


Action = Start | Stop | Grant | Reject


@dataclass(slots=True)
class Slot:
    """What is known of one model."""

    state: State = State.STOPPED
    waiting: deque[int] = field(default_factory=deque)
    active: set[int] = field(default_factory=set)
    ttl: float = 0.0
    idle_since: float = 0.0
    """When it was last without a request; meaningless while it has one."""
    failures: int = 0
    retry_at: float = 0.0
    error: EardrumError | None = None

    @property
    def unload_at(self) -> float | None:
        """When its time to live is over, if nobody comes."""
        if self.state is State.READY and self.ttl and not self.active:
            return self.idle_since + self.ttl
        return None


class Scheduler:
    """Owns every transition. `handle` is the only way in."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        """Read by whoever reports states; changed only here."""
        self._down = False

    def handle(self, event: Event, now: float) -> list[Action]:  # noqa: C901, PLR0911 -- a table of transitions
        """The actions that follow from `event` at time `now` (seconds of any steady clock)."""
        match event:
            case Wanted():
                return self._wanted(event, now)
            case Done(model, ticket):
                return self._done(model, ticket, now)
            case Cancelled(model, ticket):
                if ticket in self._slot(model).waiting:
                    self._slot(model).waiting.remove(ticket)
                return []
            case Ready(model):
                return self._ready(self._slot(model), now)
            case StartFailed(model, error):
                return self._failed(model, self._slot(model), error, now)
            case Exited(model):
                return self._exited(model, self._slot(model))
            case Unload(model):
                return self._unload(model)
            case Tick():
                due = [model for model, slot in self.slots.items() if slot.unload_at is not None and slot.unload_at <= now]
                return [action for model in due for action in self._unload(model)]
            case Shutdown():
                return self._shutdown()

    @property
    def due(self) -> float | None:
        """When to come back with a `Tick`, if ever."""
        return min((slot.unload_at for slot in self.slots.values() if slot.unload_at is not None), default=None)

    def _slot(self, model: str) -> Slot:
        return self.slots.setdefault(model, Slot())

    def _wanted(self, event: Wanted, now: float) -> list[Action]:
        slot = self._slot(event.model)
        slot.ttl = event.ttl
        if self._down:
            return [Reject(event.ticket, shutting_down())]
        if len(slot.waiting) + len(slot.active) >= event.limit:
            busy = BusyError(f"{event.model} already holds {event.limit} requests; try again soon.", retry_after=RETRY_AFTER_S)
            return [Reject(event.ticket, busy)]
        if slot.state is State.READY:
            slot.active.add(event.ticket)
            return [Grant(event.ticket)]
        if slot.state is State.FAILED and now < slot.retry_at and slot.error:
            pause = slot.retry_at - now
            message = f"{slot.error.message} The next attempt is in {pause:.0f} s."
            return [Reject(event.ticket, ModelCoolingError(message, param="model", retry_after=pause))]
        slot.waiting.append(event.ticket)
        return self._start(event.model, slot)

    def _done(self, model: str, ticket: int, now: float) -> list[Action]:
        slot = self._slot(model)
        if ticket not in slot.active:
            return []
        slot.active.discard(ticket)
        slot.idle_since = now
        return self._stop(model, slot) if slot.state is State.DRAINING and not slot.active else []

    def _unload(self, model: str) -> list[Action]:
        """Stop the model as soon as it has finished what it has begun. Who waits for it is not forgotten."""
        slot = self._slot(model)
        if slot.state is State.STARTING and not slot.waiting:
            return self._stop(model, slot)
        if slot.state is not State.READY:
            return []
        slot.state = State.DRAINING
        return [] if slot.active else self._stop(model, slot)

    def _stop(self, model: str, slot: Slot) -> list[Action]:
        slot.state = State.STOPPING
        return [Stop(model)]

    def _start(self, model: str, slot: Slot) -> list[Action]:
        """Start the model unless it is on its way up, or still on its way down."""
        if slot.state in (State.STARTING, State.DRAINING, State.STOPPING):
            return []
        slot.state = State.STARTING
        return [Start(model)]

    def _ready(self, slot: Slot, now: float) -> list[Action]:
        if slot.state is not State.STARTING:
            return []
        slot.state, slot.failures, slot.error, slot.idle_since = State.READY, 0, None, now
        granted = list(slot.waiting)
        slot.waiting.clear()
        slot.active.update(granted)
        return [Grant(ticket) for ticket in granted]

    def _failed(self, model: str, slot: Slot, error: EardrumError, now: float) -> list[Action]:
        if slot.state is not State.STARTING:
            return self._exited(model, slot)  # it was being stopped anyway
        slot.state, slot.error = State.FAILED, error
        slot.retry_at = now + BACK_OFF_S[min(slot.failures, len(BACK_OFF_S) - 1)]
        slot.failures += 1
        return _reject_all(slot, error)

    def _exited(self, model: str, slot: Slot) -> list[Action]:
        slot.state = State.STOPPED
        return self._start(model, slot) if slot.waiting and not self._down else []

    def _shutdown(self) -> list[Action]:
        self._down = True
        actions: list[Action] = []
        for model, slot in self.slots.items():
            actions += _reject_all(slot, shutting_down())
            if slot.state in (State.STARTING, State.READY, State.DRAINING):
                actions += self._stop(model, slot)
        return actions


def _reject_all(slot: Slot, error: EardrumError) -> list[Action]:
    tickets = list(slot.waiting)
    slot.waiting.clear()
    return [Reject(ticket, error) for ticket in tickets]


def shutting_down() -> EardrumError:
    """What every client is told from then on."""
    return ShuttingDownError("The server is shutting down; try again in a moment.", retry_after=RETRY_AFTER_S)
