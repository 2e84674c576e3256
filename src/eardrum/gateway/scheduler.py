"""Which models are up and whose turn it is. Pure: events and the time go in, actions come out.

No clock, lock, log or I/O in here, so every hard case is a test that passes time in. The supervisor carries
the actions out and reports back what became of them.

    stopped ──wanted──▶ starting ──ready──▶ ready ──exited──▶ stopped
                           │                   └──shutdown──▶ stopping ──exited──▶ stopped
                           └──start failed──▶ failed ──wanted, after retry_at──▶ starting
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
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request needs the model; `limit` is how many it may hold, this one included."""

    model: str
    ticket: int
    limit: int


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
class Shutdown:
    """The server goes down: stop everything, start nothing."""


Event = Wanted | Done | Cancelled | Ready | StartFailed | Exited | Shutdown


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
    failures: int = 0
    retry_at: float = 0.0
    error: EardrumError | None = None


class Scheduler:
    """Owns every transition. `handle` is the only way in."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        """Read by whoever reports states; changed only here."""
        self._down = False

    def handle(self, event: Event, now: float) -> list[Action]:  # noqa: PLR0911 -- a table of transitions
        """The actions that follow from `event` at time `now` (seconds of any steady clock)."""
        match event:
            case Wanted():
                return self._wanted(event, now)
            case Done(model, ticket):
                self._slot(model).active.discard(ticket)
                return []
            case Cancelled(model, ticket):
                if ticket in self._slot(model).waiting:
                    self._slot(model).waiting.remove(ticket)
                return []
            case Ready(model):
                return self._ready(self._slot(model))
            case StartFailed(model, error):
                return self._failed(self._slot(model), error, now)
            case Exited(model):
                return self._exited(model, self._slot(model))
            case Shutdown():
                return self._shutdown()

    def _slot(self, model: str) -> Slot:
        return self.slots.setdefault(model, Slot())

    def _wanted(self, event: Wanted, now: float) -> list[Action]:
        slot = self._slot(event.model)
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

    def _start(self, model: str, slot: Slot) -> list[Action]:
        """Start the model unless it is on its way up, or still on its way down."""
        if slot.state in (State.STARTING, State.STOPPING):
            return []
        slot.state = State.STARTING
        return [Start(model)]

    def _ready(self, slot: Slot) -> list[Action]:
        if slot.state is not State.STARTING:
            return []
        slot.state, slot.failures, slot.error = State.READY, 0, None
        granted = list(slot.waiting)
        slot.waiting.clear()
        slot.active.update(granted)
        return [Grant(ticket) for ticket in granted]

    def _failed(self, slot: Slot, error: EardrumError, now: float) -> list[Action]:
        if slot.state is not State.STARTING:
            slot.state = State.STOPPED  # it was being stopped anyway
            return []
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
            if slot.state in (State.STARTING, State.READY):
                slot.state = State.STOPPING
                actions.append(Stop(model))
        return actions


def _reject_all(slot: Slot, error: EardrumError) -> list[Action]:
    tickets = list(slot.waiting)
    slot.waiting.clear()
    return [Reject(ticket, error) for ticket in tickets]


def shutting_down() -> EardrumError:
    """What every client is told from then on."""
    return ShuttingDownError("The server is shutting down; try again in a moment.", retry_after=RETRY_AFTER_S)
