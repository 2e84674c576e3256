"""How models come to life: a runner of our own, any command, or an address where another server is up already."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from eardrum import config
from eardrum.engines import cuda
from eardrum.errors import ConfigError, DeviceError, ModelLoadError, RunnerCrashedError, UpstreamDiedError, shortage
from eardrum.gateway.inventory import ADDRESS, Model
from eardrum.gateway.logs import Logs
from eardrum.gateway.processes.command import UNASKED, Command
from eardrum.gateway.processes.process import Process
from eardrum.gateway.processes.readiness import Answering
from eardrum.gateway.processes.register import Register
from eardrum.gateway.processes.timings import Timing, Timings, default_folder
from eardrum.gateway.upstreams.foreign import ForeignUpstream
from eardrum.gateway.upstreams.habits import Habits
from eardrum.gateway.upstreams.upstream import RunnerUpstream
from eardrum.types import Capabilities, Placement

log = logging.getLogger(__name__)


class Life(Protocol):
    """A model that serves. Whoever began it stops it, or learns of its end, and then closes it."""

    ended: asyncio.Future[None]
    """Completes when nothing of it is left."""
    capabilities: Capabilities | None
    """What it said of itself; None if it does not."""
    placement: Placement
    """Where it computes, as far as it says so."""
    facts: str
    """About it, for the log."""

    @property
    def silent_s(self) -> float:
        """Seconds that it owes a sign of life; 0 if it is not asked for any."""

    @property
    def upstream(self) -> RunnerUpstream | ForeignUpstream:
        """The way to it."""

    @property
    def pid(self) -> int | None:
        """Its process; None if it is another server's."""

    @property
    def ending(self) -> str:
        """How it ended."""

    @property
    def crash(self) -> RunnerCrashedError:
        """The same for those whose request it took with it."""

    async def stop(self) -> None:
        """End it, and wait until it is gone."""

    async def stop_at_once(self) -> None:
        """The same, whatever it is doing, and also when it is being stopped."""

    async def close(self) -> None:
        """Let go of what it needed."""


class RunnerLife:
    """A runner, and the folders with its socket and its temporary files."""

    def __init__(self, process: Process, socket: str, folders: ExitStack, reason: str = ""):
        """`reason` is why the model was not loaded on a GPU, if the process does not know."""
        self.process = process
        self.pid: int | None = process.pid
        self.upstream = RunnerUpstream(socket)
        self.capabilities: Capabilities | None = Capabilities.from_json(process.ready["capabilities"])
        self.placement = Placement.from_json(process.ready.get("placement", {}) | ({"reason": reason} if reason else {}))
        self.ended, self.stop, self.stop_at_once = process.ended, process.stop, process.kill
        where = [f"on {self.placement.device}"] if self.placement.device else []
        numbers = [self.placement.compute_type] if self.placement.compute_type else []
        self.facts = ", ".join([*where, *numbers, f"batch {process.ready['batch']}", f"pid {process.pid}"])
        self._folders = folders

    @property
    def silent_s(self) -> float:
        """Seconds that the process owes a sign of life."""
        return self.process.silent_s

    @property
    def ending(self) -> str:
        """How it ended, and what it said last."""
        return f"The process of {self.process.name} {self.process.ending}. {self.process.last_words}"

    @property
    def crash(self) -> RunnerCrashedError:
        """How it ended."""
        return RunnerCrashedError(f"The process of {self.process.name} {self.process.ending} while it worked on this audio.")

    async def close(self) -> None:
        """Close the connections and remove the folders."""
        await self.upstream.close()
        self._folders.close()


class CommandLife:
    """A command, and the way to where it serves."""

    capabilities: Capabilities | None = None
    placement = Placement()

    def __init__(self, command: Command, upstream: ForeignUpstream):
        self.pid: int | None = command.pid
        self.upstream = upstream
        self.ended, self.stop, self.close = command.ended, command.stop, upstream.close
        self.facts = f"pid {command.pid}, at {upstream.address}"
        self._command = command

    async def stop_at_once(self) -> None:
        """Hang up on it first: there are servers that finish what they have begun whatever they are told."""
        await self.upstream.close()
        await self._command.stop_at_once()

    @property
    def silent_s(self) -> float:
        """Seconds for which it has been stopped."""
        return self._command.silent_s

    @property
    def ending(self) -> str:
        """How it ended, and what it said last."""
        command = self._command
        return f"The command of {command.name} {command.ending}.{command.advice} {command.last_words}"

    @property
    def crash(self) -> RunnerCrashedError:
        """The same: it was the answer's end too."""
        return UpstreamDiedError(self.ending)


