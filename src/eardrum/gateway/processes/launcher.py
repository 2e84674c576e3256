"""Launches models: as a runner, as a command, or at the address of a server that already runs.

`TuningCache` keeps the batch size and options that a runner measured for later loads, also across restarts. Without the file,
or with a broken one, models are measured again.
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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

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

if TYPE_CHECKING:
    from eardrum.gateway.processes.fleet import Fleet, FleetModel
    from eardrum.gateway.upstreams.replicas import ReplicaSet, ReplicaStatus

log = logging.getLogger(__name__)


class ModelInstance(Protocol):
    """A model that serves. The caller that launched it stops it, or waits for `ended`, and then closes it."""

    ended: asyncio.Future[None]
    """Completes when its processes have ended."""
    capabilities: Capabilities | None
    """The capabilities that the loaded model reported; None for other servers."""
    placement: ModelPlacement
    """The device and number format that the model reported."""
    log_details: str
    """Device, batch size, pid or address, for the log."""

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        """The runners that serve it, if the config names several on this or other machines."""

    @property
    def unresponsive_s(self) -> float:
        """Seconds for which it has not answered the liveness check, or has been suspended; 0 if all is well."""

    @property
    def upstream(self) -> Upstream:
        """The connection to it."""

    @property
    def pid(self) -> int | None:
        """The pid of its process; None for another server."""

    @property
    def exit_description(self) -> str:
        """A sentence about its end, for messages."""

    @property
    def crash_error(self) -> RunnerCrashedError:
        """The error for requests that its end cut off."""

    async def stop(self) -> None:
        """End it, and wait until it has ended."""

    async def stop_now(self) -> None:
        """End it without waiting for requests, also while `stop` is waiting."""

    async def close(self) -> None:
        """Close connections and remove temporary folders, once it has ended."""


class RunnerInstance:
    """A runner, and the folders with its socket and its temporary files."""

    replicas = ()

    def __init__(self, process: RunnerProcess, socket: str, folders: ExitStack, reason: str = ""):
        """`reason` tells why a first process could not load the model on a GPU."""
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
        """Seconds for which the process has not answered the liveness check."""
        return self.process.unresponsive_s

    @property
    def exit_description(self) -> str:
        """A sentence about its end, and its last output."""
        return f"The process of {self.process.name} {self.process.exit_description}. {self.process.last_output}"

    @property
    def crash_error(self) -> RunnerCrashedError:
        """The error for requests that its end cut off."""
        return RunnerCrashedError(
            f"The process of {self.process.name} {self.process.exit_description} while it worked on this audio."
        )

    async def close(self) -> None:
        """Close the connections and remove the folders."""
        await self.upstream.close()
        self._folders.close()


class CommandInstance:
    """A command, and the connection to its server."""

    capabilities: Capabilities | None = None
    placement = ModelPlacement()
    replicas = ()

    def __init__(self, command: CommandProcess, upstream: ExternalUpstream):
        self.pid: int | None = command.pid
        self.upstream = upstream
        self.ended, self.stop, self.close = command.ended, command.stop, upstream.close
        self.log_details = f"pid {command.pid}, at {upstream.address}"
        self._command = command

    async def stop_now(self) -> None:
        """Close the connections first: some servers finish all requests before they end."""
        await self.upstream.close()
        await self._command.stop_now()

    @property
    def unresponsive_s(self) -> float:
        """Seconds for which it has been suspended (SIGSTOP)."""
        return self._command.suspended_s

    @property
    def exit_description(self) -> str:
        """A sentence about its end, and its last output."""
        command = self._command
        return f"The command of {command.name} {command.exit_description}.{command.exit_hint} {command.last_output}"

    @property
    def crash_error(self) -> RunnerCrashedError:
        """The error for requests that its end cut off."""
        return UpstreamDiedError(self.exit_description)


class RemoteInstance:
    """A server that Eardrum did not start. `stop` forgets it."""

    pid: int | None = None

    def __init__(self, model: str, upstream: Upstream):
        self.upstream = upstream
        self.exit_description = f"{model} was unloaded."
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.close = upstream.close

    @property
    def crash_error(self) -> RunnerCrashedError:
        """The error for requests that its end cut off."""
        return UpstreamDiedError(self.exit_description)

    async def stop(self) -> None:
        """Complete `ended`; the server itself keeps running."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def stop_now(self) -> None:
        """Same as `stop`."""
        await self.stop()


