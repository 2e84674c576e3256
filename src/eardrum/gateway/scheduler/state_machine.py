"""The scheduler's events and actions, and the state machine between them. A ticket stands for one request.

The state machine has no clock, lock, log or I/O: tests pass the time in. The dispatcher carries out the actions and reports
the results as events.

    stopped ──its turn──▶ starting ──ready──▶ ready ──unload, swap──▶ draining ──nothing left──▶ stopping ──exited──▶ stopped
                             │                  ├──shutdown──────────────────────────────────────▲
                             │                  └──exited──▶ stopped
                             └──start failed──▶ failed ──requested, after retry_at──▶ stopped
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct, field

from eardrum.config import SchedulingSettings
from eardrum.errors import (
    BusyError,
    ConcurrencyLimitError,
    EardrumError,
    ModelCoolingError,
    ModelNotFoundError,
    ModelUnloadedError,
    ShuttingDownError,
)
from eardrum.gateway.scheduler.planner import (
    ModelState,
    ScheduledModel,
    UnloadCause,
    UnloadReason,
    WaitingRequest,
    list_deadlines,
    plan_starts,
)
from eardrum.gateway.scheduler.policies import EvictionPolicy, NoEviction

BACK_OFF_S = (2.0, 5.0, 15.0, 60.0)
"""Pause after the first, second ... failed start in a row."""

RETRY_AFTER_S = 5.0
"""`Retry-After` of a model that holds `max_requests`."""

CONCURRENCY_RETRY_AFTER_S = 1.0
"""`Retry-After` past `concurrency_limit`, as llama-swap sends it."""

PATIENCE_S = 10.0


class RequestArrived(Struct, frozen=True):
    """A request needs the model. It brings the model's settings, so that they are never out of date.

    A preload is a request that finishes as soon as it is granted.
    """

    model: str
    ticket: int
    settings: SchedulingSettings


class RequestFinished(Struct, frozen=True):
    """A granted request is over."""

    model: str
    ticket: int


class RequestCancelled(Struct, frozen=True):
    """A request was cancelled before it was granted."""

    model: str
    ticket: int


class RequestIdle(Struct, frozen=True):
    """A granted request, such as a WebSocket, has been silent for a while. Until it resumes, the model may be unloaded."""

    model: str
    ticket: int


class RequestActive(Struct, frozen=True):
    """An idle request has resumed."""

    model: str
    ticket: int


class ModelReady(Struct, frozen=True):
    """The model's process serves."""

    model: str


class StartFailed(Struct, frozen=True):
    """The model's process did not become ready."""

    model: str
    error: EardrumError


class ProcessExited(Struct, frozen=True):
    """A process has ended that was ready, or whose start was cancelled; stopped or by itself."""

    model: str


class UnloadRequested(Struct, frozen=True):
    """The model is to be unloaded after its running requests, or at once with `force`."""

    model: str
    force: bool = False


class ConfigChanged(Struct, frozen=True):
    """There is a new config.

    The models in `changed` stop after their running requests; waiting requests get them after the next start. Those in
    `removed` stop too, and their waiting requests are rejected. All others keep serving, unless the new policy forbids the
    combination: then the least recently used stop. `settings` holds new settings of models, by their ids.
    """

    policy: EvictionPolicy
    patience: float
    changed: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    settings: Mapping[str, SchedulingSettings] = field(default_factory=dict)


class PolicyChanged(Struct, frozen=True):
    """The memory needs of models have changed. The policy is used from the next load on."""

    policy: EvictionPolicy


class TimerFired(Struct, frozen=True):
    """`Scheduler.next_deadline` was reached."""


class ShutdownRequested(Struct, frozen=True):
    """The server shuts down: all models stop, and none is started."""


SchedulerEvent = (
    RequestArrived
    | RequestFinished
    | RequestCancelled
    | RequestIdle
    | RequestActive
    | ModelReady
    | StartFailed
    | ProcessExited
    | UnloadRequested
    | ConfigChanged
    | PolicyChanged
    | TimerFired
    | ShutdownRequested
)


