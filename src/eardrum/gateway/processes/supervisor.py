"""Supervises the models' processes: starts, watches and stops them as the scheduler decides.

It also records why models were unloaded (`UnloadHistory`), and pauses models whose processes die again and again
(`CrashBackoff`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from eardrum.config import Settings
from eardrum.errors import BusyError, EardrumError, ModelCoolingError, ModelLoadError, RunnerCrashedError, UpstreamDiedError
from eardrum.gateway import scheduler
from eardrum.gateway.models.catalog import ConfigChanges
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes import process_info
from eardrum.gateway.processes.launcher import ModelInstance, ModelLauncher
from eardrum.gateway.processes.lease import CrashIsolation, CrashSuspicion, LeaseAdmission, ModelLease, RunningModel
from eardrum.gateway.scheduler import ModelState, Scheduler, UnloadCause, UnloadReason
from eardrum.gateway.scheduler.dispatcher import SchedulerDispatcher
from eardrum.gateway.scheduler.policy_factory import PolicyFactory
from eardrum.gateway.slow_clients import PlaceRegistry
from eardrum.gateway.upstreams import Upstream
from eardrum.transcription import Capabilities

log = logging.getLogger(__name__)

EXIT_TIMEOUT_S = 5.0
"""How long after its connection broke a runner may take to be seen dead."""

DISCONNECT_TIMEOUT_S = 0.5
"""The same for others, which may also break a connection and live."""

MAX_BACKOFF_WAIT_S = 15.0
"""Longest pause after crashes that is waited for by requests which were only there when it happened."""

UNPLANNED_REASONS = (UnloadReason.CRASH, UnloadReason.FAILED)
"""Ends that nobody has asked for."""

FORCED_UNLOAD_S = 2.0
"""How long a process may take to end by itself that is unloaded by force while it is loading."""


class ModelSupervisor:
    """The one owner of the models' lives. Everything happens on the event loop."""

    def __init__(
        self,
        lives: ModelLauncher,
        *,
        loaded: Callable[[Model, Capabilities], None],
        changed: Callable[[], None],
        rulebook: PolicyFactory,
        patience: float,
    ):
        self._launcher = lives
        self._on_loaded = loaded
        self._policy_factory = rulebook
        self._dispatcher = SchedulerDispatcher(
            Scheduler(rulebook.policy, patience), start=self._start_model, stop=self._stop_model, changed=changed
        )
        self._crash_backoff = CrashBackoff()
        self._crash_isolation = CrashIsolation()
        self._places = PlaceRegistry()
        self.unload_history = UnloadHistory()
        """The models that have gone, and why."""
        self._models: dict[str, Model] = {}
        self._running: dict[str, RunningModel] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._background_tasks: set[asyncio.Task[None]] = set()
        self._orphan_sweep: asyncio.Task[None] | None = None
        self._memory_watch: asyncio.Task[None] | None = None
        self._shutting_down = False

    def sweep_orphans(self) -> asyncio.Task[None]:
        """End what a gateway has left behind that was killed. Done once, at the latest before the first model is started."""
        self._orphan_sweep = self._orphan_sweep or asyncio.create_task(self._launcher.process_registry.end_orphans())
        return self._orphan_sweep

    @asynccontextmanager
    async def lease_model(self, model: Model, suspicion: CrashSuspicion | None = None) -> AsyncIterator[Upstream]:
        """The right to use the ready model for one request: `hold`, for those who need it until the end."""
        async with self.create_lease(model, suspicion) as held:
            yield held.upstream

    def create_lease(self, model: Model, suspicion: CrashSuspicion | None = None) -> ModelLease:
        """The right to use the ready model for one request; starts it first when it must. A request that is tried again
        brings what is suspected of it.

        Raises:
            BusyError: it holds as many requests as it may.
            ModelLoadError: it cannot be started, or has died again and again.
            RunnerCrashedError: from inside, after the process is known to be gone.
            UnloadedError: somebody has unloaded it by force.
            ShuttingDownError: the server goes down.
        """
        return ModelLease(self, model, suspicion)

    def create_admission(self, lease: ModelLease) -> LeaseAdmission:
        """The lease's way in, which may wait for that of others."""
        return self._crash_isolation.create_admission(lease.model.id, lease.suspicion)

    async def admit_lease(self, lease: ModelLease) -> tuple[int, RunningModel]:
        """The beginning of a lease: its ticket, and the model that serves."""
        model = lease.model
        if lease.admission.isolated and not lease.suspicion.crashes_alone:
            await self._wait_for_backoff(model)
        self._check_backoff(model)
        self._models[model.id] = model
        if self._policy_factory.learn_model(model):
            self.handle_event(scheduler.PolicyChanged(self._policy_factory.policy))
        self._places.add_place(model.id, lease)
        try:
            ticket = await self._wait_for_turn(model)
        except BaseException:
            self._places.remove_place(model.id, lease)
            raise
        if running := self._running.get(model.id):
            return ticket, running
        self._places.remove_place(model.id, lease)
        self._dispatcher.release_ticket(model.id, ticket)
        lease.suspicion.record_crash(alone=False, within_s=0.0)
        kind = UpstreamDiedError if model.is_external else RunnerCrashedError
        raise kind(f"The process of {model.id} ended as soon as it was ready.")

    async def _wait_for_turn(self, model: Model) -> int:
        """Wait until a request may use the model, for which one with a slow client may have to go."""
        while True:
            try:
                return await self._dispatcher.wait_for_turn(model)
            except BusyError:
                if not await self._places.make_room(model.id):
                    raise

    async def release_lease(self, lease: ModelLease, ticket: int, running: RunningModel, error: BaseException | None) -> None:
        """The end of a lease, after this error or without one."""
        model = lease.model
        try:
            if isinstance(error, RunnerCrashedError):
                if running.forced or self._shutting_down:  # nobody waits to see how it ends
                    raise (self._find_planned_reason(model, running) or error) from error
                explained = await _explain_crash(model, running, error)
                self._record_suspicion(lease, running)
                raise (self._find_planned_reason(model, running) or explained) from error
            if not error:
                self._crash_backoff.reset(model.id)
        finally:
            if not running.instance.ended.done():  # else it stays, for the others who were there to see
                running.leases.discard(lease)
            self._dispatcher.release_ticket(model.id, ticket)
            self._places.remove_place(model.id, lease)

    def _record_suspicion(self, lease: ModelLease, running: RunningModel) -> None:
        """It may be this request that the process died of, unless it rested."""
        if lease not in running.leases:
            return
        died = running.instance.ended.done() and running.pid is not None
        alone = not died or len(running.leases) == 1
        lease.suspicion.record_crash(alone=alone, within_s=time.monotonic() - lease.admission.started_at)
        lease.suspicion.suspected = died  # who only broke a connection is no danger to others

    def handle_event(self, event: scheduler.SchedulerEvent) -> None:
        """Something has happened to a request."""
        self._dispatcher.handle_event(event)

    def reset_crashes(self, model: Model) -> None:
        """The model's process has done some of its work: its last death is forgiven."""
        self._crash_backoff.reset(model.id)

    async def _wait_for_backoff(self, model: Model) -> None:
        """Wait until the model may be started again, if that is soon: for those whom others have taken along."""
        row = self._crash_backoff.find_pause(model.id, now := time.monotonic())
        if row and (left := row.retry_at - now) <= MAX_BACKOFF_WAIT_S:
            await asyncio.sleep(left)

    def _check_backoff(self, model: Model) -> None:
        """Refuse a request for a model that is left alone for a while, before anything is unloaded for it."""
        if row := self._crash_backoff.find_pause(model.id, now := time.monotonic()):
            message = f"{row.exit_description} It has ended {row.crashes} times in a row."
            raise ModelCoolingError(message, param="model", retry_after=row.retry_at - now)

    def _find_planned_reason(self, model: Model, running: RunningModel) -> EardrumError | None:
        """The reason, if a process that died under a request was meant to."""
        if self._shutting_down:
            return scheduler.make_shutdown_error()
        return scheduler.make_unloaded_error(model.id) if running.forced else None

    def get_state(self, model: Model) -> ModelState:
        """The model's state."""
        slot = self._dispatcher.models.get(model.id)
        return slot.state if slot else ModelState.STOPPED

    def count_requests(self, model: Model) -> int:
        """Requests the model holds."""
        slot = self._dispatcher.models.get(model.id)
        return len(slot.active) + len(slot.waiting) if slot else 0

    def get_failure(self, model: Model) -> str:
        """Why the model cannot be used just now: it could not be loaded, or has died again and again."""
        slot = self._dispatcher.models.get(model.id)
        if slot and slot.state is ModelState.FAILED and slot.error:
            return slot.error.message
        row = self._crash_backoff.find_pause(model.id, time.monotonic())
        return row.exit_description if row else ""

    def get_unload_cause(self, model: Model) -> UnloadCause | None:
        """Why the model goes, if it is on its way out."""
        slot = self._dispatcher.models.get(model.id)
        return slot.unload_cause if slot else None

    async def unload_model(self, model: Model, *, force: bool = False) -> None:
        """End the model's process and wait until it is gone.

        It finishes what it has begun first, and serves who waits for it to come up; with force it does not.
        """
        if force and (running := self._running.get(model.id)):
            running.forced = True
            if self.get_state(model) is ModelState.STOPPING:  # patiently, until now
                self._run_in_background(running.instance.stop_now())
        self.handle_event(scheduler.UnloadRequested(model.id, force))
        slot = self._dispatcher.models[model.id]
        if slot.unloading or slot.state is ModelState.STOPPING:
            task = self._tasks[model.id]
            if force and model.id not in self._running:  # a start, which has been told to end
                await asyncio.wait([task], timeout=FORCED_UNLOAD_S)
                task.cancel()
            await asyncio.wait([task])

    def reconfigure(
        self, settings: Settings, rulebook: PolicyFactory, models: Mapping[str, Model], changes: ConfigChanges
    ) -> None:
        """Go by another config, of which `models` are. What did not change serves on; what did finishes first what it does."""
        self._launcher.settings = settings
        gone = changes.changed | changes.removed
        rulebook.measured |= {id: need for id, need in self._policy_factory.measured.items() if id not in gone}
        self._models |= {id: models[id] for id in self._models if id in models}
        for id, model in self._models.items():
            if id not in changes.removed:
                rulebook.learn_model(model)
        self._policy_factory = rulebook
        for id in gone:
            self._crash_backoff.reset(id)
        self.handle_event(scheduler.ConfigChanged(rulebook.policy, settings.patience, changes.changed, changes.removed))
        for id in self._dispatcher.models.keys() & models.keys() - gone:
            self.handle_event(scheduler.SettingsChanged(id, models[id].scheduling))

    @property
    def running_ids(self) -> frozenset[str]:
        """The models that have a process, from its start to its end."""
        return frozenset(id for id, slot in self._dispatcher.models.items() if slot.has_process)

    def get_running(self, model: Model) -> RunningModel | None:
        """The model's process, if it serves."""
        return self._running.get(model.id)

    def get_idle_time(self, model: Model) -> float | None:
        """Seconds since the model's last request; None while it has one, or is not loaded."""
        slot = self._dispatcher.models.get(model.id)
        return time.monotonic() - slot.idle_since if slot and slot.state is ModelState.READY and not slot.busy_count else None

    def get_ttl(self, model: Model) -> float:
        """The time to live that its last request gave it, in seconds; 0 is never unloaded."""
        slot = self._dispatcher.models.get(model.id)
        return (slot.settings if slot else model.scheduling).ttl

    async def shutdown(self, *, at_once: bool = False) -> None:
        """Stop every process and wait until all are gone; `at_once` whatever they do, also those that are being stopped."""
        self._shutting_down = True
        stopping = [running for id, running in self._running.items() if self._dispatcher.models[id].state is ModelState.STOPPING]
        for running in self._running.values():
            running.forced = running.forced or at_once
        self.handle_event(scheduler.ShutdownRequested())
        if at_once:
            for running in stopping:
                self._run_in_background(running.instance.stop_now())
            self._run_in_background(self._cancel_starts())
        if self._memory_watch:
            self._memory_watch.cancel()
        sweeping = [self._orphan_sweep] if self._orphan_sweep else []
        await asyncio.gather(*self._tasks.values(), *self._background_tasks, *sweeping, return_exceptions=True)
        self._dispatcher.close()
        self._launcher.process_registry.close()

    async def _cancel_starts(self) -> None:
        """Who is cancelled once more while it cleans up kills its process."""
        starting = [task for id, task in self._tasks.items() if id not in self._running and not task.done()]
        if starting:
            _, late = await asyncio.wait(starting, timeout=FORCED_UNLOAD_S)
            for task in late:
                task.cancel()

    def kill_all(self) -> None:
        """End every process at once, and wait for none."""
        self._launcher.process_registry.kill_all()

    def _start_model(self, model: str) -> None:
        self._tasks[model] = task = asyncio.create_task(self._run_model(self._models[model]))
        task.add_done_callback(partial(self._on_run_done, model))

    def _ensure_memory_watch(self) -> None:
        """See from now and then what the models take, if anybody wants to know."""
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
            self.handle_event(scheduler.PolicyChanged(self._policy_factory.policy))

    async def _run_model(self, model: Model) -> None:
        """One life of a model: from its start to its end."""
        try:
            life = await self._launch_model(model)
        except EardrumError as error:
            log.error("%s failed to load: %s", model.id, error.message)
            self._record_unload(scheduler.StartFailed(model.id, error), error.message)
            return
        self._running[model.id] = RunningModel(life, self._tasks[model.id], time.time())
        if life.capabilities:
            self._on_loaded(model, life.capabilities)
        self.unload_history.forget(model.id)
        self.handle_event(scheduler.ModelReady(model.id))
        self._ensure_memory_watch()
        await life.ended
        if self.get_state(model) in (ModelState.READY, ModelState.DRAINING):
            log.error("%s", life.exit_description)
            self._crash_backoff.record_crash(model.id, life.exit_description, time.monotonic())
        # First the books, then the cleaning up: while that waits, requests may already start the next life.
        del self._running[model.id]
        self._record_unload(scheduler.ProcessExited(model.id), life.exit_description)
        await life.close()

    def _record_unload(self, event: scheduler.ProcessExited | scheduler.StartFailed, said: str = "") -> None:
        """A model's process is no more, or never was. The scheduler knows why; of what nobody wanted, `said` tells more."""
        self.handle_event(event)
        if going := self._dispatcher.models[event.model].last_unload:
            self.unload_history.add(event.model, going, said if going.reason in UNPLANNED_REASONS else "")

    def _on_run_done(self, model: str, task: asyncio.Task[None]) -> None:
        """See to it that the scheduler knows of an end that `_run` could not tell: it was not let begin, or failed itself."""
        if task.cancelled():
            self._record_unload(scheduler.ProcessExited(model))
        elif (error := task.exception()) and self._tasks[model] is task:
            log.error("Model %s failed to start.", model, exc_info=error)
            self._running.pop(model, None)
            failed = ModelLoadError(f"{model} could not be loaded; the server's log says why.")
            self._record_unload(scheduler.StartFailed(model, failed), failed.message)

    async def _launch_model(self, model: Model) -> ModelInstance:
        self._check_backoff(model)  # for those who waited when it died
        await asyncio.shield(self.sweep_orphans())
        return await self._launcher.launch_model(model)

    def _stop_model(self, model: str) -> None:
        if running := self._running.get(model):
            self._run_in_background(running.instance.stop_now() if running.forced else running.instance.stop())
        else:
            self._tasks[model].cancel()

    def _run_in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)