class AddressInstance(RemoteInstance):
    """A server at an address."""

    capabilities: Capabilities | None = None
    placement = ModelPlacement()
    replicas = ()
    unresponsive_s = 0.0

    def __init__(self, model: str, upstream: ExternalUpstream):
        super().__init__(model, upstream)
        self.log_details = f"at {upstream.address}"


class ReplicatedInstance(RemoteInstance):
    """The runners that serve a model together."""

    def __init__(self, model: str, replicas: ReplicaSet):
        from eardrum.gateway.upstreams.failover import ReplicatedUpstream

        super().__init__(model, ReplicatedUpstream(replicas))
        self._replicas = replicas
        found = [replica.health for replica in replicas if replica.is_ready and replica.health]
        self.capabilities: Capabilities | None = found[0].capabilities
        self.placement = found[0].placement
        self.log_details = f"with {len(self.replicas)} replicas"

    @property
    def replicas(self) -> Sequence[ReplicaStatus]:
        """The state of each runner."""
        return self._replicas.statuses

    @property
    def unresponsive_s(self) -> float:
        """Seconds for which none has been ready."""
        return self._replicas.unready_s

    def use_settings(self, settings: config.ReplicaSettings) -> None:
        """Use other runners: those that are left out finish their requests."""
        self._replicas.set_addresses(settings.addresses, settings.token)


class RayInstance(ReplicatedInstance):
    """The runners of a model that Ray runs. `stop` ends them."""

    def __init__(self, model: FleetModel, replicas: ReplicaSet, fleet: Fleet):
        super().__init__(model.id, replicas)
        self._model = model
        self._fleet = fleet

    def use_settings(self, settings: config.ReplicaSettings) -> None:
        """Have other numbers of replicas."""
        self._model.scaler.settings = settings

    async def stop(self) -> None:
        """End the runners, which are idle by now."""
        await self._fleet.remove_model(self._model)
        await super().stop()

    async def stop_now(self) -> None:
        """End the runners without waiting for them."""
        self._fleet.drop_model(self._model)
        await super().stop()


def update_instances(instances: Mapping[str, ModelInstance], models: Mapping[str, Model]) -> None:
    """Let the models that serve use what the config names now: their runners, or their name at their server."""
    for id, instance in instances.items():
        entry = models[id].entry if id in models else None
        if entry and isinstance(instance, ReplicatedInstance):
            instance.use_settings(entry.replicas)
        elif entry and isinstance(instance.upstream, ExternalUpstream):
            instance.upstream.use_model_name(entry.use_model_name or id)