class StartModel(Struct, frozen=True):
    """Start the model's process."""

    model: str


class StopModel(Struct, frozen=True):
    """Stop the model's process, also during its start."""

    model: str


class GrantRequest(Struct, frozen=True):
    """The ticket's request may use the model."""

    ticket: int


class RejectRequest(Struct, frozen=True):
    """The ticket's request ends with this error."""

    ticket: int
    error: EardrumError


SchedulerAction = StartModel | StopModel | GrantRequest | RejectRequest


class Scheduler:
    """Owns every transition. `handle_event` is the only way in."""

    def __init__(self, policy: EvictionPolicy | None = None, patience: float = PATIENCE_S) -> None:
        self.models: dict[str, ScheduledModel] = {}
        """All models by id. Other modules only read them."""
        self._policy: EvictionPolicy = policy or NoEviction()
        self._patience = patience
        self._arrivals = 0
        self._now = 0.0
        self._shutting_down = False
        self._handlers: dict[type, Callable[[Any, float], list[SchedulerAction]]] = {
            RequestArrived: self._on_request_arrived,
            RequestFinished: self._on_request_finished,
            RequestCancelled: self._on_request_cancelled,
            RequestIdle: self._on_request_idle,
            RequestActive: self._on_request_active,
            ModelReady: self._on_model_ready,
            StartFailed: self._on_start_failed,
            ProcessExited: self._on_process_exited,
            UnloadRequested: self._on_unload_requested,
            ConfigChanged: self._on_config_changed,
            PolicyChanged: self._on_policy_changed,
            TimerFired: self._on_timer_fired,
            ShutdownRequested: self._on_shutdown_requested,
        }

    def handle_event(self, event: SchedulerEvent, now: float) -> list[SchedulerAction]:
        """Return the actions that follow from `event` at the time `now` (seconds of a monotonic clock)."""
        self._now = now
        actions = self._handlers[type(event)](event, now)
        return actions + self._settle(now) if self._has_pending_work else actions

    @property
    def next_deadline(self) -> float | None:
        """When the next `TimerFired` is due; None if none is."""
        times: list[float] = []
        for slot in self.models.values():
            if slot.waiting:
                times += [at for at in list_deadlines(slot, self._patience) if at > self._now]
            elif (at := slot.unload_at) is not None:
                times.append(at)
        return min(times, default=None)

    def _get_model(self, model: str) -> ScheduledModel:
        return self.models.get(model) or self.models.setdefault(model, ScheduledModel(model))

    # Events of requests.

    def _on_request_arrived(self, event: RequestArrived, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        slot.settings = event.settings
        if error := self._find_refusal(event, slot, now):
            return [RejectRequest(event.ticket, error)]
        if slot.state is ModelState.FAILED:
            slot.state = ModelState.STOPPED
        self._arrivals += 1
        if slot.state is ModelState.READY and slot.has_room and not self._has_pending_work:
            slot.active.add(event.ticket)
            return [GrantRequest(event.ticket)]
        slot.waiting[event.ticket] = WaitingRequest(self._arrivals, now)
        return []

    def _find_refusal(self, event: RequestArrived, slot: ScheduledModel, now: float) -> EardrumError | None:
        if self._shutting_down:
            return make_shutdown_error()
        settings = event.settings
        if settings.concurrency_limit and settings.concurrency_limit <= slot.request_count:
            message = f"{event.model} already holds {settings.concurrency_limit} requests (concurrency_limit); try again soon."
            return ConcurrencyLimitError(message, retry_after=CONCURRENCY_RETRY_AFTER_S)
        if settings.max_requests and settings.max_requests <= slot.request_count:
            message = f"{event.model} already holds {settings.max_requests} requests; try again soon."
            return BusyError(message, retry_after=RETRY_AFTER_S)
        if slot.state is ModelState.FAILED and now < slot.retry_at and slot.error:
            pause = slot.retry_at - now
            message = f"{slot.error.message} The next attempt is in {pause:.0f} s."
            return ModelCoolingError(message, param="model", retry_after=pause)
        return None

    def _on_request_finished(self, event: RequestFinished, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if event.ticket in slot.active:
            was_idle = event.ticket in slot.idle
            slot.active.discard(event.ticket)
            slot.idle.discard(event.ticket)
            slot.idle_since = slot.idle_since if was_idle else now
        return []

    def _on_request_cancelled(self, event: RequestCancelled, _: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        slot.waiting.pop(event.ticket, None)
        if slot.state is ModelState.STARTING and slot.unloading and not slot.waiting and slot.unload_cause:
            return self._stop_model(slot, slot.unload_cause)
        return []

    def _on_request_idle(self, event: RequestIdle, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if event.ticket in slot.active - slot.idle:
            slot.idle.add(event.ticket)
            slot.idle_since = now
        return []

    def _on_request_active(self, event: RequestActive, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if event.ticket in slot.idle:
            slot.idle.discard(event.ticket)
            slot.idle_since = now
        return []

    # Events of processes.

    def _on_model_ready(self, event: ModelReady, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if slot.state is ModelState.STARTING:
            slot.mark_ready(self._arrivals + 1, now)
        return []

    def _on_start_failed(self, event: StartFailed, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if slot.state is not ModelState.STARTING:  # it was being stopped
            slot.mark_down(ModelState.STOPPED, slot.unload_cause or UnloadCause(UnloadReason.FAILED))
            return []
        slot.mark_down(ModelState.FAILED, UnloadCause(UnloadReason.FAILED))
        slot.error = event.error
        slot.retry_at = now + BACK_OFF_S[min(slot.failures, len(BACK_OFF_S) - 1)]
        slot.failures += 1
        return _reject_all(slot, event.error)

    def _on_process_exited(self, event: ProcessExited, _: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        cause = slot.unload_cause if slot.state is ModelState.STOPPING else None
        slot.mark_down(ModelState.STOPPED, cause or UnloadCause(UnloadReason.CRASH))
        return []

    # Events of the server and its config.

    def _on_unload_requested(self, event: UnloadRequested, _: float) -> list[SchedulerAction]:
        """Unload a model. Waiting requests stay, except with force."""
        slot = self._get_model(event.model)
        cause = UnloadCause(UnloadReason.FORCE if event.force else UnloadReason.HAND)
        if event.force:
            return _reject_all(slot, make_unloaded_error(event.model)) + (
                self._stop_model(slot, cause) if slot.has_process and slot.state is not ModelState.STOPPING else []
            )
        if slot.state is ModelState.STARTING and slot.waiting:
            slot.unloading, slot.unload_cause = True, cause
            return []
        return self._begin_unload(slot, cause)

    def _begin_unload(self, slot: ScheduledModel, cause: UnloadCause) -> list[SchedulerAction]:
        """Stop the model after its running requests; a start is cancelled."""
        if slot.state is ModelState.STARTING:
            return self._stop_model(slot, cause)
        if slot.is_serving:
            slot.drain(0, cause, for_good=True)
        return []

    def _on_config_changed(self, event: ConfigChanged, now: float) -> list[SchedulerAction]:
        self._policy, self._patience = event.policy, event.patience
        actions: list[SchedulerAction] = []
        for model in event.settings.keys() & self.models.keys():
            self.models[model].settings = event.settings[model]
        for model in (event.changed | event.removed) & self.models.keys():  # the others have had no request yet
            slot = self.models[model]
            slot.failures, slot.retry_at = 0, 0.0
            actions += self._begin_unload(slot, UnloadCause(UnloadReason.RELOAD))
            if model in event.removed:
                actions += _reject_all(slot, ModelNotFoundError(f"{model} is no longer in the config."))
        return actions + self._enforce_policy(now)

    def _enforce_policy(self, now: float) -> list[SchedulerAction]:
        """Unload models that the new policy does not allow beside more recently used ones."""
        actions: list[SchedulerAction] = []
        staying: list[str] = []
        up = [
            slot
            for slot in self.models.values()
            if slot.has_process and slot.state is not ModelState.STOPPING and not slot.unloading
        ]
        if self._policy.allows([slot.model for slot in up]):
            return []
        for slot in sorted(up, key=lambda slot: slot.get_last_use(now), reverse=True):
            if self._policy.allows([*staying, slot.model]):
                staying.append(slot.model)
            else:
                actions += self._begin_unload(slot, UnloadCause(UnloadReason.RELOAD))
        return actions

    def _on_policy_changed(self, event: PolicyChanged, _: float) -> list[SchedulerAction]:
        self._policy = event.policy
        return []

    def _on_timer_fired(self, _: TimerFired, now: float) -> list[SchedulerAction]:
        for slot in self.models.values():
            if slot.unload_at is not None and slot.unload_at <= now:
                self._begin_unload(slot, UnloadCause(UnloadReason.TTL))
        return []

    def _on_shutdown_requested(self, _: ShutdownRequested, __: float) -> list[SchedulerAction]:
        self._shutting_down = True
        actions: list[SchedulerAction] = []
        for slot in self.models.values():
            actions += _reject_all(slot, make_shutdown_error())
            if slot.has_process and slot.state is not ModelState.STOPPING:
                actions += self._stop_model(slot, UnloadCause(UnloadReason.SHUTDOWN))
        return actions

    # The actions after each event.

    def _settle(self, now: float) -> list[SchedulerAction]:
        """Grant waiting requests, start models, and stop those that have drained."""
        actions = self._apply_plan(now)
        for slot in self.models.values():
            while slot.is_serving and slot.can_admit:
                ticket = next(iter(slot.waiting))
                del slot.waiting[ticket]
                slot.active.add(ticket)
                actions.append(GrantRequest(ticket))
            if slot.is_drained and slot.unload_cause:
                actions += self._stop_model(slot, slot.unload_cause)
        return actions

    @property
    def _has_pending_work(self) -> bool:
        """Whether a request waits, or a model drains; the waiting request may have been cancelled."""
        for slot in self.models.values():  # noqa: SIM110 -- asked for every event; any() would call a generator for each model
            if slot.waiting or slot.state is ModelState.DRAINING:
                return True
        return False

    def _apply_plan(self, now: float) -> list[SchedulerAction]:
        plan = plan_starts(self.models, self._policy, self._patience, now)
        for slot in self.models.values():
            if slot.model in plan.barriers:
                slot.drain(plan.barriers[slot.model], plan.causes[slot.model], for_good=False)
            elif slot.state is ModelState.DRAINING and not slot.unloading:
                slot.cancel_drain()
        actions = [action for slot in plan.stop.values() for action in self._stop_model(slot, plan.causes[slot.model])]
        for slot in plan.start:
            slot.state = ModelState.STARTING
            actions.append(StartModel(slot.model))
        return actions

    def _stop_model(self, slot: ScheduledModel, cause: UnloadCause) -> list[SchedulerAction]:
        slot.state, slot.unload_cause = ModelState.STOPPING, cause
        return [StopModel(slot.model)]


def _reject_all(slot: ScheduledModel, error: EardrumError) -> list[SchedulerAction]:
    tickets = list(slot.waiting)
    slot.waiting.clear()
    return [RejectRequest(ticket, error) for ticket in tickets]


def make_shutdown_error() -> EardrumError:
    """The error for all requests during a shutdown."""
    return ShuttingDownError("The server is shutting down; try again in a moment.", retry_after=RETRY_AFTER_S)


def make_unloaded_error(model: str) -> EardrumError:
    """The error for requests of a model that is unloaded by force."""
    return ModelUnloadedError(f"{model} was unloaded by force; try again.", retry_after=RETRY_AFTER_S)
