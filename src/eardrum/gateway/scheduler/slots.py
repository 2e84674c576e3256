"""What is known of one model."""

from __future__ import annotations

from dataclasses import dataclass, field

from eardrum.errors import EardrumError
from eardrum.gateway.rules import LEAVING
from eardrum.gateway.scheduler.events import Going, State

EVERYBODY = 1 << 62
"""A barrier behind which nobody is: more arrivals than there will be."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that has not been granted."""

    order: int
    """Its place among all arrivals, of all models."""
    since: float


@dataclass(slots=True)
class Slot:
    """One model: its state, and who waits for it or uses it."""

    model: str
    state: State = State.STOPPED
    waiting: dict[int, Waiter] = field(default_factory=dict)
    """By ticket, in the order of their arrival."""
    active: set[int] = field(default_factory=set)
    """Granted tickets."""
    resting: set[int] = field(default_factory=set)
    """Those of them that do not hold the model."""
    at_once: int = 0
    priority: int = 0
    ttl: float = 0.0
    idle_since: float = 0.0
    """When it was last without work; meaningless while it has some."""
    turn: int = 0
    """Who arrived before this is served in this life of the model: they were there when it became ready."""
    barrier: int = EVERYBODY
    """While it drains: who arrived before this is still served."""
    unloading: bool = False
    """It drains for good. A model that drains for a swap may go on if nobody waits for that any more."""
    going: Going | None = None
    """Why it is on its way out, if it is."""
    gone: Going | None = None
    """Why it went the last time."""
    failures: int = 0
    retry_at: float = 0.0
    error: EardrumError | None = None

    @property
    def up(self) -> bool:
        """Whether it has a process, and memory, from its start to its end."""
        return self.state not in (State.STOPPED, State.FAILED)

    @property
    def serves(self) -> bool:
        """Whether requests can be granted."""
        return self.state in (State.READY, State.DRAINING)

    @property
    def working(self) -> int:
        """Requests that hold it."""
        return len(self.active) - len(self.resting)

    @property
    def held(self) -> int:
        """Requests it has, waiting ones included."""
        return len(self.active) + len(self.waiting)

    @property
    def head(self) -> Waiter:
        """Who has waited longest; there must be one."""
        return next(iter(self.waiting.values()))

    @property
    def has_room(self) -> bool:
        """Whether it serves fewer requests than it may at a time."""
        return not 0 < self.at_once <= self.working

    @property
    def admits(self) -> bool:
        """Whether the next one who waits may come in."""
        return bool(self.waiting) and self.head.order < self.barrier and self.has_room

    @property
    def drained(self) -> bool:
        """Whether it has nothing left to do before it stops."""
        return self.state is State.DRAINING and not self.working and not (self.waiting and self.head.order < self.barrier)

    @property
    def unload_at(self) -> float | None:
        """When its time to live is over, if nobody comes."""
        return self.idle_since + self.ttl if self.state is State.READY and self.ttl and not self.working else None

    def used(self, now: float) -> float:
        """When it was last used, for rules that care."""
        if self.unloading or self.state in (State.DRAINING, State.STOPPING):
            return LEAVING
        return now if self.working or self.waiting else self.idle_since

    def come_up(self, turn: int, now: float) -> None:
        """It serves. If it was to be unloaded meanwhile, then only who is there already."""
        self.state, self.turn, self.idle_since = State.READY, turn, now
        self.failures, self.error = 0, None
        if self.unloading and self.going:
            self.drain(turn, self.going, for_good=True)

    def drain(self, barrier: int, going: Going, *, for_good: bool) -> None:
        """Serve only who arrived before `barrier`."""
        self.state, self.barrier, self.unloading = State.DRAINING, barrier, for_good
        self.going = going

    def serve_on(self) -> None:
        """What it drained for is called off."""
        self.state, self.barrier, self.going = State.READY, EVERYBODY, None

    def go_down(self, state: State, why: Going) -> None:
        """Its process is gone."""
        self.state, self.barrier, self.unloading = state, EVERYBODY, False
        self.going, self.gone = None, why
