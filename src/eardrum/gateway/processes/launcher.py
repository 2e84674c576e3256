"""Launches models: as a runner of our own, as any command, or at the address of a server that already runs.

`TuningCache` keeps what a load measured (batch size, threads) for the next load, also across restarts. It is only a cache:
without the file, or with a broken one, models are measured again.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import os
import platform
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from eardrum import __version__, config
from eardrum.engines import cuda
from eardrum.errors import ConfigError, DeviceError, ModelLoadError, RunnerCrashedError, UpstreamDiedError, build_shortage_error
from eardrum.gateway.logs import GatewayLogs
from eardrum.gateway.models.inventory import ADDRESS, Model
from eardrum.gateway.processes.command import NO_CHECK, CommandProcess, HttpReadinessProbe
from eardrum.gateway.processes.orphans import ProcessRegistry
from eardrum.gateway.processes.runner_process import RunnerProcess
from eardrum.gateway.upstreams import Upstream
from eardrum.gateway.upstreams.external import ExternalUpstream
from eardrum.gateway.upstreams.runner import RunnerUpstream
from eardrum.gateway.upstreams.transcription_request import RequestStrategy
from eardrum.transcription import Capabilities, ModelPlacement
from eardrum.units import count_usable_cores

log = logging.getLogger(__name__)


class ModelInstance(Protocol):
    """A model that serves. Whoever began it stops it, or learns of its end, and then closes it."""

    ended: asyncio.Future[None]
    """Completes when nothing of it is left."""
    capabilities: Capabilities | None
    """What it said of itself; None if it does not."""
    placement: ModelPlacement
    """Where it computes, as far as it says so."""
    log_details: str
    """About it, for the log."""

    @property
    def unresponsive_s(self) -> float:
        """Seconds that it owes a sign of life; 0 if it is not asked for any."""

    @property
    def upstream(self) -> Upstream:
        """The way to it."""

    @property
    def pid(self) -> int | None:
        """Its process; None if it is another server's."""

    @property
    def exit_description(self) -> str:
        """How it ended."""

    @property
    def crash_error(self) -> RunnerCrashedError:
        """The same for those whose request it took with it."""

    async def stop(self) -> None:
        """End it, and wait until it is gone."""

    async def stop_now(self) -> None:
        """The same, whatever it is doing, and also when it is being stopped."""

    async def close(self) -> None:
        """Let go of what it needed."""


class RunnerInstance:
    """A runner, and the folders with its socket and its temporary files."""

    def __init__(self, process: RunnerProcess, socket: str, folders: ExitStack, reason: str = ""):
        """`reason` is why the model was not loaded on a GPU, if the process does not know."""
        self.process = process
        self.pid: int | None = process.pid
        self.upstream = RunnerUpstream(socket)
        self.capabilities: Capabilities | None = Capabilities.from_json(process.ready_message["capabilities"])
        self.placement = ModelPlacement.from_json(
            process.ready_message.get("placement", {}) | ({"reason": reason} if reason else {})
        )
        self.ended, self.stop, self.stop_now = process.ended, process.stop, process.kill
        where = [f"on {self.placement.device}"] if self.placement.device else []
        numbers = [self.placement.compute_type] if self.placement.compute_type else []
        self.log_details = ", ".join([*where, *numbers, f"batch {process.ready_message['batch']}", f"pid {process.pid}"])
        self._folders = folders

    @property
    def unresponsive_s(self) -> float:
        """Seconds that the process owes a sign of life."""
        return self.process.unresponsive_s

    @property
    def exit_description(self) -> str:
        """How it ended, and what it said last."""
        return f"The process of {self.process.name} {self.process.exit_description}. {self.process.last_output}"

    @property
    def crash_error(self) -> RunnerCrashedError:
        """How it ended."""
        return RunnerCrashedError(
            f"The process of {self.process.name} {self.process.exit_description} while it worked on this audio."
        )

    async def close(self) -> None:
        """Close the connections and remove the folders."""
        await self.upstream.close()
        self._folders.close()


class CommandInstance:
    """A command, and the way to where it serves."""

    capabilities: Capabilities | None = None
    placement = ModelPlacement()

    def __init__(self, command: CommandProcess, upstream: ExternalUpstream):
        self.pid: int | None = command.pid
        self.upstream = upstream
        self.ended, self.stop, self.close = command.ended, command.stop, upstream.close
        self.log_details = f"pid {command.pid}, at {upstream.address}"
        self._command = command

    async def stop_now(self) -> None:
        """Hang up on it first: there are servers that finish what they have begun whatever they are told."""
        await self.upstream.close()
        await self._command.stop_now()

    @property
    def unresponsive_s(self) -> float:
        """Seconds for which it has been stopped."""
        return self._command.silent_s

    @property
    def exit_description(self) -> str:
        """How it ended, and what it said last."""
        command = self._command
        return f"The command of {command.name} {command.exit_description}.{command.exit_hint} {command.last_output}"

    @property
    def crash_error(self) -> RunnerCrashedError:
        """The same: it was the answer's end too."""
        return UpstreamDiedError(self.exit_description)