async def _explain_crash(model: Model, running: RunningModel, error: RunnerCrashedError) -> RunnerCrashedError:
    """The crash in words a client can use, once the scheduler has seen it too."""
    if running.pid is None:  # another server's
        return error
    await asyncio.wait([running.instance.ended], timeout=DISCONNECT_TIMEOUT_S if model.is_external else EXIT_TIMEOUT_S)
    if not running.instance.ended.done():
        return error
    await asyncio.wait([running.task], timeout=EXIT_TIMEOUT_S)
    return running.instance.crash_error


ALREADY_LOGGED = (UnloadReason.CRASH, UnloadReason.FAILED)
"""Ends that have a line of their own, with the last words of the process."""


@dataclass(frozen=True, slots=True)
class UnloadRecord:
    """A model's last end."""

    model: str
    cause: UnloadCause
    at: float
    """Unix time."""
    detail: str = ""
    """What is known beyond that: how its process ended, or why it could not be started."""

    def __str__(self) -> str:
        """Why, in words."""
        return self.detail or str(self.cause)


class UnloadHistory:
    """The last end of every model, the latest last, and how many there were of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, UnloadReason]] = Counter()
        """By model and reason, since the server was started."""
        self._last: dict[str, UnloadRecord] = {}

    def __iter__(self) -> Iterator[UnloadRecord]:
        return iter(self._last.values())

    def find_last(self, model: str) -> UnloadRecord | None:
        """The model's last end."""
        return self._last.get(model)

    def add(self, model: str, going: UnloadCause, said: str = "") -> None:
        """A model has gone."""
        self.counts[model, going.reason] += 1
        self._last.pop(model, None)
        self._last[model] = departure = UnloadRecord(model, going, time.time(), said)
        if going.reason not in ALREADY_LOGGED:
            log.info("%s was unloaded: %s.", model, departure)

    def forget(self, model: str) -> None:
        """It is there again."""
        self._last.pop(model, None)


BACKOFF_S = (0.0, 0.0, 5.0, 15.0, 60.0)
"""After the first, second ... death in a row: the first may have been a request's doing, and is made good at once."""


@dataclass(frozen=True, slots=True)
class CrashStreak:
    """Deaths without a request served in between."""

    crashes: int
    retry_at: float
    exit_description: str
    """How it ended last, in words."""


class CrashBackoff:
    """Counts them."""

    def __init__(self) -> None:
        self._streaks: dict[str, CrashStreak] = {}

    def record_crash(self, model: str, ending: str, now: float) -> None:
        """Its process is gone, and nobody had asked for that."""
        deaths = self._streaks[model].crashes if model in self._streaks else 0
        self._streaks[model] = CrashStreak(deaths + 1, now + BACKOFF_S[min(deaths, len(BACKOFF_S) - 1)], ending)

    def reset(self, model: str) -> None:
        """It has finished a request, or is another model now."""
        self._streaks.pop(model, None)

    def find_pause(self, model: str, now: float) -> CrashStreak | None:
        """Why, and until when, it is not to be started."""
        row = self._streaks.get(model)
        return row if row and now < row.retry_at else None
