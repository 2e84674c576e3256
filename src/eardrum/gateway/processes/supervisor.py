"""Supervises the models' processes: starts, watches and stops them as the scheduler decides.

A request uses a model's process through a `ModelLease`. `UnloadHistory` records why models were unloaded.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import NoReturn, Self

from msgspec import Struct, field

from eardrum import tracing
from eardrum.config import Settings
from eardrum.errors import BusyError, EardrumError, ModelLoadError, RunnerCrashedError, UpstreamDiedError
from eardrum.gateway import scheduler
from eardrum.gateway.key_usage import check_model_allowed
from eardrum.gateway.metrics import GatewayMetrics
from eardrum.gateway.models.catalog import ConfigChanges
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.places import PlaceRegistry
from eardrum.gateway.processes import process_info
from eardrum.gateway.processes.crashes import CrashBackoff, CrashIsolation, CrashSuspicion, LeaseAdmission
from eardrum.gateway.processes.launcher import ModelInstance, ModelLauncher, update_instances
from eardrum.gateway.scheduler import ModelState, Scheduler, UnloadCause, UnloadReason
from eardrum.gateway.scheduler.dispatcher import SchedulerDispatcher
from eardrum.gateway.scheduler.policies import PolicyFactory
from eardrum.gateway.upstreams import Upstream
from eardrum.transcription import Capabilities

log = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 5.0
"""After a broken connection: how long to wait for the end of a runner's process."""

DISCONNECT_TIMEOUT_S = 0.5
"""The same for external servers, which may close a connection and keep running."""

UNPLANNED_REASONS = (UnloadReason.CRASH, UnloadReason.FAILED)
"""Reasons of unplanned unloads."""

FORCED_UNLOAD_S = 2.0
"""How long a process that is still loading may take to end by itself when it is unloaded by force."""


class RunningModel(Struct, eq=False):
    """A model that serves, and the task that runs until its end."""

    instance: ModelInstance
    task: asyncio.Task[None]
    since: float
    """Unix time at which it was ready."""
    load_began: float
    """Unix time at which its start began."""
    forced: bool = False
    """Whether it must end without finishing its requests."""
    leases: set[ModelLease] = field(default_factory=set)
    """The active leases; after a crash those that were active when it died. Idle ones are not included."""

    @property
    def pid(self) -> int | None:
        """The model's process; None if another program runs the server."""
        return self.instance.pid


