"""Plans turns: the order in which waiting models start, and the time at which loaded models make room for them.

`ScheduledModel` has the state of a model. Models with waiting requests that are not loaded form one queue. The first starts as
soon as the models that the policy evicts for it have stopped. They stop when they are idle, or once a request has waited
`patience` seconds: from then on they serve only requests that came earlier. A model may overtake those ahead if it excludes
none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from msgspec import Struct

from eardrum.config import SchedulingSettings
from eardrum.errors import EardrumError
from eardrum.gateway.scheduler.policies import CLAIMED, LEAVING, EvictionPolicy, attribute_evictions


class ModelState(StrEnum):
    """States of a model."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    FAILED = "failed"


class UnloadReason(StrEnum):
    """Reasons to unload a model."""

    TTL = "ttl"
    POOL = "pool"
    GROUP = "group"
    MATRIX = "matrix"
    HAND = "hand"
    FORCE = "force"
    RELOAD = "reload"
    SHUTDOWN = "shutdown"
    CRASH = "crash"
    FAILED = "failed"
    """It could not be started."""


class UnloadCause(Struct, frozen=True):
    """Why one model is unloaded, or was."""

    reason: UnloadReason
    other: str = ""
    """The model that it makes room for, if any."""

    def __str__(self) -> str:
        """The end of the sentence "it was unloaded: ..."."""
        return f"{REASON_TEXTS[self.reason]} {self.other} ({self.reason})" if self.other else REASON_TEXTS[self.reason]


REASON_TEXTS = {
    UnloadReason.TTL: "it had no requests for the length of its ttl",
    **dict.fromkeys((UnloadReason.POOL, UnloadReason.GROUP, UnloadReason.MATRIX), "it made room for"),
    UnloadReason.HAND: "on request",
    UnloadReason.FORCE: "on request, by force",
    UnloadReason.RELOAD: "the new config changes it, removes it, or leaves no room for it",
    UnloadReason.SHUTDOWN: "the server is shutting down",
    UnloadReason.CRASH: "its process ended unexpectedly",
    UnloadReason.FAILED: "it could not be started",
}


NO_BARRIER = 1 << 62
"""A barrier without effect: more requests than will ever arrive."""


class WaitingRequest(Struct, frozen=True):
    """A request that has not been granted."""

    order: int
    """Its number among all requests, in the order of arrival."""
    since: float


@dataclass(slots=True)
class ScheduledModel:
    """One model: its state, and its waiting and granted requests."""

    model: str
    state: ModelState = ModelState.STOPPED
    waiting: dict[int, WaitingRequest] = field(default_factory=dict)
    """By ticket, in the order of their arrival."""
    active: set[int] = field(default_factory=set)
    """Granted tickets."""
    idle: set[int] = field(default_factory=set)
    """Granted tickets that are idle: they do not keep the model loaded."""
    settings: SchedulingSettings = field(default_factory=SchedulingSettings)
    idle_since: float = 0.0
    """Since when it has had no busy request; meaningless while it has one."""
    served_before: int = 0
    """Requests that arrived before this were waiting when the model became ready: they are served before it is unloaded."""
    barrier: int = NO_BARRIER
    """While it drains, requests that arrived before this are still served."""
    unloading: bool = False
    """It drains permanently. A model that drains for a swap keeps serving if the waiting requests are cancelled."""
    unload_cause: UnloadCause | None = None
    """Why it drains or stops, if it does."""
    last_unload: UnloadCause | None = None
    """Why it was unloaded the last time."""
    failures: int = 0
    retry_at: float = 0.0
    error: EardrumError | None = None

    @property
    def has_process(self) -> bool:
        """Whether it has a process, which takes memory."""
        return self.state not in (ModelState.STOPPED, ModelState.FAILED)

    @property
    def is_serving(self) -> bool:
        """Whether requests can be granted."""
        return self.state in (ModelState.READY, ModelState.DRAINING)

    @property
    def busy_count(self) -> int:
        """Granted requests that are not idle."""
        return len(self.active) - len(self.idle)

    @property
    def request_count(self) -> int:
        """Granted and waiting requests."""
        return len(self.active) + len(self.waiting)

    @property
    def first_waiting(self) -> WaitingRequest:
        """The request that has waited longest; there must be one."""
        return next(iter(self.waiting.values()))

    @property
    def has_room(self) -> bool:
        """Whether it serves fewer requests than `max_concurrency`."""
        return not self.settings.max_concurrency or self.busy_count < self.settings.max_concurrency

    @property
    def can_admit(self) -> bool:
        """Whether the first waiting request may be granted."""
        return bool(self.waiting) and self.first_waiting.order < self.barrier and self.has_room

    @property
    def is_drained(self) -> bool:
        """Whether it drains and has no request left to serve."""
        return (
            self.state is ModelState.DRAINING
            and not self.busy_count
            and not (self.waiting and self.first_waiting.order < self.barrier)
        )

    @property
    def unload_at(self) -> float | None:
        """When its TTL ends, unless a request arrives."""
        ttl = self.settings.ttl
        return self.idle_since + ttl if ttl and self.state is ModelState.READY and not self.busy_count else None

    def get_last_use(self, now: float) -> float:
        """When it was last used, for policies."""
        if self.unloading or self.state in (ModelState.DRAINING, ModelState.STOPPING):
            return LEAVING
        return now if self.busy_count or self.waiting else self.idle_since

    def mark_ready(self, arrivals: int, now: float) -> None:
        """Set it ready. If an unload was requested during the start, only requests that are waiting already are served."""
        self.state, self.served_before, self.idle_since = ModelState.READY, arrivals, now
        self.failures, self.error = 0, None
        if self.unloading and self.unload_cause:
            self.drain(arrivals, self.unload_cause, for_good=True)

    def drain(self, barrier: int, cause: UnloadCause, *, for_good: bool) -> None:
        """Serve only requests that arrived before `barrier`."""
        self.state, self.barrier, self.unloading = ModelState.DRAINING, barrier, for_good
        self.unload_cause = cause

    def cancel_drain(self) -> None:
        """Serve all requests again."""
        self.state, self.barrier, self.unload_cause = ModelState.READY, NO_BARRIER, None

    def mark_down(self, state: ModelState, cause: UnloadCause) -> None:
        """Set it stopped or failed: its process has ended."""
        self.state, self.barrier, self.unloading = state, NO_BARRIER, False
        self.unload_cause, self.last_unload = None, cause