class AddressInstance:
    """A server that somebody else runs: it lives until nobody wants it any more."""

    capabilities: Capabilities | None = None
    placement = ModelPlacement()
    unresponsive_s = 0.0
    pid: int | None = None

    def __init__(self, model: str, upstream: ExternalUpstream):
        self.upstream = upstream
        self.exit_description = f"{model} was unloaded."
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.close = upstream.close
        self.log_details = f"at {upstream.address}"

    @property
    def crash_error(self) -> RunnerCrashedError:
        """Its end is ours."""
        return UpstreamDiedError(self.exit_description)

    async def stop(self) -> None:
        """No more of it."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def stop_now(self) -> None:
        """No more of it."""
        await self.stop()


class ModelLauncher:
    """Begins them."""

    def __init__(self, settings: config.Settings, logs: GatewayLogs):
        self.settings = settings
        self.process_registry = ProcessRegistry(settings.spool_dir or Path(tempfile.gettempdir()))
        self._logs = logs
        self._tuning_cache = TuningCache(settings.cache_dir or find_cache_folder())

    async def launch_model(self, model: Model) -> ModelInstance:
        """Start what serves the model, and wait until it does.

        Raises:
            EardrumError: it cannot be started, died, or was not ready in time.
        """
        began = time.monotonic()
        life = await (self._launch_external(model) if model.is_external else self._launch_runner(model))
        log.info("%s ready after %.1f s: %s, %s", model.id, time.monotonic() - began, model.engine, life.log_details)
        if life.placement.reason:
            log.warning("%s runs on the CPU: %s", model.id, life.placement.reason)
        return life

    async def _launch_external(self, model: Model) -> ModelInstance:
        assert model.entry
        upstream = ExternalUpstream(
            model.entry.proxy,
            model.entry.timeouts,
            key=model.key,
            model=model.entry.useModelName or model.id,
            known=RequestStrategy.from_options(model.options),
        )
        try:
            if model.engine == ADDRESS:
                await self._wait_reachable(model.id, model.entry, upstream)
                return AddressInstance(model.id, upstream)
            return CommandInstance(await self._start_command(model.id, model.entry, upstream), upstream)
        except BaseException:
            await upstream.close()
            raise

    async def _start_command(self, id: str, entry: config.ModelSettings, upstream: ExternalUpstream) -> CommandProcess:
        command = await CommandProcess.start(
            id,
            entry,
            upstream.session,
            within_s=self.settings.healthCheckTimeout,
            unload_s=entry.unloadTimeout or self.settings.unloadTimeout,
            said=self._logs.get_model_log(id),
            register=self.process_registry,
        )
        command.watch(self.settings.answer_seconds)
        return command

    async def _wait_reachable(self, id: str, entry: config.ModelSettings, upstream: ExternalUpstream) -> None:
        """Another server is asked whether it serves only if the config says at which path."""
        if "checkEndpoint" not in entry.model_fields_set or entry.checkEndpoint == NO_CHECK:
            return
        readiness = HttpReadinessProbe(upstream.session, f"{entry.proxy.rstrip('/')}/{entry.checkEndpoint.lstrip('/')}")
        try:
            async with asyncio.timeout(within := self.settings.healthCheckTimeout):
                await readiness.wait_ready()
        except TimeoutError:
            raise ModelLoadError(
                f"{id} was not ready after {within:g} s (healthCheckTimeout): {readiness.last_result}."
            ) from None

    async def _launch_runner(self, model: Model) -> ModelInstance:
        folders = ExitStack()
        try:
            socket, temp = self._create_folders(folders)
            try:
                process, reason = await self._start_runner(model, socket, temp), ""
            except DeviceError as error:
                if model.options.get("device", "auto") != "auto":
                    raise cuda.explain_requested_device(error) from error
                on_cpu = replace(model, options={**model.options, "device": "cpu"})
                process, reason = await self._start_runner(on_cpu, socket, temp), error.message
            return RunnerInstance(process, socket, folders, reason)
        except BaseException:
            folders.close()
            raise

    def _create_folders(self, closing: ExitStack) -> tuple[str, str]:
        """The path of a new socket, and a folder for temporary files: where uploads are, whose path may be too long for a socket.

        Raises:
            StorageFullError: there is no room for them.
        """
        try:
            made = [closing.enter_context(_create_folder())]
            if self.settings.spool_dir:
                made.append(closing.enter_context(_create_folder(self.settings.spool_dir)))
        except OSError as error:
            if known := build_shortage_error(error, "for the folder of a model's process"):
                raise known from error
            raise
        return os.path.join(made[0], "runner.sock"), made[-1]

    async def _start_runner(self, model: Model, socket: str, folder: str) -> RunnerProcess:
        interpreter = model.python or sys.executable
        hint = f" It runs in {interpreter} (`python:`): is that a Python with Eardrum installed?" if model.python else ""
        timing = await asyncio.to_thread(self._tuning_cache.get_result, model)
        try:
            process = await RunnerProcess.start(
                model.id,
                [interpreter, "-m", "eardrum.runner", *self._build_arguments(model, socket, folder, model.batch or timing.batch)],
                within_s=self.settings.start_seconds,
                environment={
                    "EARDRUM_RUNNER_OPTIONS": json.dumps(model.options | timing.options),  # not for everybody who lists processes
                    "TMPDIR": folder,  # goes with the process, whatever a library leaves there
                },
                hint=hint,
                said=self._logs.get_model_log(model.id),
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelLoadError(f"{model.id} could not be started: {interpreter}: {reason}.{hint}") from error
        except ConfigError as error:
            raise ModelLoadError(f"models.{model.id}: {error.message}") from error
        process.start_watchdog(answer_s=self.settings.answer_seconds, batch_s=self.settings.batch_seconds)
        found = TuningResult(
            timing.batch if model.batch else process.ready_message["batch"], process.ready_message.get("measured", {})
        )
        await asyncio.to_thread(self._tuning_cache.store_result, model, found)
        return process

    def _build_arguments(self, model: Model, socket: str, folder: str, batch: int) -> list[str]:
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


def _create_folder(parent: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="eardrum-", dir=parent, ignore_cleanup_errors=True)


CACHE_FILE = "timings.json"
MAX_CACHED_MODELS = 200
"""Models that are remembered; the one timed longest ago makes room."""

CPU_INFO, CPU_QUOTA, GPU_INFO = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max"), Path("/proc/driver/nvidia/gpus")


def find_cache_folder() -> Path | None:
    """Where programs keep what they can do without; None for a user without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eardrum"
    return None