class ModelLease:
    """The right of one request to use a model's process: a context, or from `acquire` to `release`.

    A lease keeps the model loaded, except while it is idle, as that of a silent WebSocket is.
    """

    __slots__ = ("_supervisor", "admission", "given_suspicion", "model", "running", "started_at", "ticket")

    def __init__(self, supervisor: ModelSupervisor, model: Model, suspicion: CrashSuspicion | None):
        self._supervisor = supervisor
        self.model = model
        self.given_suspicion = suspicion
        """None for a request that has had no crash, and has none to bring along."""
        self.admission: LeaseAdmission | None = None
        """Its place among the requests that are suspected of a crash; None while none is."""
        self.running: RunningModel
        self.started_at: float
        """When the model was ready for it, on the monotonic clock."""
        self.ticket: int

    @property
    def suspicion(self) -> CrashSuspicion:
        """The crashes of the request's attempts so far."""
        if not self.given_suspicion:
            self.given_suspicion = CrashSuspicion()
        return self.given_suspicion

    @property
    def has_survived(self) -> bool:
        """Whether it is cleared of a crash: see `LeaseAdmission.survived`."""
        return self.admission is not None and self.admission.survived

    @property
    def upstream(self) -> Upstream:
        """The way to the model's process."""
        return self.running.instance.upstream

    def acquire(self) -> Coroutine[None, None, None]:
        """Wait for the model, which is started if need be.

        Raises:
            EardrumError: as `ModelSupervisor.lease_model`.
        """
        return self._supervisor.acquire_lease(self)

    def release(self, error: BaseException | None = None) -> Coroutine[None, None, None]:
        """Release the model, after this error or without one.

        Raises:
            RunnerCrashedError: `error` was one too: how the process ended.
            ModelUnloadedError, ShuttingDownError: `error` was a crash, and the process was meant to end.
        """
        return self._supervisor.release_lease(self, error)

    def confirm_progress(self) -> None:
        """Forget the model's crashes: the process has done some of the work. For requests that last long."""
        self._supervisor.confirm_progress(self)

    async def __aenter__(self) -> Self:
        await self._supervisor.acquire_lease(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._supervisor.release_lease(self, error)

    def mark_idle(self) -> None:
        """Let the model be unloaded, which then ends the request."""
        self._supervisor.mark_idle(self)

    def mark_active(self) -> None:
        """Keep the model loaded again."""
        self._supervisor.mark_active(self)


class LeaseIdleTimer:
    """Marks a lease idle after `idle_s` seconds without activity, then calls `on_idle`. Recording activity sets no timer."""

    def __init__(self, lease: ModelLease, idle_s: float, on_idle: Callable[[], None] = lambda: None):
        self._lease = lease
        self._on_idle = on_idle
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(idle_s, self._check_idle)
        self._stopped = False

    def record_activity(self) -> None:
        """Start the time again, and mark an idle lease active."""
        self._last = self._loop.time()
        if not self._timer and not self._stopped:
            self._lease.mark_active()
            self._timer = self._loop.call_later(self._idle_s, self._check_idle)

    def stop(self) -> None:
        """Stop the timer permanently."""
        self._stopped = True
        if self._timer:
            self._timer.cancel()

    def _check_idle(self) -> None:
        left = self._last + self._idle_s - self._loop.time()
        self._timer = self._loop.call_later(left, self._check_idle) if left > 0 else None
        if not self._timer:
            self._lease.mark_idle()
            self._on_idle()


class ModelSupervisor:
    """The only owner of the models' processes. Runs on the event loop."""

    def __init__(
        self,
        launcher: ModelLauncher,
        policy_factory: PolicyFactory,
        patience: float,
        *,
        find_current: Callable[[Model], Model],
        on_loaded: Callable[[Model, Capabilities], None],
        on_change: Callable[[], None],
        metrics: GatewayMetrics | None = None,
    ):
        self._metrics = metrics or GatewayMetrics()
        self._launcher = launcher
        self._find_current, self._on_loaded = find_current, on_loaded
        self._policy_factory = policy_factory
        self._dispatcher = SchedulerDispatcher(
            Scheduler(policy_factory.policy, patience),
            start_model=self._start_model,
            stop_model=self._stop_model,
            on_change=on_change,
        )
        self._crash_backoff = CrashBackoff()
        self._crash_isolation = CrashIsolation()
        self._places = PlaceRegistry()
        self.unload_history = UnloadHistory()
        """The unloaded models, and the reasons."""
        self._models: dict[str, Model] = {}
        self._running: dict[str, RunningModel] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background_tasks: set[asyncio.Task[None]] = set()
        self._orphan_sweep: asyncio.Task[None] | None = None
        self._memory_watch: asyncio.Task[None] | None = None
        self._shutting_down = False

    def sweep_orphans(self) -> asyncio.Task[None]:
        """End the processes that a killed gateway left behind. Runs once, at the latest before the first model is started."""
        self._orphan_sweep = self._orphan_sweep or asyncio.create_task(self._launcher.process_registry.end_orphans())
        return self._orphan_sweep

    def lease_model(self, model: Model, suspicion: CrashSuspicion | None = None) -> ModelLease:
        """Create a lease: acquiring it starts the model if need be. A repeated request brings its `suspicion` along.

        Acquiring and releasing raises:
            BusyError: the model holds the maximum of requests.
            ModelLoadError, ModelNotFoundError: the model cannot be started, or has crashed repeatedly; the config has lost it.
            RunnerCrashedError: the process died under the request.
            ModelUnloadedError: the model was unloaded by force.
            ShuttingDownError: the server shuts down.
        """
        return ModelLease(self, model, suspicion)

    def acquire_lease(self, lease: ModelLease) -> Coroutine[None, None, None]:
        """Wait until the lease's model is ready for its request; called by the lease."""
        return self._trace_acquisition(lease) if tracing.is_tracing() else self._acquire_lease(lease)

    async def _trace_acquisition(self, lease: ModelLease) -> None:
        began = time.time()
        with tracing.SpanScope("queue", attributes={"eardrum.model": lease.model.id}) as span:
            await self._acquire_lease(lease)
            if span and (running := lease.running).since > began:  # a part of the wait
                span.add_child("load", max(began, running.load_began), running.since, {"eardrum.model": lease.model.id})

    async def _acquire_lease(self, lease: ModelLease) -> None:
        began, model, suspicion, lease.admission = time.monotonic(), lease.model, lease.given_suspicion, None
        if not model.is_internal:
            check_model_allowed(model.id, model.aliases)
        if self._crash_isolation.needs_admission(model.id, suspicion):
            lease.admission = self._crash_isolation.create_admission(model.id, lease.suspicion)
            await lease.admission.wait_for_turn()
        try:
            if suspicion and suspicion.crashes and not suspicion.crashes_alone:
                await self._crash_backoff.wait_for_end(model.id)
            self._crash_backoff.check_over(model.id, time.monotonic())  # before anything is unloaded for the model
            self._places.add_place(model.id, lease)
            try:
                lease.ticket = await self._wait_for_turn(lease)
                lease.running = self._running.get(model.id) or self._give_up(lease)
            except BaseException:
                self._places.remove_place(model.id, lease)
                raise
        except BaseException:
            if lease.admission:
                lease.admission.leave()
            raise
        lease.running.leases.add(lease)
        lease.started_at = time.monotonic()
        self._metrics.record_model_wait(model.id, lease.started_at - began)
        if lease.admission:
            lease.admission.start()

    async def _wait_for_turn(self, lease: ModelLease) -> int:
        """Wait until a request may use the model as the config has it now. One with a slow client may lose its place for it."""
        while True:
            model = lease.model = self._models[lease.model.id] = self._find_current(lease.model)
            if self._policy_factory.add_model(model):
                self._dispatcher.handle_event(scheduler.PolicyChanged(self._policy_factory.policy))
            try:
                return await self._dispatcher.wait_for_turn(model)
            except BusyError:
                if not await self._places.make_room(model.id):
                    raise

    def _give_up(self, lease: ModelLease) -> NoReturn:
        """Release a granted lease whose process died at that very moment."""
        model = lease.model
        self._dispatcher.release_ticket(model.id, lease.ticket)
        lease.suspicion.record_crash(alone=False, within_s=0.0)
        kind = UpstreamDiedError if model.is_external else RunnerCrashedError
        raise kind(f"The process of {model.id} ended as soon as it was ready.")

    async def release_lease(self, lease: ModelLease, error: BaseException | None) -> None:
        """End a lease, after this error or without one; called by the lease."""
        model, running = lease.model, lease.running
        try:
            if isinstance(error, RunnerCrashedError):
                if running.forced or self._shutting_down:  # no request waits for its end
                    raise (self._find_planned_reason(model, running) or error) from error
                explained = await _explain_crash(model, running, error)
                self._record_suspicion(lease)
                raise (self._find_planned_reason(model, running) or explained) from error
            if not error:
                self._crash_backoff.reset(model.id)
        finally:
            if not running.instance.ended.done():  # else it stays: other leases of the dead process count it
                running.leases.discard(lease)
            self._dispatcher.release_ticket(model.id, lease.ticket)
            self._places.remove_place(model.id, lease)
            if lease.admission:
                lease.admission.leave()

    def _record_suspicion(self, lease: ModelLease) -> None:
        """Suspect the request of having killed the process, unless it was idle."""
        running = lease.running
        if lease not in running.leases:
            return
        died = running.instance.ended.done() and running.pid is not None
        suspects = [other for other in running.leases if not other.has_survived]
        if died and suspects and lease.has_survived:
            return
        alone = not died or len(suspects or running.leases) == 1
        lease.suspicion.record_crash(alone=alone, within_s=time.monotonic() - lease.started_at)
        lease.suspicion.suspected = died  # a request that only broke a connection is no danger to others
        if died and not lease.suspicion.is_proven:
            lease.admission = lease.admission or self._crash_isolation.create_admission(lease.model.id, lease.suspicion)
            lease.admission.reserve_return()

    def mark_idle(self, lease: ModelLease) -> None:
        """Let the model be unloaded although it holds this lease."""
        lease.running.leases.discard(lease)
        if lease.admission:
            lease.admission.leave()
        self._dispatcher.handle_event(scheduler.RequestIdle(lease.model.id, lease.ticket))

    def mark_active(self, lease: ModelLease) -> None:
        """Keep the model loaded again for this lease, unless it is being stopped or has ended: the lease is no cause of that."""
        if not lease.running.instance.ended.done() and self.get_state(lease.model) is not ModelState.STOPPING:
            lease.running.leases.add(lease)
        self._dispatcher.handle_event(scheduler.RequestActive(lease.model.id, lease.ticket))

    def confirm_progress(self, lease: ModelLease) -> None:
        """Forget the model's crashes: the request of this lease made progress."""
        if lease.given_suspicion:
            lease.given_suspicion.clear()
        if lease.admission:
            lease.admission.leave()
        self._crash_backoff.reset(lease.model.id)

    def _find_planned_reason(self, model: Model, running: RunningModel) -> EardrumError | None:
        """Return the reason, if the process that died under a request was meant to end."""
        if self._shutting_down:
            return scheduler.make_shutdown_error()
        return scheduler.make_unloaded_error(model.id) if running.forced else None

    def get_state(self, model: Model) -> ModelState:
        """The model's state."""
        slot = self._dispatcher.models.get(model.id)
        return slot.state if slot else ModelState.STOPPED

    def count_waiting(self, model: Model) -> int:
        """Requests that wait for the model."""
        slot = self._dispatcher.models.get(model.id)
        return len(slot.waiting) if slot else 0

    def count_requests(self, model: Model) -> int:
        """Requests the model holds."""
        slot = self._dispatcher.models.get(model.id)
        return len(slot.active) + len(slot.waiting) if slot else 0

    def get_failure(self, model: Model) -> str:
        """Return why the model cannot be used now: it failed to load, or crashed repeatedly. Empty if it can."""
        slot = self._dispatcher.models.get(model.id)
        if slot and slot.state is ModelState.FAILED and slot.error:
            return slot.error.message
        streak = self._crash_backoff.find_pause(model.id, time.monotonic())
        return streak.exit_description if streak else ""

    def get_unload_cause(self, model: Model) -> UnloadCause | None:
        """Return why the model is being unloaded, if it is."""
        slot = self._dispatcher.models.get(model.id)
        return slot.unload_cause if slot else None

    async def unload_model(self, model: Model, *, force: bool = False) -> None:
        """End the model's process and wait until it is gone. Without `force` it first finishes the requests it holds."""
        if model.id not in self._dispatcher.models:  # it has had no request
            return
        if force and (running := self._running.get(model.id)):
            running.forced = True
            if self.get_state(model) is ModelState.STOPPING:  # gracefully, until now
                self._run_in_background(running.instance.stop_now())
        self._dispatcher.handle_event(scheduler.UnloadRequested(model.id, force))
        slot = self._dispatcher.models[model.id]
        if slot.unloading or slot.state is ModelState.STOPPING:
            task = self._tasks[model.id]
            if force and model.id not in self._running:  # its start, which is being cancelled
                await asyncio.wait([task], timeout=FORCED_UNLOAD_S)
                task.cancel()
            await asyncio.wait([task])

    def reconfigure(
        self, settings: Settings, policy_factory: PolicyFactory, models: Mapping[str, Model], changes: ConfigChanges
    ) -> None:
        """Apply another config with these `models`. Unchanged models keep serving; changed ones first finish their requests."""
        self._launcher.settings = settings
        gone = changes.changed | changes.removed
        policy_factory.measured |= {id: need for id, need in self._policy_factory.measured.items() if id not in gone}
        self._models |= {id: models[id] for id in self._models if id in models}
        for id in self._models.keys() - changes.removed:
            policy_factory.add_model(self._models[id])
        self._policy_factory = policy_factory
        for id in gone:
            self._crash_backoff.reset(id)
        update_instances({id: running.instance for id, running in self._running.items() if id not in gone}, models)
        scheduling = {id: models[id].scheduling for id in self._dispatcher.models.keys() & models.keys()}
        self._dispatcher.handle_event(
            scheduler.ConfigChanged(policy_factory.policy, settings.patience, changes.changed, changes.removed, scheduling)
        )

    @property
    def running_models(self) -> dict[str, Model]:
        """The models that have a process, from its start to its end, by their ids. The config may have lost some."""
        return {id: self._models[id] for id, slot in self._dispatcher.models.items() if slot.has_process}

    def get_running(self, model: Model) -> RunningModel | None:
        """Return the model's process, if it serves."""
        return self._running.get(model.id)

    def get_idle_time(self, model: Model) -> float | None:
        """Seconds since the model's last request; None while it has one, or is not loaded."""
        slot = self._dispatcher.models.get(model.id)
        return time.monotonic() - slot.idle_since if slot and slot.state is ModelState.READY and not slot.busy_count else None

    def get_ttl(self, model: Model) -> float:
        """Return the time to live that the last request set, in seconds; 0 means never unloaded."""
        slot = self._dispatcher.models.get(model.id)
        return (slot.settings.ttl if slot else model.ttl) or 0.0

    async def shutdown(self, *, force: bool = False) -> None:
        """Stop every process and wait until all are gone. With `force` they do not finish their requests."""
        self._shutting_down = True
        stopping = [running for id, running in self._running.items() if self._dispatcher.models[id].state is ModelState.STOPPING]
        for running in self._running.values():
            running.forced = running.forced or force
        self._dispatcher.handle_event(scheduler.ShutdownRequested())
        if force:
            for running in stopping:
                self._run_in_background(running.instance.stop_now())
            self._run_in_background(self._cancel_starts())
        if self._memory_watch:
            self._memory_watch.cancel()
        sweeping = [self._orphan_sweep] if self._orphan_sweep else []
        await asyncio.gather(*self._tasks.values(), *self._background_tasks, *sweeping, return_exceptions=True)
        self._dispatcher.close()
        await self._launcher.close()

    async def _cancel_starts(self) -> None:
        """Cancel starts that take long to end: a second cancellation kills the process."""
        starting = [task for id, task in self._tasks.items() if id not in self._running and not task.done()]
        if starting:
            _, late = await asyncio.wait(starting, timeout=FORCED_UNLOAD_S)
            for task in late:
                task.cancel()

    def kill_all(self) -> None:
        """Kill every process without waiting."""
        self._launcher.process_registry.kill_all()

    def _start_model(self, model: str) -> None:
        # Without the context of the request that happens to start it: a process serves many.
        self._tasks[model] = task = asyncio.create_task(self._run_model(self._models[model]), context=Context())
        task.add_done_callback(partial(self._on_run_done, model))

    def _ensure_memory_watch(self) -> None:
        """Measure the models' memory from time to time, if a policy needs it."""
        if self._policy_factory.pools and (not self._memory_watch or self._memory_watch.done()):
            self._memory_watch = asyncio.create_task(process_info.watch_memory(self._list_unmeasured, self._record_memory))

    def _list_unmeasured(self) -> dict[str, int]:
        models = {
            id: running.pid for id, running in self._running.items() if self._policy_factory.needs_measuring(self._models[id])
        }
        return {id: pid for id, pid in models.items() if pid is not None}

    def _record_memory(self, taken: Mapping[str, Mapping[str, float]]) -> None:
        changed = [self._policy_factory.record_measurement(self._models[id], need) for id, need in taken.items()]
        if any(changed):
            self._dispatcher.handle_event(scheduler.PolicyChanged(self._policy_factory.policy))

    async def _run_model(self, model: Model) -> None:
        """Run a model from its start to its end."""
        started_at, load_began = time.monotonic(), time.time()
        try:
            instance = await self._launch_model(model)
        except EardrumError as error:
            log.error("%s failed to load: %s", model.id, error.message)
            self._record_unload(scheduler.StartFailed(model.id, error), error.message)
            return
        update_instances({model.id: instance}, self._models)  # the config may have changed meanwhile
        self._running[model.id] = RunningModel(instance, self._tasks[model.id], time.time(), load_began)
        if instance.capabilities and not model.is_internal:
            self._on_loaded(model, instance.capabilities)
        self.unload_history.forget(model.id)
        self._metrics.record_load(model.id, time.monotonic() - started_at)
        self._dispatcher.handle_event(scheduler.ModelReady(model.id))
        self._ensure_memory_watch()
        await instance.ended
        if self.get_state(model) in (ModelState.READY, ModelState.DRAINING):
            log.error("%s", instance.exit_description)
            self._crash_backoff.record_crash(model.id, instance.exit_description, time.monotonic())
        # First the state, then the cleanup: while that waits, requests may already start the model again.
        del self._running[model.id]
        self._record_unload(scheduler.ProcessExited(model.id), instance.exit_description)
        await instance.close()

    def _record_unload(self, event: scheduler.ProcessExited | scheduler.StartFailed, detail: str = "") -> None:
        """Record the end of a process, or of a start, with the scheduler's reason. `detail` describes an unplanned end."""
        self._dispatcher.handle_event(event)
        if cause := self._dispatcher.models[event.model].last_unload:
            self.unload_history.add(event.model, cause, detail if cause.reason in UNPLANNED_REASONS else "")

    def _on_run_done(self, model: str, task: asyncio.Task[None]) -> None:
        """Tell the scheduler of an end that `_run_model` could not report: it was cancelled before it began, or failed."""
        if task.cancelled():
            self._record_unload(scheduler.ProcessExited(model))
        elif (error := task.exception()) and self._tasks[model] is task:
            log.error("Model %s failed to start.", model, exc_info=error)
            self._running.pop(model, None)
            failed = ModelLoadError(f"{model} could not be loaded; the server's log has the cause.")
            self._record_unload(scheduler.StartFailed(model, failed), failed.message)

    async def _launch_model(self, model: Model) -> ModelInstance:
        self._crash_backoff.check_over(model.id, time.monotonic())  # for requests that waited when it died
        await asyncio.shield(self.sweep_orphans())
        return await self._launcher.launch_model(model)

    def _stop_model(self, model: str) -> None:
        if running := self._running.get(model):
            self._run_in_background(running.instance.stop_now() if running.forced else running.instance.stop())
        else:
            self._tasks[model].cancel()

    def _run_in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, context=Context())
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)