class AddressLife:
    """A server that somebody else runs: it lives until nobody wants it any more."""

    capabilities: Capabilities | None = None
    placement = Placement()
    silent_s = 0.0
    pid: int | None = None

    def __init__(self, model: str, upstream: ForeignUpstream):
        self.upstream = upstream
        self.ending = f"{model} was unloaded."
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.close = upstream.close
        self.facts = f"at {upstream.address}"

    @property
    def crash(self) -> RunnerCrashedError:
        """Its end is ours."""
        return UpstreamDiedError(self.ending)

    async def stop(self) -> None:
        """No more of it."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def stop_at_once(self) -> None:
        """No more of it."""
        await self.stop()


class Lives:
    """Begins them."""

    def __init__(self, settings: config.Settings, logs: Logs):
        self.settings = settings
        self.register = Register(settings.spool_dir or Path(tempfile.gettempdir()))
        self._logs = logs
        self._timings = Timings(settings.cache_dir or default_folder())

    async def begin(self, model: Model) -> Life:
        """Start what serves the model, and wait until it does.

        Raises:
            EardrumError: it cannot be started, died, or was not ready in time.
        """
        began = time.monotonic()
        life = await (self._begin_foreign(model) if model.foreign else self._begin_runner(model))
        log.info("%s ready after %.1f s: %s, %s", model.id, time.monotonic() - began, model.engine, life.facts)
        if life.placement.reason:
            log.warning("%s runs on the CPU: %s", model.id, life.placement.reason)
        return life

    async def _begin_foreign(self, model: Model) -> Life:
        assert model.entry
        upstream = ForeignUpstream(
            model.entry.proxy,
            model.entry.timeouts,
            key=model.key,
            model=model.entry.useModelName or model.id,
            known=Habits.of(model.options),
        )
        try:
            if model.engine == ADDRESS:
                await self._reached(model.id, model.entry, upstream)
                return AddressLife(model.id, upstream)
            return CommandLife(await self._started_command(model.id, model.entry, upstream), upstream)
        except BaseException:
            await upstream.close()
            raise

    async def _started_command(self, id: str, entry: config.Model, upstream: ForeignUpstream) -> Command:
        command = await Command.start(
            id,
            entry,
            upstream.session,
            within_s=self.settings.healthCheckTimeout,
            unload_s=entry.unloadTimeout or self.settings.unloadTimeout,
            said=self._logs.of(id),
            register=self.register,
        )
        command.watch(self.settings.answer_seconds)
        return command

    async def _reached(self, id: str, entry: config.Model, upstream: ForeignUpstream) -> None:
        """Another server is asked whether it serves only if the config says at which path."""
        if "checkEndpoint" not in entry.model_fields_set or entry.checkEndpoint == UNASKED:
            return
        readiness = Answering(upstream.session, f"{entry.proxy.rstrip('/')}/{entry.checkEndpoint.lstrip('/')}")
        try:
            async with asyncio.timeout(within := self.settings.healthCheckTimeout):
                await readiness.reached()
        except TimeoutError:
            raise ModelLoadError(f"{id} was not ready after {within:g} s (healthCheckTimeout): {readiness.last}.") from None

    async def _begin_runner(self, model: Model) -> Life:
        folders = ExitStack()
        try:
            socket, temp = self._folders(folders)
            try:
                process, reason = await self._started_runner(model, socket, temp), ""
            except DeviceError as error:
                if model.options.get("device", "auto") != "auto":
                    raise cuda.asked_for(error) from error
                on_cpu = replace(model, options={**model.options, "device": "cpu"})
                process, reason = await self._started_runner(on_cpu, socket, temp), error.message
            return RunnerLife(process, socket, folders, reason)
        except BaseException:
            folders.close()
            raise

    def _folders(self, closing: ExitStack) -> tuple[str, str]:
        """The path of a new socket, and a folder for temporary files: where uploads are, whose path may be too long for a socket.

        Raises:
            StorageFullError: there is no room for them.
        """
        try:
            made = [closing.enter_context(_folder())]
            if self.settings.spool_dir:
                made.append(closing.enter_context(_folder(self.settings.spool_dir)))
        except OSError as error:
            if known := shortage(error, "for the folder of a model's process"):
                raise known from error
            raise
        return os.path.join(made[0], "runner.sock"), made[-1]

    async def _started_runner(self, model: Model, socket: str, folder: str) -> Process:
        interpreter = model.python or sys.executable
        hint = f" It runs in {interpreter} (`python:`): is that a Python with Eardrum installed?" if model.python else ""
        timing = await asyncio.to_thread(self._timings.of, model)
        try:
            process = await Process.start(
                model.id,
                [interpreter, "-m", "eardrum.runner", *self._arguments(model, socket, folder, model.batch or timing.batch)],
                within_s=self.settings.start_seconds,
                environment={
                    "EARDRUM_RUNNER_OPTIONS": json.dumps(model.options | timing.options),  # not for everybody who lists processes
                    "TMPDIR": folder,  # goes with the process, whatever a library leaves there
                },
                hint=hint,
                said=self._logs.of(model.id),
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelLoadError(f"{model.id} could not be started: {interpreter}: {reason}.{hint}") from error
        except ConfigError as error:
            raise ModelLoadError(f"models.{model.id}: {error.message}") from error
        process.watch(answer_s=self.settings.answer_seconds, batch_s=self.settings.batch_seconds)
        found = Timing(timing.batch if model.batch else process.ready["batch"], process.ready.get("measured", {}))
        await asyncio.to_thread(self._timings.keep, model, found)
        return process

    def _arguments(self, model: Model, socket: str, folder: str, batch: int) -> list[str]:
        arguments = {
            "--engine": model.engine,
            "--source": str(model.source or ""),
            "--socket": socket,
            "--batch": str(batch),
            "--max-audio-s": str(self.settings.limits.audio_seconds),
            "--log-level": logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower(),
        }
        own = dict.fromkeys([os.path.dirname(socket), folder])
        return [*itertools.chain(*arguments.items()), *(f"--own-folder={path}" for path in own), "--parent"]


def _folder(parent: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="eardrum-", dir=parent, ignore_cleanup_errors=True)
