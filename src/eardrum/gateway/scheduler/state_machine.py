"""The scheduler's state machine: takes events and the time, owns every transition, returns actions.

It has no clock, lock, log or I/O, so every hard case is a test that passes the time in. The supervisor carries out the
actions and reports the results.

    stopped ──its turn──▶ starting ──ready──▶ ready ──unload, swap──▶ draining ──nothing left──▶ stopping ──exited──▶ stopped
                             │                  ├──shutdown──────────────────────────────────────▲
                             │                  └──exited──▶ stopped
                             └──start failed──▶ failed ──requested, after retry_at──▶ stopped
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
    ModelUnloadedError,
    ShuttingDownError,
)
from eardrum.gateway.scheduler import events
from eardrum.gateway.scheduler.events import (
    GrantRequest,
    ModelState,
    RejectRequest,
    SchedulerAction,
    SchedulerEvent,
    StartModel,
    StopModel,
    UnloadCause,
    UnloadReason,
)
from eardrum.gateway.scheduler.planner import ScheduledModel, WaitingRequest, list_deadlines, plan_starts
from eardrum.gateway.scheduler.policies import EvictionPolicy, NoEviction

BACK_OFF_S = (2.0, 5.0, 15.0, 60.0)
"""Pause after the first, second ... failed start in a row."""

RETRY_AFTER_S = 5.0
"""What a full model tells its clients."""

CONCURRENCY_RETRY_AFTER_S = 1.0
"""What llama-swap tells them."""

PATIENCE_S = 10.0


class Scheduler:
    """Owns every transition. `handle` is the only way in."""

    def __init__(self, rules: EvictionPolicy | None = None, patience: float = PATIENCE_S) -> None:
        self.models: dict[str, ScheduledModel] = {}
        """Read by whoever reports states; changed only here."""
        self._policy: EvictionPolicy = rules or NoEviction()
        self._patience = patience
        self._arrivals = 0
        self._now = 0.0
        self._shutting_down = False
        self._handlers: dict[type, Callable[[Any, float], list[SchedulerAction]]] = {
            events.RequestArrived: self._on_request_arrived,
            events.RequestFinished: self._on_request_finished,
            events.RequestCancelled: self._on_request_cancelled,
            events.RequestIdle: self._on_request_idle,
            events.RequestActive: self._on_request_active,
            events.ModelReady: self._on_model_ready,
            events.StartFailed: self._on_start_failed,
            events.ProcessExited: self._on_process_exited,
            events.UnloadRequested: self._on_unload_requested,
            events.SettingsChanged: self._on_settings_changed,
            events.ConfigChanged: self._on_config_changed,
            events.PolicyChanged: self._on_policy_changed,
            events.TimerFired: self._on_timer_fired,
            events.ShutdownRequested: self._on_shutdown_requested,
        }

    def handle_event(self, event: SchedulerEvent, now: float) -> list[SchedulerAction]:
        """The actions that follow from `event` at time `now` (seconds of any steady clock)."""
        self._now = now
        return self._handlers[type(event)](event, now) + self._settle(now)

    @property
    def next_deadline(self) -> float | None:
        """When to come back with a `Tick`, if ever."""
        times: list[float] = []
        for slot in self.models.values():
            if slot.waiting:
                times += [at for at in list_deadlines(slot, self._patience) if at > self._now]
            elif (at := slot.unload_at) is not None:
                times.append(at)
        return min(times, default=None)

    def _get_model(self, model: str) -> ScheduledModel:
        return self.models.get(model) or self.models.setdefault(model, ScheduledModel(model))

    # What is told about requests.

    def _on_request_arrived(self, event: events.RequestArrived, now: float) -> list[SchedulerAction]:
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

    def _find_refusal(self, event: events.RequestArrived, slot: ScheduledModel, now: float) -> EardrumError | None:
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

    def _on_request_finished(self, event: events.RequestFinished, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if event.ticket in slot.active:
            rested = event.ticket in slot.idle
            slot.active.discard(event.ticket)
            slot.idle.discard(event.ticket)
            slot.idle_since = slot.idle_since if rested else now
        return []

    def _on_request_cancelled(self, event: events.RequestCancelled, _: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        slot.waiting.pop(event.ticket, None)
        if slot.state is ModelState.STARTING and slot.unloading and not slot.waiting and slot.unload_cause:
            return self._stop_model(slot, slot.unload_cause)
        return []

    def _on_request_idle(self, event: events.RequestIdle, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if event.ticket in slot.active - slot.idle:
            slot.idle.add(event.ticket)
            slot.idle_since = now
        return []

    def _on_request_active(self, event: events.RequestActive, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if event.ticket in slot.idle:
            slot.idle.discard(event.ticket)
            slot.idle_since = now
        return []

    # What is told about processes.

    def _on_model_ready(self, event: events.ModelReady, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if slot.state is ModelState.STARTING:
            slot.mark_ready(self._arrivals + 1, now)
        return []

    def _on_start_failed(self, event: events.StartFailed, now: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        if slot.state is not ModelState.STARTING:  # it was being stopped anyway
            slot.mark_down(ModelState.STOPPED, slot.unload_cause or UnloadCause(UnloadReason.FAILED))
            return []
        slot.mark_down(ModelState.FAILED, UnloadCause(UnloadReason.FAILED))
        slot.error = event.error
        slot.retry_at = now + BACK_OFF_S[min(slot.failures, len(BACK_OFF_S) - 1)]
        slot.failures += 1
        return _reject_all(slot, event.error)

    def _on_process_exited(self, event: events.ProcessExited, _: float) -> list[SchedulerAction]:
        slot = self._get_model(event.model)
        meant = slot.unload_cause if slot.state is ModelState.STOPPING else None
        slot.mark_down(ModelState.STOPPED, meant or UnloadCause(UnloadReason.CRASH))
        return []

    # What is told about the server.

    def _on_unload_requested(self, event: events.UnloadRequested, _: float) -> list[SchedulerAction]:
        """Who waits for it is not forgotten, except with force."""
        slot = self._get_model(event.model)
        going = UnloadCause(UnloadReason.FORCE if event.force else UnloadReason.HAND)
        if event.force:
            return _reject_all(slot, make_unloaded_error(event.model)) + (
                self._stop_model(slot, going) if slot.has_process and slot.state is not ModelState.STOPPING else []
            )
        if slot.state is ModelState.STARTING and slot.waiting:
            slot.unloading, slot.unload_cause = True, going
            return []
        return self._begin_unload(slot, going)

    def _begin_unload(self, slot: ScheduledModel, going: UnloadCause) -> list[SchedulerAction]:
        """Make the model end as soon as it has finished what it has begun. A start is nothing begun."""
        if slot.state is ModelState.STARTING:
            return self._stop_model(slot, going)
        if slot.is_serving:
            slot.drain(0, going, for_good=True)
        return []

    def _on_settings_changed(self, event: events.SettingsChanged, _: float) -> list[SchedulerAction]:
        self._get_model(event.model).settings = event.settings
        return []

    def _on_config_changed(self, event: events.ConfigChanged, now: float) -> list[SchedulerAction]:
        self._policy, self._patience = event.policy, event.patience
        actions: list[SchedulerAction] = []
        for model in event.changed | event.removed:
            slot = self._get_model(model)
            slot.failures, slot.retry_at = 0, 0.0
            actions += self._begin_unload(slot, UnloadCause(UnloadReason.RELOAD))
            if model in event.removed:
                actions += _reject_all(slot, ModelNotFoundError(f"{model} is no longer in the config."))
        return actions + self._enforce_policy(now)

    def _enforce_policy(self, now: float) -> list[SchedulerAction]:
        """Let go what the rules, which are new, do not allow beside what was used later."""
        actions: list[SchedulerAction] = []
        staying: list[str] = []
        up = [
            slot
            for slot in self.models.values()
            if slot.has_process and slot.state is not ModelState.STOPPING and not slot.unloading
        ]
        for slot in sorted(up, key=lambda slot: slot.get_last_use(now), reverse=True):
            if self._policy.allows([*staying, slot.model]):
                staying.append(slot.model)
            else:
                actions += self._begin_unload(slot, UnloadCause(UnloadReason.RELOAD))
        return actions

    def _on_policy_changed(self, event: events.PolicyChanged, _: float) -> list[SchedulerAction]:
        self._policy = event.policy
        return []

    def _on_timer_fired(self, _: events.TimerFired, now: float) -> list[SchedulerAction]:
        for slot in self.models.values():
            if slot.unload_at is not None and slot.unload_at <= now:
                self._begin_unload(slot, UnloadCause(UnloadReason.TTL))
        return []

    def _on_shutdown_requested(self, _: events.ShutdownRequested, __: float) -> list[SchedulerAction]:
        self._shutting_down = True
        actions: list[SchedulerAction] = []
        for slot in self.models.values():
            actions += _reject_all(slot, make_shutdown_error())
            if slot.has_process and slot.state is not ModelState.STOPPING:
                actions += self._stop_model(slot, UnloadCause(UnloadReason.SHUTDOWN))
        return actions

    # What follows, whatever was told.

    def _settle(self, now: float) -> list[SchedulerAction]:
        """Let in who may come in, start what may start, stop what has drained."""
        if not self._has_pending_work:
            return []
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
        """Whether anybody waits, or drains for somebody who may have stopped waiting."""
        for slot in self.models.values():  # noqa: SIM110 -- asked for every event; any() would call a generator for each model
            if slot.waiting or slot.state is ModelState.DRAINING:
                return True
        return False

    def _apply_plan(self, now: float) -> list[SchedulerAction]:
        decided = plan_starts(self.models, self._policy, self._patience, now)
        for slot in self.models.values():
            if slot.model in decided.barriers:
                slot.drain(decided.barriers[slot.model], decided.causes[slot.model], for_good=False)
            elif slot.state is ModelState.DRAINING and not slot.unloading:
                slot.cancel_drain()
        actions = [action for slot in decided.stop.values() for action in self._stop_model(slot, decided.causes[slot.model])]
        for slot in decided.start:
            slot.state = ModelState.STARTING
            actions.append(StartModel(slot.model))
        return actions

    def _stop_model(self, slot: ScheduledModel, going: UnloadCause) -> list[SchedulerAction]:
        slot.state, slot.unload_cause = ModelState.STOPPING, going
        return [StopModel(slot.model)]


def _reject_all(slot: ScheduledModel, error: EardrumError) -> list[SchedulerAction]:
    tickets = list(slot.waiting)
    slot.waiting.clear()
    return [RejectRequest(ticket, error) for ticket in tickets]


def make_shutdown_error() -> EardrumError:
    """What every client is told from then on."""
    return ShuttingDownError("The server is shutting down; try again in a moment.", retry_after=RETRY_AFTER_S)


def make_unloaded_error(model: str) -> EardrumError:
    """What the clients of a model are told that is unloaded by force."""
    return ModelUnloadedError(f"{model} was unloaded by force; try again.", retry_after=RETRY_AFTER_S)
