"""Plans which waiting models may start now, and which loaded models make room for them.

Models that are waited for and not loaded stand in one queue. The first starts as soon as those that the policy evicts for it
are gone. They go when they are idle, or once somebody has waited `patience` seconds: from then on they serve only requests
that came earlier. Models that exclude nobody ahead of them may overtake.

`ScheduledModel` holds what the scheduler knows of one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from eardrum.config import SchedulingSettings
from eardrum.errors import EardrumError
from eardrum.gateway.scheduler.events import ModelState, UnloadCause, UnloadReason
from eardrum.gateway.scheduler.policies import CLAIMED, LEAVING, EvictionPolicy, attribute_evictions

NO_BARRIER = 1 << 62
"""A barrier behind which nobody is: more arrivals than there will be."""


@dataclass(frozen=True, slots=True)
class WaitingRequest:
    """A request that has not been granted."""

    order: int
    """Its place among all arrivals, of all models."""
    since: float


@dataclass(slots=True)
class ScheduledModel:
    """One model: its state, and who waits for it or uses it."""

    model: str
    state: ModelState = ModelState.STOPPED
    waiting: dict[int, WaitingRequest] = field(default_factory=dict)
    """By ticket, in the order of their arrival."""
    active: set[int] = field(default_factory=set)
    """Granted tickets."""
    idle: set[int] = field(default_factory=set)
    """Those of them that do not hold the model."""
    settings: SchedulingSettings = field(default_factory=SchedulingSettings)
    idle_since: float = 0.0
    """When it was last without work; meaningless while it has some."""
    served_before: int = 0
    """Who arrived before this is served in this life of the model: they were there when it became ready."""
    barrier: int = NO_BARRIER
    """While it drains: who arrived before this is still served."""
    unloading: bool = False
    """It drains for good. A model that drains for a swap may go on if nobody waits for that any more."""
    unload_cause: UnloadCause | None = None
    """Why it is on its way out, if it is."""
    last_unload: UnloadCause | None = None
    """Why it went the last time."""
    failures: int = 0
    retry_at: float = 0.0
    error: EardrumError | None = None

    @property
    def has_process(self) -> bool:
        """Whether it has a process, and memory, from its start to its end."""
        return self.state not in (ModelState.STOPPED, ModelState.FAILED)

    @property
    def is_serving(self) -> bool:
        """Whether requests can be granted."""
        return self.state in (ModelState.READY, ModelState.DRAINING)

    @property
    def busy_count(self) -> int:
        """Requests that hold it."""
        return len(self.active) - len(self.idle)

    @property
    def request_count(self) -> int:
        """Requests it has, waiting ones included."""
        return len(self.active) + len(self.waiting)

    @property
    def first_waiting(self) -> WaitingRequest:
        """Who has waited longest; there must be one."""
        return next(iter(self.waiting.values()))

    @property
    def has_room(self) -> bool:
        """Whether it serves fewer requests than it may at a time."""
        return not self.settings.max_concurrency or self.busy_count < self.settings.max_concurrency

    @property
    def can_admit(self) -> bool:
        """Whether the next one who waits may come in."""
        return bool(self.waiting) and self.first_waiting.order < self.barrier and self.has_room

    @property
    def is_drained(self) -> bool:
        """Whether it has nothing left to do before it stops."""
        return (
            self.state is ModelState.DRAINING
            and not self.busy_count
            and not (self.waiting and self.first_waiting.order < self.barrier)
        )

    @property
    def unload_at(self) -> float | None:
        """When its time to live is over, if nobody comes."""
        ttl = self.settings.ttl
        return self.idle_since + ttl if ttl and self.state is ModelState.READY and not self.busy_count else None

    def get_last_use(self, now: float) -> float:
        """When it was last used, for rules that care."""
        if self.unloading or self.state in (ModelState.DRAINING, ModelState.STOPPING):
            return LEAVING
        return now if self.busy_count or self.waiting else self.idle_since

    def mark_ready(self, turn: int, now: float) -> None:
        """It serves. If it was to be unloaded meanwhile, then only who is there already."""
        self.state, self.served_before, self.idle_since = ModelState.READY, turn, now
        self.failures, self.error = 0, None
        if self.unloading and self.unload_cause:
            self.drain(turn, self.unload_cause, for_good=True)

    def drain(self, barrier: int, going: UnloadCause, *, for_good: bool) -> None:
        """Serve only who arrived before `barrier`."""
        self.state, self.barrier, self.unloading = ModelState.DRAINING, barrier, for_good
        self.unload_cause = going

    def cancel_drain(self) -> None:
        """What it drained for is called off."""
        self.state, self.barrier, self.unload_cause = ModelState.READY, NO_BARRIER, None

    def mark_down(self, state: ModelState, why: UnloadCause) -> None:
        """Its process is gone."""
        self.state, self.barrier, self.unloading = state, NO_BARRIER, False
        self.unload_cause, self.last_unload = None, why


STARVATION_FACTOR = 2
"""Who has waited so many times the patience goes before everybody who came later, whatever their priority."""


@dataclass(slots=True)
class StartPlan:
    """What is to be done now."""

    start: list[ScheduledModel] = field(default_factory=list)
    stop: dict[str, ScheduledModel] = field(default_factory=dict)
    """Loaded for nobody, in the way of somebody."""
    barriers: dict[str, int] = field(default_factory=dict)
    """Models that drain for others, and before which arrival one must have come to be served by them still."""
    causes: dict[str, UnloadCause] = field(default_factory=dict)
    """Of all these, why."""


def plan_starts(slots: Mapping[str, ScheduledModel], rules: EvictionPolicy, patience: float, now: float) -> StartPlan:
    """Decide for everybody who waits."""
    decided = StartPlan()
    loaded = {slot.model: slot.get_last_use(now) for slot in slots.values() if slot.has_process}
    claims: dict[str, float] = {}
    for slot in _sort_queue(slots.values(), patience, now):
        evicted = attribute_evictions(rules, slot.model, loaded | claims)
        blocked = not evicted.keys().isdisjoint(claims) or _is_excluded(slot.model, rules, loaded, claims)
        if not blocked and not evicted:
            decided.start.append(slot)
            loaded[slot.model] = now
            continue
        claims[slot.model] = CLAIMED
        if not blocked:
            overdue = slot.first_waiting.since + patience <= now
            going = {model: UnloadCause(UnloadReason(kind), slot.model) for model, kind in evicted.items()}
            _make_room(decided, slot.first_waiting.order, [slots[model] for model in evicted], going, overdue=overdue)
    return decided


def list_deadlines(slot: ScheduledModel, patience: float) -> list[float]:
    """When the passing of time alone changes whose turn it is, as far as those are concerned who wait for this model."""
    return (
        [slot.first_waiting.since + times * patience for times in (1, STARVATION_FACTOR)]
        if slot.waiting and not slot.has_process
        else []
    )


def _sort_queue(slots: Iterable[ScheduledModel], patience: float, now: float) -> list[ScheduledModel]:
    """By priority, then arrival; but first those who would starve."""

    def place(slot: ScheduledModel) -> tuple[int, int, int]:
        starved = slot.first_waiting.since + STARVATION_FACTOR * patience <= now
        return (0, 0, slot.first_waiting.order) if starved else (1, -slot.settings.priority, slot.first_waiting.order)

    return sorted((slot for slot in slots if slot.waiting and not slot.has_process), key=place)


def _is_excluded(model: str, rules: EvictionPolicy, loaded: Mapping[str, float], claims: Mapping[str, float]) -> bool:
    """Whether it would have to go again for somebody ahead: to start it would be for nothing."""
    for ahead in claims:
        others = {other: used for other, used in {**loaded, **claims, model: CLAIMED}.items() if other != ahead}
        if model in rules.find_evictions(ahead, others):
            return True
    return False


def _make_room(
    decided: StartPlan, order: int, evicted: list[ScheduledModel], going: Mapping[str, UnloadCause], *, overdue: bool
) -> None:
    if not overdue and not all(_is_free(slot) for slot in evicted):
        return  # to stop one while another serves on would help nobody
    for slot in evicted:
        decided.causes.setdefault(slot.model, going[slot.model])
        if slot.state is ModelState.STARTING and not slot.waiting:
            decided.stop[slot.model] = slot
        elif slot.is_serving and not slot.unloading:
            barrier = max(order, slot.served_before)
            decided.barriers[slot.model] = min(barrier, decided.barriers.get(slot.model, barrier))


def _is_free(slot: ScheduledModel) -> bool:
    """Whether it makes room without anybody having to wait for their next turn."""
    if slot.state is ModelState.STOPPING or slot.unloading:
        return True
    return not slot.waiting and (slot.state is ModelState.STARTING or not slot.busy_count)