class ModelLauncher:
    """Starts the instances of models."""

    def __init__(self, settings: config.Settings, logs: GatewayLogs):
        self.settings = settings
        self.process_registry = ProcessRegistry(settings.spool_dir or Path(tempfile.gettempdir()))
        self._logs = logs
        self._tuning_cache = TuningCache(settings.timings_dir or find_cache_folder())
        self._fleet: Fleet | None = None

    async def close(self) -> None:
        """End what serves several models, once no model is left."""
        if self._fleet:
            await self._fleet.shutdown()
        self.process_registry.close()

    def find_starting(self, id: str) -> FleetModel | None:
        """Find the replicas of a model on Ray, of which none serves yet."""
        return self._fleet.find_model(id) if self._fleet else None

    async def launch_model(self, model: Model) -> ModelInstance:
        """Start an instance of the model, and wait until it serves.

        Raises:
            EardrumError: it cannot be started, ended, or was not ready in time.
        """
        began = time.monotonic()
        instance = await self._start_instance(model)
        log.info("%s ready after %.1f s: %s, %s", model.id, time.monotonic() - began, model.engine, instance.log_details)
        if instance.placement.reason:
            log.warning("%s runs on the CPU: %s", model.id, instance.placement.reason)
        return instance

    async def _start_instance(self, model: Model) -> ModelInstance:
        if model.is_external:
            return await self._launch_external(model)
        if model.runs_on_ray:
            return await self._launch_on_ray(model)
        return await (self._connect_replicas(model) if model.is_replicated else self._launch_runner(model))

    async def _connect_replicas(self, model: Model) -> ModelInstance:
        """Connect to the runners that serve the model; one of them has to answer.

        Raises:
            NoReplicaError: none does.
        """
        from eardrum.gateway.upstreams.replicas import FIRST_ANSWER_S, ReplicaRules, ReplicaSet

        assert model.entry
        replicas = ReplicaSet(ReplicaRules(model.id, model.engine, lambda: self.settings.batch_timeout))
        try:
            replicas.set_addresses(model.entry.replicas.addresses, model.entry.replicas.token)
            await replicas.wait_ready(FIRST_ANSWER_S)
            return ReplicatedInstance(model.id, replicas)
        except BaseException:
            await replicas.close()
            raise

    async def _launch_on_ray(self, model: Model) -> ModelInstance:
        """Have Ray run the model's replicas, and wait until the first one serves.

        Raises:
            NoReplicaError: none does in time.
        """
        from eardrum.gateway.processes.fleet import Fleet
        from eardrum.gateway.upstreams.replicas import ReplicaRules, ReplicaSet

        self._fleet = self._fleet or Fleet(self.settings.ray)
        rules = ReplicaRules(model.id, model.engine, lambda: self.settings.batch_timeout, lambda: self.settings.start_timeout, "")
        replicas = ReplicaSet(rules)
        added = self._fleet.add_model(model, replicas)
        try:
            await replicas.wait_ready(self.settings.start_timeout)
            return RayInstance(added, replicas, self._fleet)
        except BaseException:
            await replicas.close()
            await self._fleet.remove_model(added)
            raise

    async def _launch_external(self, model: Model) -> ModelInstance:
        assert model.entry
        upstream = ExternalUpstream(
            model.entry.proxy,
            model.entry.timeouts,
            key=model.key,
            model=model.entry.use_model_name or model.id,
            strategy=RequestStrategy.from_options(model.options),
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
            within_s=self.settings.health_check_timeout,
            find_unload_s=lambda: (self.settings.models.get(id) or entry).unload_timeout or self.settings.unload_timeout,
            log_buffer=self._logs.get_model_log(id),
            registry=self.process_registry,
        )
        command.start_watchdog(lambda: self.settings.liveness_timeout)
        return command

    async def _wait_reachable(self, id: str, entry: config.ModelSettings, upstream: ExternalUpstream) -> None:
        """Wait until another server is ready, if the config sets `check_endpoint` for it."""
        if "check_endpoint" not in entry.model_fields_set or entry.check_endpoint == NO_CHECK:
            return
        readiness = HttpReadinessProbe(upstream.session, f"{entry.proxy.rstrip('/')}/{entry.check_endpoint.lstrip('/')}")
        try:
            async with asyncio.timeout(within := self.settings.health_check_timeout):
                await readiness.wait_ready()
        except TimeoutError:
            raise ModelLoadError(
                f"{id} was not ready after {within:g} s (health_check_timeout): {readiness.last_result}."
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
        """Return the path of a new socket, and a folder for temporary files: it is next to the uploads if `spool_dir` is set.

        Raises:
            StorageFullError: the disk is full.
        """
        try:
            made = [closing.enter_context(_create_folder())]
            if self.settings.spool_dir:
                made.append(closing.enter_context(_create_folder(self.settings.spool_dir)))
        except OSError as error:
            if shortage := build_shortage_error(error, "for the folder of a model's process"):
                raise shortage from error
            raise
        return os.path.join(made[0], "runner.sock"), made[-1]

    async def _start_runner(self, model: Model, socket: str, folder: str) -> RunnerProcess:
        interpreter = model.python or sys.executable
        hint = f" It runs in {interpreter} (`python:`), which needs Eardrum installed." if model.python else ""
        tuning = await asyncio.to_thread(self._tuning_cache.get_result, model)
        arguments = self._build_arguments(model, socket, folder, model.batch_size or tuning.batch)
        try:
            process = await RunnerProcess.start(
                model.id,
                [interpreter, "-m", "eardrum.runner", *arguments],
                within_s=self.settings.start_timeout,
                environment={
                    "EARDRUM_RUNNER_OPTIONS": json.dumps(
                        model.options | tuning.options
                    ),  # arguments are visible to all users, and options may hold keys
                    "TMPDIR": folder,  # removed with the process, with all that libraries leave there
                },
                hint=hint,
                log_buffer=self._logs.get_model_log(model.id),
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelLoadError(f"{model.id} could not be started: {interpreter}: {reason}.{hint}") from error
        except ConfigError as error:
            raise ModelLoadError(f"models.{model.id}: {error.message}") from error
        process.on_tuned = partial(self._store_tuning, model, tuning)
        process.start_watchdog(lambda: (self.settings.liveness_timeout, self.settings.batch_timeout))
        return process

    def _store_tuning(self, model: Model, before: TuningResult, found: dict[str, Any]) -> None:
        """Keep what a runner measured in idle time, for the next load."""
        batch = before.batch if model.batch_size else int(found["batch"])
        asyncio.get_running_loop().run_in_executor(
            None, self._tuning_cache.store_result, model, TuningResult(batch, before.options | found["options"])
        )

    def _build_arguments(self, model: Model, socket: str, folder: str, batch: int) -> list[str]:
        arguments = {
            "--engine": model.engine,
            "--source": str(model.source or ""),
            "--socket": socket,
            "--batch": str(batch),
            "--max-audio-s": str(self.settings.limits.audio_duration),
            "--log-level": logging.getLevelName(logging.getLogger().getEffectiveLevel()).lower(),
        }
        own = dict.fromkeys([os.path.dirname(socket), folder])
        return [*itertools.chain(*arguments.items()), *(f"--own-folder={path}" for path in own), "--parent"]


def _create_folder(parent: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="eardrum-", dir=parent, ignore_cleanup_errors=True)


CACHE_FILE = "timings.json"
MAX_CACHED_MODELS = 200
"""Models in the file; the one measured longest ago is dropped first."""

CPU_INFO, CPU_QUOTA, GPU_INFO = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max"), Path("/proc/driver/nvidia/gpus")


def find_cache_folder() -> Path | None:
    """The cache folder of this user (`XDG_CACHE_HOME`); None for a user without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eardrum"
    return None


class TuningResult(Struct, frozen=True):
    """The measured batch size in windows (0: not measured), and the engine options that were measured as fastest."""

    batch: int = 0
    options: dict[str, Any] = field(default_factory=dict)


class TuningCache:
    """Keeps tuning results by model, machine and version. Without a folder it keeps them in memory. Its methods block on disk."""

    def __init__(self, folder: Path | None):
        self._file = folder / CACHE_FILE if folder else None
        self._results: dict[str, TuningResult] = {}

    def get_result(self, model: Model) -> TuningResult:
        """Return the result for the model, of this process or an earlier one; an empty one if there is none."""
        key = _compute_key(model)
        return self._results.get(key) or self._read_file().get(key, TuningResult())

    def store_result(self, model: Model, result: TuningResult) -> None:
        """Keep a result, on disk only if the model's files are on this machine."""
        key = _compute_key(model)
        if self._results.get(key) == result:
            return
        self._results[key] = result
        if self._file and model.source and result != TuningResult():
            kept = self._read_file()
            kept.pop(key, None)
            kept[key] = result  # as the latest
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
            log.debug("%s cannot be read, so models are measured again: %s", self._file, error)
            return {}

    def _write_file(self, file: Path, kept: dict[str, TuningResult]) -> None:
        """Replace the file in one step: another server may be reading it."""
        content = json.dumps({key: {"batch": result.batch, "options": result.options} for key, result in kept.items()})
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
    parts = [
        model.engine,
        str(model.source),
        _list_files(model.source),
        model.options,
        model.python,
        __version__,
        _describe_machine(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _list_files(source: Path | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a model's files: another model may have been put in the same place."""
    found = []
    with suppress(OSError):
        if source:
            for file in [source, *sorted(source.iterdir())] if source.is_dir() else [source]:
                state = file.stat()
                found.append((file.name, state.st_size, state.st_mtime_ns))
    return found


def _describe_machine() -> list[str]:
    """Processor, usable cores, CPU quota and GPUs: a model's speed depends on them."""
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


def _read_line(file: Path, prefix: str = "") -> str:
    """The first line with this prefix; empty if there is none."""
    with suppress(OSError), file.open(errors="replace") as lines:
        return next((line.strip() for line in lines if line.startswith(prefix)), "")
    return ""