async def _explain_crash(model: Model, running: RunningModel, error: RunnerCrashedError) -> RunnerCrashedError:
    """Make the client's error of a crash, once the process has ended and the scheduler has been told."""
    if running.pid is None:  # another program runs the server
        return error
    await asyncio.wait([running.instance.ended], timeout=DISCONNECT_TIMEOUT_S if model.is_external else EXIT_TIMEOUT_S)
    if not running.instance.ended.done():
        return error
    await asyncio.wait([running.task], timeout=EXIT_TIMEOUT_S)
    return running.instance.crash_error


class UnloadRecord(Struct, frozen=True):
    """The last unload of a model."""

    model: str
    cause: UnloadCause
    at: float
    """Unix time."""
    detail: str = ""
    """How the process ended, or why it failed to start; may be empty."""

    def __str__(self) -> str:
        """Return the reason in words."""
        return self.detail or str(self.cause)


class UnloadHistory:
    """The last unload of every model, the latest one last, and counts by reason."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, UnloadReason]] = Counter()
        """Unloads by model and reason since the server started."""
        self._last: dict[str, UnloadRecord] = {}

    def __iter__(self) -> Iterator[UnloadRecord]:
        return iter(self._last.values())

    def find_last(self, model: str) -> UnloadRecord | None:
        """Return the model's last unload."""
        return self._last.get(model)

    def add(self, model: str, cause: UnloadCause, detail: str = "") -> None:
        """Record that a model was unloaded."""
        self.counts[model, cause.reason] += 1
        self._last.pop(model, None)
        self._last[model] = record = UnloadRecord(model, cause, time.time(), detail)
        if cause.reason not in UNPLANNED_REASONS:  # those have a log line with the last output of the process
            log.info("%s was unloaded: %s.", model, record)

    def forget(self, model: str) -> None:
        """Forget the last unload: the model is loaded again."""
        self._last.pop(model, None)