@dataclass(frozen=True, slots=True)
class TuningResult:
    """Windows per batch, 0 if that was never timed, and options of the engine that timing chose."""

    batch: int = 0
    options: dict[str, Any] = field(default_factory=dict)


class TuningCache:
    """What is known of models on this machine, by all that their speed depends on. Its methods block on the disk.

    Without a folder it is known as long as the process lives.
    """

    def __init__(self, folder: Path | None):
        self._file = folder / CACHE_FILE if folder else None
        self._found: dict[str, TuningResult] = {}

    def get_result(self, model: Model) -> TuningResult:
        """What was found for the model, in this process or an earlier one."""
        key = _compute_key(model)
        return self._found.get(key) or self._read_file().get(key, TuningResult())

    def store_result(self, model: Model, timing: TuningResult) -> None:
        """Remember what was found, on disk only for models that are there."""
        key = _compute_key(model)
        if self._found.get(key) == timing:
            return
        self._found[key] = timing
        if self._file and model.source and timing != TuningResult():
            kept = self._read_file()
            kept.pop(key, None)
            kept[key] = timing  # as the latest
            self._write_file(self._file, dict(list(kept.items())[-MAX_CACHED_MODELS:]))

    def _read_file(self) -> dict[str, TuningResult]:
        if not self._file:
            return {}
        try:
            entries = json.loads(self._file.read_bytes())
            return {key: TuningResult(int(entry["batch"]), dict(entry["options"])) for key, entry in entries.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.debug("%s is of no use: %s", self._file, error)
            return {}

    def _write_file(self, file: Path, kept: dict[str, TuningResult]) -> None:
        """Put the file in place whole: another server may be reading it."""
        content = json.dumps({key: {"batch": timing.batch, "options": timing.options} for key, timing in kept.items()})
        new = file.with_name(f"{CACHE_FILE}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(content)
            new.replace(file)
        except OSError as error:
            log.debug("%s cannot be written: %s", file, error)
            with suppress(OSError):
                new.unlink()


def _compute_key(model: Model) -> str:
    what = [
        model.engine,
        str(model.source),
        _list_files(model.source),
        model.options,
        model.python,
        __version__,
        _describe_machine(),
    ]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _list_files(source: Path | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a model's files: another model may have come to lie in the same place."""
    found = []
    with suppress(OSError):
        if source:
            for file in [source, *sorted(source.iterdir())] if source.is_dir() else [source]:
                state = file.stat()
                found.append((file.name, state.st_size, state.st_mtime_ns))
    return found


def _describe_machine() -> list[str]:
    """What a model's speed depends on here."""
    return [
        platform.machine(),
        _read_line(CPU_INFO, "model name"),
        str(count_usable_cores()),
        _read_line(CPU_QUOTA),
        *_list_gpus(),
        os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    ]


def _list_gpus() -> list[str]:
    with suppress(OSError):
        return [_read_line(gpu, "Model") for gpu in sorted(GPU_INFO.glob("*/information"))]
    return []


def _read_line(file: Path, begins: str = "") -> str:
    """The first line that begins so; empty if there is none."""
    with suppress(OSError), file.open(errors="replace") as lines:
        return next((line.strip() for line in lines if line.startswith(begins)), "")
    return ""
