"""Carries out what the scheduler decides: starts, watches and stops the models' processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from eardrum.errors import ConfigError, EardrumError, ModelLoadError, RunnerCrashedError, UpstreamDiedError
from eardrum.gateway import scheduler
from eardrum.gateway.command import Command
from eardrum.gateway.foreign import ForeignUpstream
from eardrum.gateway.inventory import ADDRESS, Model
from eardrum.gateway.process import Process
from eardrum.gateway.scheduler import Scheduler, State
from eardrum.gateway.upstream import RunnerUpstream
from eardrum.types import Capabilities

log = logging.getLogger(__name__)

EXIT_S = 5.0
"""How long after its connection broke a process may take to be seen dead."""

BROKEN_S = 0.5
"""The same for a command, which may also break a connection and live."""


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """A model that serves: its process, the way to it, and the task that sees to its end."""

    process: Process | Command | None
    """None if it is another server's."""
    upstream: RunnerUpstream | ForeignUpstream
    life: asyncio.Task[None]
    since: float
    """Unix time at which it was ready."""


class Supervisor:
    """The one owner of the models' processes. Everything happens on the event loop."""

    def __init__(self, *, start_seconds: float, max_audio_s: float, loaded: Callable[[Model, Capabilities], None]):
        self._start_seconds = start_seconds
        self._max_audio_s = max_audio_s
        self._loaded = loaded
        self._scheduler = Scheduler()
        self._models: dict[str, Model] = {}
        self._running: dict[str, Running] = {}
        self._tickets: dict[int, asyncio.Future[None]] = {}
        self._ids = itertools.count()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._measured: dict[str, dict[str, Any]] = {}
        self._batches: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._down = False

    @asynccontextmanager
    async def lease(self, model: Model) -> AsyncIterator[RunnerUpstream | ForeignUpstream]:
        """The right to use the ready model for one request; starts it first when it must.

        Raises:
            BusyError: it holds as many requests as it may.
            ModelLoadError: it cannot be started.
            RunnerCrashedError: from inside, after the process is known to be gone.
            ShuttingDownError: the server goes down.
        """
        self._models[model.id] = model
        ticket, granted = next(self._ids), asyncio.get_running_loop().create_future()
        self._tickets[ticket] = granted
        try:
            self._handle(scheduler.Wanted(model.id, ticket, model.max_requests, model.ttl))
            try:
                await granted
            except asyncio.CancelledError:
                self._handle(scheduler.Cancelled(model.id, ticket))
                raise
            running = self._running.get(model.id)
            if not running:
                raise RunnerCrashedError(f"The process of {model.id} ended as soon as it was ready.")
            try:
                yield running.upstream
            except RunnerCrashedError as error:
                explained = await _explained(model, running, error)
                raise (scheduler.shutting_down() if self._down else explained) from error
        finally:
            del self._tickets[ticket]
            self._handle(scheduler.Done(model.id, ticket))

    def state(self, model: Model) -> State:
        """The model's state."""
        slot = self._scheduler.slots.get(model.id)
        return slot.state if slot else State.STOPPED

    def load(self, model: Model) -> int:
        """Requests the model holds."""
        slot = self._scheduler.slots.get(model.id)
        return len(slot.active) + len(slot.waiting) if slot else 0

    async def unload(self, model: Model) -> None:
        """End the model's process, once it has finished what it has begun, and wait until it is gone."""
        self._handle(scheduler.Unload(model.id))
        if (running := self._running.get(model.id)) and self.state(model) in (State.DRAINING, State.STOPPING):
            await asyncio.shield(running.life)

    def running(self, model: Model) -> Running | None:
        """The model's process, if it serves."""
        return self._running.get(model.id)

    def idle_for(self, model: Model) -> float | None:
        """Seconds since the model's last request; None while it has one, or is not loaded."""
        slot = self._scheduler.slots.get(model.id)
        return time.monotonic() - slot.idle_since if slot and slot.state is State.READY and not slot.active else None

    def ttl(self, model: Model) -> float:
        """The time to live that its last request gave it, in seconds; 0 is never unloaded."""
        slot = self._scheduler.slots.get(model.id)
        return slot.ttl if slot else model.ttl

    async def shutdown(self) -> None:
        """Stop every process and wait until all are gone."""
        self._down = True
        self._handle(scheduler.Shutdown())
        await asyncio.gather(*self._tasks.values(), *self._stopping, return_exceptions=True)

    def _handle(self, event: scheduler.Event) -> None:
        for action in self._scheduler.handle(event, time.monotonic()):
            match action:
                case scheduler.Start(model):
                    self._tasks[model] = asyncio.create_task(self._run(self._models[model]))
                case scheduler.Stop(model):
                    self._stop(model)
                case scheduler.Grant(ticket):
                    if not self._tickets[ticket].done():
                        self._tickets[ticket].set_result(None)
                case scheduler.Reject(ticket, error):
                    if not self._tickets[ticket].done():
                        self._tickets[ticket].set_exception(error)
        self._set_timer()

    def _set_timer(self) -> None:
        """Come back when the first model's time to live is over."""
        if self._timer:
            self._timer.cancel()
        due = self._scheduler.due
        wait = None if due is None else max(0.0, due - time.monotonic())
        self._timer = None if wait is None else asyncio.get_running_loop().call_later(wait, self._handle, scheduler.Tick())

    async def _run(self, model: Model) -> None:
        """One life of a model's process: from its start to its end."""
        if model.foreign:
            await self._run_foreign(model)
            return
        with tempfile.TemporaryDirectory(prefix="eardrum-", ignore_cleanup_errors=True) as directory:
            socket = os.path.join(directory, "runner.sock")
            try:
                process = await self._started(model, socket, directory)
            except asyncio.CancelledError:
                self._handle(scheduler.Exited(model.id))
                raise
            except EardrumError as error:
                log.error("%s failed to load: %s", model.id, error.message)
                self._handle(scheduler.StartFailed(model.id, error))
                return
            running = Running(process, RunnerUpstream(socket), self._tasks[model.id], time.time())
            self._running[model.id] = running
            self._loaded(model, Capabilities.from_json(process.ready["capabilities"]))
            self._handle(scheduler.Ready(model.id))
            await process.ended
            if self.state(model) is State.READY:
                log.error("The process of %s %s. %s", model.id, process.ending, process.last_words)
            # First the books, then the cleaning up: while that waits, requests may already start the next process.
            del self._running[model.id]
            self._handle(scheduler.Exited(model.id))
            await running.upstream.close()

    async def _run_foreign(self, model: Model) -> None:
        assert model.entry
        address = model.entry.proxy.rstrip("/")
        try:
            command = None
            if model.engine != ADDRESS:
                check = address + model.entry.checkEndpoint
                command = await Command.start(model.id, model.entry.cmd, check=check, within_s=self._start_seconds)
        except asyncio.CancelledError:
            self._handle(scheduler.Exited(model.id))
            raise
        except EardrumError as error:
            self._handle(scheduler.StartFailed(model.id, error))
            return
        running = Running(
            command, ForeignUpstream(address, model.entry.timeouts, key=model.key), self._tasks[model.id], time.time()
        )
        self._running[model.id] = running
        self._handle(scheduler.Ready(model.id))
        with suppress(asyncio.CancelledError):  # how an address, which has no process to end, is stopped
            await (command.ended if command else asyncio.get_running_loop().create_future())
        del self._running[model.id]
        self._handle(scheduler.Exited(model.id))
        await running.upstream.close()

    async def _started(self, model: Model, socket: str, directory: str) -> Process:
        began, interpreter = time.monotonic(), model.python or sys.executable
        hint = f" It runs in {interpreter} (`python:`): is that a Python with Eardrum installed?" if model.python else ""
        try:
            process = await Process.start(
                model.id,
                [interpreter, "-m", "eardrum.runner", *self._arguments(model, socket)],
                within_s=self._start_seconds,
                environment={
                    "EARDRUM_RUNNER_OPTIONS": json.dumps(
                        model.options | self._measured.get(_kind(model), {})
                    ),  # not for everybody who lists processes
                    "TMPDIR": directory,  # goes with the process, whatever a library leaves there
                },
                hint=hint,
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelLoadError(f"{model.id} could not be started: {interpreter}: {reason}.{hint}") from error
        except ConfigError as error:
            raise ModelLoadError(f"models.{model.id}: {error.message}") from error
        seconds, batch = time.monotonic() - began, process.ready["batch"]
        # Loading it again need not find out again.
        self._batches[_kind(model)], self._measured[_kind(model)] = batch, process.ready.get("measured", {})
        log.info("%s ready after %.1f s: engine %s, batch %d, pid %d", model.id, seconds, model.engine, batch, process.pid)
        return process

    def _arguments(self, model: Model, socket: str) -> list[str]:
        arguments = {
            "--engine": model.engine,
            "--source": str(model.source or ""),
            "--socket": socket,
            "--batch": str(model.batch or self._batches.get(_kind(model), 0)),
            "--max-audio-s": str(self._max_audio_s),
            "--log-level": logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower(),
        }
        return [*itertools.chain(*arguments.items()), "--parent"]

    def _stop(self, model: str) -> None:
        if running := self._running.get(model):
            if running.process:
                self._background(running.process.stop())
            else:
                running.life.cancel()
        else:
            self._tasks[model].cancel()

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)


def _kind(model: Model) -> str:
    """What a measurement of the model's speed holds for."""
    return json.dumps([model.id, model.engine, str(model.source), model.options, model.python], sort_keys=True)


async def _explained(model: Model, running: Running, error: RunnerCrashedError) -> RunnerCrashedError:
    """The crash in words a client can use, once the scheduler has seen it too."""
    if not running.process:  # another server's
        return error
    await asyncio.wait([running.life], timeout=EXIT_S if isinstance(running.process, Process) else BROKEN_S)
    if running.life.done() and isinstance(error, UpstreamDiedError):
        return UpstreamDiedError(f"The command of {model.id} {running.process.ending}. {running.process.last_words}".rstrip())
    if running.life.done():
        return RunnerCrashedError(f"The process of {model.id} {running.process.ending} while it worked on this audio.")
    return error