STARVATION_FACTOR = 2
"""A request that has waited so many times the patience comes before all later ones, regardless of priority."""


@dataclass(slots=True)
class StartPlan:
    """The models to start, stop and drain now."""

    start: list[ScheduledModel] = field(default_factory=list)
    stop: dict[str, ScheduledModel] = field(default_factory=dict)
    """Models without requests that make room."""
    barriers: dict[str, int] = field(default_factory=dict)
    """Models that drain to make room, with their barriers."""
    causes: dict[str, UnloadCause] = field(default_factory=dict)
    """Why models of `stop` and `barriers` make room."""


def plan_starts(slots: Mapping[str, ScheduledModel], policy: EvictionPolicy, patience: float, now: float) -> StartPlan:
    """Plan the starts for all waiting requests."""
    plan = StartPlan()
    loaded = {slot.model: slot.get_last_use(now) for slot in slots.values() if slot.has_process}
    claims: dict[str, float] = {}
    for slot in _sort_queue(slots.values(), patience, now):
        evicted = attribute_evictions(policy, slot.model, loaded | claims)
        blocked = not evicted.keys().isdisjoint(claims) or _is_excluded(slot.model, policy, loaded, claims)
        if not blocked and not evicted:
            plan.start.append(slot)
            loaded[slot.model] = now
            continue
        claims[slot.model] = CLAIMED
        if not blocked:
            overdue = slot.first_waiting.since + patience <= now
            causes = {model: UnloadCause(UnloadReason(kind), slot.model) for model, kind in evicted.items()}
            _make_room(plan, slot.first_waiting.order, [slots[model] for model in evicted], causes, overdue=overdue)
    return plan


def list_deadlines(slot: ScheduledModel, patience: float) -> list[float]:
    """Times at which the plan changes because requests have waited for this model."""
    return (
        [slot.first_waiting.since + times * patience for times in (1, STARVATION_FACTOR)]
        if slot.waiting and not slot.has_process
        else []
    )


def _sort_queue(slots: Iterable[ScheduledModel], patience: float, now: float) -> list[ScheduledModel]:
    """Sort waiting models: starved ones first, then by priority, then by arrival."""

    def place(slot: ScheduledModel) -> tuple[int, int, int]:
        starved = slot.first_waiting.since + STARVATION_FACTOR * patience <= now
        return (0, 0, slot.first_waiting.order) if starved else (1, -slot.settings.priority, slot.first_waiting.order)

    return sorted((slot for slot in slots if slot.waiting and not slot.has_process), key=place)


def _is_excluded(model: str, policy: EvictionPolicy, loaded: Mapping[str, float], claims: Mapping[str, float]) -> bool:
    """Whether a model ahead in the queue would evict it again: then starting it is useless."""
    for ahead in claims:
        others = {other: used for other, used in {**loaded, **claims, model: CLAIMED}.items() if other != ahead}
        if model in policy.find_evictions(ahead, others):
            return True
    return False


def _make_room(
    plan: StartPlan, order: int, evicted: list[ScheduledModel], causes: Mapping[str, UnloadCause], *, overdue: bool
) -> None:
    if not overdue and not all(_is_free(slot) for slot in evicted):
        return  # stopping some of them while others keep serving is useless
    for slot in evicted:
        plan.causes.setdefault(slot.model, causes[slot.model])
        if slot.state is ModelState.STARTING and not slot.waiting:
            plan.stop[slot.model] = slot
        elif slot.is_serving and not slot.unloading:
            barrier = max(order, slot.served_before)
            plan.barriers[slot.model] = min(barrier, plan.barriers.get(slot.model, barrier))


def _is_free(slot: ScheduledModel) -> bool:
    """Whether it can stop now without making a request wait for its next start."""
    if slot.state is ModelState.STOPPING or slot.unloading:
        return True
    return not slot.waiting and (slot.state is ModelState.STARTING or not slot.busy_count)
