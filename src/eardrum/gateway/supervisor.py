"""Carries out what the scheduler decides: starts, watches and stops the models' processes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial

from eardrum.config import Settings
from eardrum.errors import BusyError, EardrumError, ModelCoolingError, ModelLoadError, RunnerCrashedError, UpstreamDiedError
from eardrum.gateway import scheduler
from eardrum.gateway.changes import Changes
from eardrum.gateway.departures import Departures
from eardrum.gateway.dispatch import Dispatch
from eardrum.gateway.inventory import Model
from eardrum.gateway.lease import Lease, Running
from eardrum.gateway.processes import memory
from eardrum.gateway.processes.crashes import Crashes
from eardrum.gateway.processes.lives import Life, Lives
from eardrum.gateway.rulebook import Rulebook
from eardrum.gateway.scheduler import Going, Reason, Scheduler, State
from eardrum.gateway.senders import Senders
from eardrum.gateway.trials import Suspicion, Trial, Trials
from eardrum.gateway.upstreams.foreign import ForeignUpstream
from eardrum.gateway.upstreams.upstream import RunnerUpstream
from eardrum.types import Capabilities

log = logging.getLogger(__name__)

EXIT_S = 5.0
"""How long after its connection broke a runner may take to be seen dead."""

BROKEN_S = 0.5
"""The same for others, which may also break a connection and live."""

WAITED_S = 15.0
"""Longest pause after crashes that is waited for by requests which were only there when it happened."""

UNWANTED = (Reason.CRASH, Reason.FAILED)
"""Ends that nobody has asked for."""

FORCED_S = 2.0
"""How long a process may take to end by itself that is unloaded by force while it is loading."""


class Supervisor:
    """The one owner of the models' lives. Everything happens on the event loop."""

    def __init__(
        self,
        lives: Lives,
        *,
        loaded: Callable[[Model, Capabilities], None],
        changed: Callable[[], None],
        rulebook: Rulebook,
        patience: float,
    ):
        self._lives = lives
        self._loaded = loaded
        self._rulebook = rulebook
        self._dispatch = Dispatch(Scheduler(rulebook.rules, patience), start=self._start, stop=self._stop, changed=changed)
        self._crashes = Crashes()
        self._trials = Trials()
        self._senders = Senders()
        self.departures = Departures()
        """The models that have gone, and why."""
        self._models: dict[str, Model] = {}
        self._running: dict[str, Running] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._down = False

    def sweep(self) -> asyncio.Task[None]:
        """End what a gateway has left behind that was killed. Done once, at the latest before the first model is started."""
        self._sweeping = self._sweeping or asyncio.create_task(self._lives.register.end_left_behind())
        return self._sweeping

    @asynccontextmanager
    async def lease(self, model: Model, suspicion: Suspicion | None = None) -> AsyncIterator[RunnerUpstream | ForeignUpstream]:
        """The right to use the ready model for one request: `hold`, for those who need it until the end."""
        async with self.hold(model, suspicion) as held:
            yield held.upstream

    def hold(self, model: Model, suspicion: Suspicion | None = None) -> Lease:
        """The right to use the ready model for one request; starts it first when it must. A request that is tried again
        brings what is suspected of it.

        Raises:
            BusyError: it holds as many requests as it may.
            ModelLoadError: it cannot be started, or has died again and again.
            RunnerCrashedError: from inside, after the process is known to be gone.
            UnloadedError: somebody has unloaded it by force.
            ShuttingDownError: the server goes down.
        """
        return Lease(self, model, suspicion)

    def trial(self, lease: Lease) -> Trial:
        """The lease's way in, which may wait for that of others."""
        return self._trials.of(lease.model.id, lease.suspicion)

    async def admit(self, lease: Lease) -> tuple[int, Running]:
        """The beginning of a lease: its ticket, and the model that serves."""
        model = lease.model
        if lease.trial.on and not lease.suspicion.alone:
            await self._pause(model)
        self._check_crashes(model)
        self._models[model.id] = model
        if self._rulebook.learn(model):
            self.tell(scheduler.Remeasured(self._rulebook.rules))
        self._senders.enter(model.id, lease)
        try:
            ticket = await self._turn(model)
        except BaseException:
            self._senders.leave(model.id, lease)
            raise
        if running := self._running.get(model.id):
            return ticket, running
        self._senders.leave(model.id, lease)
        self._dispatch.done(model.id, ticket)
        lease.suspicion.died(alone=False, within_s=0.0)
        kind = UpstreamDiedError if model.foreign else RunnerCrashedError
        raise kind(f"The process of {model.id} ended as soon as it was ready.")

    async def _turn(self, model: Model) -> int:
        """Wait until a request may use the model, for which one with a slow client may have to go."""
        while True:
            try:
                return await self._dispatch.turn(model)
            except BusyError:
                if not await self._senders.make_room(model.id):
                    raise

    async def dismiss(self, lease: Lease, ticket: int, running: Running, error: BaseException | None) -> None:
        """The end of a lease, after this error or without one."""
        model = lease.model
        try:
            if isinstance(error, RunnerCrashedError):
                if running.forced or self._down:  # nobody waits to see how it ends
                    raise (self._why_ended(model, running) or error) from error
                explained = await _explained(model, running, error)
                self._suspect(lease, running)
                raise (self._why_ended(model, running) or explained) from error
            if not error:
                self._crashes.forget(model.id)
        finally:
            if not running.life.ended.done():  # else it stays, for the others who were there to see
                running.served.discard(lease)
            self._dispatch.done(model.id, ticket)
            self._senders.leave(model.id, lease)

    def _suspect(self, lease: Lease, running: Running) -> None:
        """It may be this request that the process died of, unless it rested."""
        if lease not in running.served:
            return
        died = running.life.ended.done() and running.pid is not None
        alone = not died or len(running.served) == 1
        lease.suspicion.died(alone=alone, within_s=time.monotonic() - lease.trial.began)
        lease.suspicion.suspected = died  # who only broke a connection is no danger to others

    def tell(self, event: scheduler.Event) -> None:
        """Something has happened to a request."""
        self._dispatch.tell(event)

    def served(self, model: Model) -> None:
        """The model's process has done some of its work: its last death is forgiven."""
        self._crashes.forget(model.id)

    async def _pause(self, model: Model) -> None:
        """Wait until the model may be started again, if that is soon: for those whom others have taken along."""
        row = self._crashes.pausing(model.id, now := time.monotonic())
        if row and (left := row.again_at - now) <= WAITED_S:
            await asyncio.sleep(left)

    def _check_crashes(self, model: Model) -> None:
        """Refuse a request for a model that is left alone for a while, before anything is unloaded for it."""
        if row := self._crashes.pausing(model.id, now := time.monotonic()):
            message = f"{row.ending} It has ended {row.deaths} times in a row."
            raise ModelCoolingError(message, param="model", retry_after=row.again_at - now)

    def _why_ended(self, model: Model, running: Running) -> EardrumError | None:
        """The reason, if a process that died under a request was meant to."""
        if self._down:
            return scheduler.shutting_down()
        return scheduler.unloaded(model.id) if running.forced else None

    def state(self, model: Model) -> State:
        """The model's state."""
        slot = self._dispatch.slots.get(model.id)
        return slot.state if slot else State.STOPPED

    def load(self, model: Model) -> int:
        """Requests the model holds."""
        slot = self._dispatch.slots.get(model.id)
        return len(slot.active) + len(slot.waiting) if slot else 0

    def failure(self, model: Model) -> str:
        """Why the model cannot be used just now: it could not be loaded, or has died again and again."""
        slot = self._dispatch.slots.get(model.id)
        if slot and slot.state is State.FAILED and slot.error:
            return slot.error.message
        row = self._crashes.pausing(model.id, time.monotonic())
        return row.ending if row else ""

    def going(self, model: Model) -> Going | None:
        """Why the model goes, if it is on its way out."""
        slot = self._dispatch.slots.get(model.id)
        return slot.going if slot else None

    async def unload(self, model: Model, *, force: bool = False) -> None:
        """End the model's process and wait until it is gone.

        It finishes what it has begun first, and serves who waits for it to come up; with force it does not.
        """
        if force and (running := self._running.get(model.id)):
            running.forced = True
            if self.state(model) is State.STOPPING:  # patiently, until now
                self._background(running.life.stop_at_once())
        self.tell(scheduler.Unload(model.id, force))
        slot = self._dispatch.slots[model.id]
        if slot.unloading or slot.state is State.STOPPING:
            task = self._tasks[model.id]
            if force and model.id not in self._running:  # a start, which has been told to end
                await asyncio.wait([task], timeout=FORCED_S)
                task.cancel()
            await asyncio.wait([task])

    def reconfigure(self, settings: Settings, rulebook: Rulebook, models: Mapping[str, Model], changes: Changes) -> None:
        """Go by another config, of which `models` are. What did not change serves on; what did finishes first what it does."""
        self._lives.settings = settings
        gone = changes.changed | changes.removed
        rulebook.measured |= {id: need for id, need in self._rulebook.measured.items() if id not in gone}
        self._models |= {id: models[id] for id in self._models if id in models}
        for id, model in self._models.items():
            if id not in changes.removed:
                rulebook.learn(model)
        self._rulebook = rulebook
        for id in gone:
            self._crashes.forget(id)
        self.tell(scheduler.Reconfigured(rulebook.rules, settings.patience, changes.changed, changes.removed))
        for id in self._dispatch.slots.keys() & models.keys() - gone:
            self.tell(scheduler.Keep(id, models[id].ttl))

    @property
    def up(self) -> frozenset[str]:
        """The models that have a process, from its start to its end."""
        return frozenset(id for id, slot in self._dispatch.slots.items() if slot.up)

    def running(self, model: Model) -> Running | None:
        """The model's process, if it serves."""
        return self._running.get(model.id)

    def idle_for(self, model: Model) -> float | None:
        """Seconds since the model's last request; None while it has one, or is not loaded."""
        slot = self._dispatch.slots.get(model.id)
        return time.monotonic() - slot.idle_since if slot and slot.state is State.READY and not slot.working else None

    def ttl(self, model: Model) -> float:
        """The time to live that its last request gave it, in seconds; 0 is never unloaded."""
        slot = self._dispatch.slots.get(model.id)
        return slot.ttl if slot else model.ttl

    async def shutdown(self, *, at_once: bool = False) -> None:
        """Stop every process and wait until all are gone; `at_once` whatever they do, also those that are being stopped."""
        self._down = True
        stopping = [running for id, running in self._running.items() if self._dispatch.slots[id].state is State.STOPPING]
        for running in self._running.values():
            running.forced = running.forced or at_once
        self.tell(scheduler.Shutdown())
        if at_once:
            for running in stopping:
                self._background(running.life.stop_at_once())
            self._background(self._give_up_starts())
        if self._watching:
            self._watching.cancel()
        sweeping = [self._sweeping] if self._sweeping else []
        await asyncio.gather(*self._tasks.values(), *self._stopping, *sweeping, return_exceptions=True)
        self._dispatch.close()
        self._lives.register.close()

    async def _give_up_starts(self) -> None:
        """Who is cancelled once more while it cleans up kills its process."""
        starting = [task for id, task in self._tasks.items() if id not in self._running and not task.done()]
        if starting:
            _, late = await asyncio.wait(starting, timeout=FORCED_S)
            for task in late:
                task.cancel()

    def abandon(self) -> None:
        """End every process at once, and wait for none."""
        self._lives.register.abandon()

    def _start(self, model: str) -> None:
        self._tasks[model] = task = asyncio.create_task(self._run(self._models[model]))
        task.add_done_callback(partial(self._over, model))

    def _watch(self) -> None:
        """See from now and then what the models take, if anybody wants to know."""
        if self._rulebook.pools and (not self._watching or self._watching.done()):
            self._watching = asyncio.create_task(memory.watch(self._unmeasured, self._seen))

    def _unmeasured(self) -> dict[str, int]:
        models = {id: running.pid for id, running in self._running.items() if self._rulebook.to_be_measured(self._models[id])}
        return {id: pid for id, pid in models.items() if pid is not None}

    def _seen(self, taken: Mapping[str, Mapping[str, float]]) -> None:
        changed = [self._rulebook.measure(self._models[id], need) for id, need in taken.items()]
        if any(changed):
            self.tell(scheduler.Remeasured(self._rulebook.rules))

    async def _run(self, model: Model) -> None:
        """One life of a model: from its start to its end."""
        try:
            life = await self._begin(model)
        except EardrumError as error:
            log.error("%s failed to load: %s", model.id, error.message)
            self._gone(scheduler.StartFailed(model.id, error), error.message)
            return
        self._running[model.id] = Running(life, self._tasks[model.id], time.time())
        if life.capabilities:
            self._loaded(model, life.capabilities)
        self.departures.forget(model.id)
        self.tell(scheduler.Ready(model.id))
        self._watch()
        await life.ended
        if self.state(model) in (State.READY, State.DRAINING):
            log.error("%s", life.ending)
            self._crashes.died(model.id, life.ending, time.monotonic())
        # First the books, then the cleaning up: while that waits, requests may already start the next life.
        del self._running[model.id]
        self._gone(scheduler.Exited(model.id), life.ending)
        await life.close()

    def _gone(self, event: scheduler.Exited | scheduler.StartFailed, said: str = "") -> None:
        """A model's process is no more, or never was. The scheduler knows why; of what nobody wanted, `said` tells more."""
        self.tell(event)
        if going := self._dispatch.slots[event.model].gone:
            self.departures.add(event.model, going, said if going.reason in UNWANTED else "")

    def _over(self, model: str, task: asyncio.Task[None]) -> None:
        """See to it that the scheduler knows of an end that `_run` could not tell: it was not let begin, or failed itself."""
        if task.cancelled():
            self._gone(scheduler.Exited(model))
        elif (error := task.exception()) and self._tasks[model] is task:
            log.error("The life of %s could not be led.", model, exc_info=error)
            self._running.pop(model, None)
            failed = ModelLoadError(f"{model} could not be loaded; the server's log says why.")
            self._gone(scheduler.StartFailed(model, failed), failed.message)

    async def _begin(self, model: Model) -> Life:
        self._check_crashes(model)  # for those who waited when it died
        await asyncio.shield(self.sweep())
        return await self._lives.begin(model)

    def _stop(self, model: str) -> None:
        if running := self._running.get(model):
            self._background(running.life.stop_at_once() if running.forced else running.life.stop())
        else:
            self._tasks[model].cancel()

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)


async def _explained(model: Model, running: Running, error: RunnerCrashedError) -> RunnerCrashedError:
    """The crash in words a client can use, once the scheduler has seen it too."""
    if running.pid is None:  # another server's
        return error
    await asyncio.wait([running.life.ended], timeout=BROKEN_S if model.foreign else EXIT_S)
    if not running.life.ended.done():
        return error
    await asyncio.wait([running.task], timeout=EXIT_S)
    return running.life.crash
