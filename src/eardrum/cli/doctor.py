"""The command `doctor`: lists hardware, libraries and models of this machine, with remedies for missing ones.

Nothing is loaded here: engines import their libraries in a separate process.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct
from msgspec.structs import asdict

from eardrum import __version__, config
from eardrum.cli.check import ConfigReport, build_report, probe_device
from eardrum.cli.options import AssignmentsOption, ConfigFileOption, ConfigFolderOption
from eardrum.config import Settings
from eardrum.config.macros import split_command
from eardrum.engines import cuda, registry
from eardrum.errors import ConfigError
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import COMMAND, Model
from eardrum.units import count_usable_cores, format_size

OK, NOTE, WARNING, ERROR = "ok", "note", "warning", "error"

LITTLE_DISK = 5 << 30
"""Free bytes below which a large model may not fit."""

LITTLE_MEMORY = 1 << 30
"""Available bytes below which most models do not fit."""

GPU_QUERY = ("--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")

CUDA_13_DRIVER = 580
"""First NVIDIA driver for CUDA 13."""

ONNXRUNTIME_CUDA_12 = "onnxruntime-gpu==1.24.4"
"""The last version for CUDA 12; later ones need CUDA 13."""


class MachineFinding(Struct, frozen=True):
    """One line of the report."""

    subject: str
    status: str
    """"ok", "note" (nothing to do), "warning" or "error" (the default model cannot run)."""
    found: str
    advice: str = ""
    """The remedy; empty if there is nothing to do."""


def doctor(
    config_file: ConfigFileOption = None,
    config_folder: ConfigFolderOption = None,
    assignments: AssignmentsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show what is available and missing on this machine. The exit code is 1 if the default model cannot run."""
    findings = list(examine_machine(config_file or (), config_folder, assignments or ()))
    ok = all(finding.status != ERROR for finding in findings)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(finding) for finding in findings]}, indent=2, ensure_ascii=False))
    else:
        for line in render_findings(findings):
            print(line)
    if not ok:
        raise typer.Exit(1)


COMMANDS: dict[str, Callable[..., None]] = {"doctor": doctor}


def render_findings(findings: Sequence[MachineFinding]) -> Iterator[str]:
    """Render the findings as a table. Advice has a separate line, which is not wrapped: it may be a command to copy."""
    widths = [max(len(getattr(finding, name)) for finding in findings) for name in ("status", "subject")]
    for finding in findings:
        yield f"{finding.status:{widths[0]}}  {finding.subject:{widths[1]}}  {finding.found}"
        if finding.advice:
            yield f"{'':{sum(widths) + 4}}-> {finding.advice}"


def examine_machine(files: Sequence[Path], folder: Path | None, assignments: Sequence[str]) -> Iterator[MachineFinding]:
    """Examine the machine and the config. A wrong config does not hide the rest."""
    report = build_report(files, folder, assignments)
    settings = config.examine_config(files, assignments, folder=folder).settings
    yield MachineFinding("Eardrum", OK, f"{__version__}, Python {platform.python_version()} ({sys.executable})")
    yield from _examine_hardware()
    gpus = _query_gpus()
    gpu = _examine_gpu(gpus)
    yield gpu
    if gpu.status == NOTE:
        yield MachineFinding("CUDA libraries", NOTE, "not needed without an NVIDIA GPU")
    else:
        yield from _examine_cuda(_can_run_cuda_13(gpus))
    yield from _examine_engines()
    yield MachineFinding("audio files", OK, f"read by PyAV {_find_version('av')}; ffmpeg is not needed")
    yield from _examine_ports(settings)
    yield _examine_config(report)
    try:
        catalog = ModelCatalog(settings)
    except ConfigError as error:
        yield MachineFinding("models", ERROR, error.message, "correct the config: `eardrum check` shows the line")
        return
    yield from _examine_models(catalog)
    yield _examine_default_model(catalog)


def _examine_hardware() -> Iterator[MachineFinding]:
    import psutil

    usable, cores, group = count_usable_cores(), os.cpu_count() or 1, read_cgroup_limits()
    found = f"{platform.machine()}, {cores} cores, of which Eardrum may use {usable}"
    if group.cores and group.cores < usable:
        found += f"; the container or service has the time of {group.cores:g}"
        advice = f"set `threads` of models to {max(1, round(group.cores))}: more of them wait for each other"
        yield MachineFinding("CPU", WARNING, found, advice)
    else:
        yield MachineFinding("CPU", OK, found)
    memory = psutil.virtual_memory()
    available, found = memory.available, f"{format_size(memory.total)}, of which {format_size(memory.available)} are available"
    if group.memory and group.memory < memory.total:
        available = min(available, max(0, group.memory - group.used_memory))
        found += f"; the container or service may use {format_size(group.memory)}, {format_size(group.used_memory)} are in use"
    advice = "end other programs, raise the limit, or use a small model" if available < LITTLE_MEMORY else ""
    yield MachineFinding("memory", WARNING if advice else OK, found, advice)


CGROUP_FOLDER, CGROUP_OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class CgroupLimits(Struct, frozen=True):
    """The limits that the control groups of this process set, as containers and systemd use them. None: no limit."""

    cores: float | None = None
    memory: int | None = None
    """Bytes."""
    used_memory: int = 0
    """Bytes in use, if there is a limit, without the cache of files, which the system takes back when it is needed."""


def read_cgroup_limits() -> CgroupLimits:
    """Read the limits of this process's control groups: the narrowest of its group and of those above. Versions 1 and 2."""
    cores: list[float] = []
    memory: list[tuple[int, int]] = []
    for folder in _list_cgroups():
        quota, _, period = _read_text(folder / "cpu.max").partition(" ")
        quota, period = quota or _read_text(folder / "cpu.cfs_quota_us"), period or _read_text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            cores.append(int(quota) / int(period))
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (size := _read_text(folder / limit)).isdigit():
                cached = re.search(r"^(?:total_)?inactive_file (\d+)$", _read_text(folder / "memory.stat"), re.MULTILINE)
                taken = int(_read_text(folder / used) or 0) - (int(cached[1]) if cached else 0)
                memory.append((int(size), max(0, taken)))
    most, in_use = min(memory, default=(0, 0))
    return CgroupLimits(min(cores, default=None), most or None, in_use)


def _list_cgroups() -> Iterator[Path]:
    """Yield the folders of this process's groups and of all above them. In a container, its own group is the root."""
    for line in _read_text(CGROUP_OF_PROCESS).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        root = CGROUP_FOLDER / controllers if controllers else CGROUP_FOLDER
        folder = root / path.lstrip("/")
        yield from (above for above in (folder, *folder.parents) if above == root or root in above.parents)


def _read_text(file: Path) -> str:
    with suppress(OSError):
        return file.read_text().strip()
    return ""


def _query_gpus() -> list[list[str]]:
    """Return the output of nvidia-smi: name, driver and MiB of each GPU, or a line with its error; empty without nvidia-smi."""
    from eardrum.gateway.processes.process_info import query_nvidia_smi

    program = shutil.which("nvidia-smi")
    with suppress(OSError):
        return asyncio.run(query_nvidia_smi(program, GPU_QUERY)) if program else []
    return []


def _can_run_cuda_13(gpus: Sequence[Sequence[str]]) -> bool:
    """Whether the driver is new enough for CUDA 13. One that is not known is taken to be."""
    majors = [row[1].partition(".")[0] for row in gpus if len(row) == 3]
    return all(int(major) >= CUDA_13_DRIVER for major in majors if major.isdigit())


def _examine_gpu(rows: Sequence[Sequence[str]]) -> MachineFinding:
    """Examine the GPU. The status is a note if there is none."""
    gpus = [row for row in rows if len(row) == 3]
    if gpus:
        sizes = [format_size(int(size) * 2**20) if size.isdigit() else f"memory {size}" for _, _, size in gpus]
        names = ", ".join(f"{row[0]} ({size})" for row, size in zip(gpus, sizes, strict=True))
        found = f"{names}, driver {gpus[0][1]}"
        if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
            return MachineFinding("GPU", WARNING, f"{found}, hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
        return MachineFinding("GPU", OK, found)
    if rows:
        return MachineFinding("GPU", WARNING, f"nvidia-smi: {', '.join(rows[0])}", "install or update the NVIDIA driver")
    if cuda.is_gpu_present():
        found = "there are signs of an NVIDIA GPU, but nvidia-smi does not show it"
        return MachineFinding("GPU", WARNING, found, "install the NVIDIA driver; in a container, start it with `--gpus all`")
    return MachineFinding("GPU", NOTE, "no NVIDIA GPU; models run on the CPU")


def _examine_cuda(can_run_13: bool) -> Iterator[MachineFinding]:
    """Examine the CUDA libraries of each engine's library."""
    if platform.machine() not in ("x86_64", "AMD64"):
        yield MachineFinding("CUDA for CTranslate2", NOTE, f"its wheels for {platform.machine()} are built without CUDA")
    else:
        yield _examine_libraries("CTranslate2", "12", cuda.CUBLAS_12, "cuda" if can_run_13 else "cuda12")
    yield _examine_onnxruntime(can_run_13)
    if text := _read_package_file("torch", "torch/version.py"):
        built = re.search(r"^cuda\b.*= '([\d.]+)'", text, re.MULTILINE)
        found = f"PyTorch {_find_version('torch')} is built {f'for CUDA {built[1]}' if built else 'without CUDA'}"
        advice = "" if built else "install the build of PyTorch for your CUDA"
        yield MachineFinding("CUDA for PyTorch", WARNING if advice else OK, found, advice)


def _examine_onnxruntime(can_run_13: bool) -> MachineFinding:
    subject, packages = "CUDA for onnxruntime", [name for name in ("onnxruntime", "onnxruntime-gpu") if _find_version(name)]
    python = shlex.quote(sys.executable)
    replace = f"{python} -m pip uninstall -y onnxruntime onnxruntime-gpu && {python} -m pip install "
    replace += "onnxruntime-gpu" if can_run_13 else ONNXRUNTIME_CUDA_12
    if len(packages) == 2:
        found = "onnxruntime and onnxruntime-gpu are both installed, and overwrite each other's files"
        return MachineFinding(subject, WARNING, found, replace)
    text = _read_package_file(packages[0], "onnxruntime/capi/build_and_package_info.py") if packages else ""
    built = re.search(r"^cuda_version = '(\d+)", text, re.MULTILINE)
    if not built:
        found = "the build for CPUs is installed: models of moonshine and onnx_asr run on the CPU"
        return MachineFinding(subject, NOTE, found, f"for the GPU: {replace}")
    major = built[1]
    if major != "12" and not can_run_13:
        found = f"onnxruntime-gpu is built for CUDA {major}, and the driver is older"
        return MachineFinding(subject, WARNING, found, f"install driver {CUDA_13_DRIVER} or newer, or: {replace}")
    names = [f"lib{name}.so.{major}" for name in ("cublasLt", "cublas", "cudart")]
    fft = "libcufft.so.11" if major == "12" else "libcufft.so.12"
    return _examine_libraries(
        "onnxruntime", major, [*names, "libcurand.so.10", fft, "libcudnn.so.9"], "cuda12" if major == "12" else "cuda"
    )


def _examine_libraries(library: str, major: str, names: Sequence[str], extra: str) -> MachineFinding:
    missing = [name for name in names if not (cuda.find_packaged_library(name) or _is_loadable(name))]
    subject = f"CUDA for {library}"
    if missing:
        advice = registry.name_interpreter(f"pip install 'eardrum[{extra}]'")
        return MachineFinding(subject, WARNING, f"CUDA {major}: {', '.join(missing)} not found", advice)
    packaged = cuda.find_packaged_library(names[-1])
    return MachineFinding(subject, OK, f"CUDA {major}: found {f'in {packaged.parent}' if packaged else 'by the system loader'}")


def _is_loadable(name: str) -> bool:
    from ctypes import CDLL

    with suppress(OSError):
        return bool(CDLL(name))
    return False


def _read_package_file(package: str, path: str) -> str:
    """Read a text file of an installed package; empty if there is none. The package is not imported."""
    with suppress(PackageNotFoundError, OSError):
        return Path(str(distribution(package).locate_file(path))).read_text()
    return ""


def _find_version(package: str) -> str:
    with suppress(PackageNotFoundError):
        return version(package)
    return ""


def _examine_engines() -> Iterator[MachineFinding]:
    for card in registry.list_cards().values():
        if missing := card.missing_packages:
            found = f"not installed: {', '.join(missing)} missing"
            yield MachineFinding(f"engine {card.name}", NOTE, found, f"to use it: {card.install_here}")
        else:
            yield MachineFinding(f"engine {card.name}", OK, "its libraries are installed")
    for failed in registry.list_broken():
        advice = f"correct or uninstall the package {failed.package}"
        yield MachineFinding(f"engine {failed.name}", WARNING, f"left out: {failed.why}", advice)


def _examine_ports(settings: Settings) -> Iterator[MachineFinding]:
    host, wyoming = settings.host, settings.wyoming
    yield _examine_port("port of the server", host, settings.port, "choose another with --port")
    if wyoming.is_enabled(settings.api_keys):
        yield _examine_port(
            "port of Wyoming",
            wyoming.find_host(host, settings.api_keys),
            wyoming.port,
            "choose another with --wyoming-port",
        )
    else:
        yield MachineFinding("port of Wyoming", NOTE, "Wyoming is off")


def _examine_port(subject: str, host: str, port: int, otherwise: str) -> MachineFinding:
    from eardrum.gateway.processes.process_info import find_port_holders, read_program_name
    from eardrum.server.lifecycle import bind_socket

    if not port:
        return MachineFinding(subject, OK, "a free one is chosen at the start")
    try:
        bind_socket(host, port, otherwise).close()
    except ConfigError as error:
        if holders := sorted(find_port_holders(port)):
            programs = {pid: read_program_name(pid) or "a program" for pid in holders}
            if set(programs.values()) == {"eardrum"}:
                return MachineFinding(subject, NOTE, f"{port} on {host} is that of the running Eardrum (pid {holders[0]})")
            names = ", ".join(f"{name} (pid {pid})" for pid, name in programs.items())
            return MachineFinding(subject, WARNING, f"{port} on {host} is taken by {names}", f"stop it, or {otherwise}")
        found, _, advice = error.message.partition(": ")
        return MachineFinding(subject, WARNING, found.rstrip("."), advice.rstrip(".") or otherwise)
    return MachineFinding(subject, OK, f"{port} on {host} is free")


def _examine_config(report: ConfigReport) -> MachineFinding:
    found = f"{', '.join(report.files) or 'no file, which is fine'}; models in the config: {len(report.models)}"
    if report.errors:
        first = report.errors[0]
        more = f" (and {len(report.errors) - 1} more)" if len(report.errors) > 1 else ""
        return MachineFinding("config", ERROR, f"{first}{more}", "correct it; `eardrum check` shows all errors and warnings")
    if report.warnings:
        return MachineFinding("config", WARNING, f"{found}; warnings: {len(report.warnings)}", "`eardrum check` shows them")
    return MachineFinding("config", OK, found)


def _examine_models(catalog: ModelCatalog) -> Iterator[MachineFinding]:
    import psutil

    models = [model for model in catalog if not model.is_external and model.source]
    size = format_size(sum(model.size for model in models))
    yield MachineFinding("models", OK, f"{len(models)} on disk, {size}: {', '.join(model.id for model in models) or 'none'}")
    folder = catalog.inventory.store.folder
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    free = psutil.disk_usage(str(existing)).free
    advice = "make room, or set model_dir to a folder on another disk" if free < LITTLE_DISK else ""
    yield MachineFinding("disk for models", WARNING if advice else OK, f"{format_size(free)} free at {folder}", advice)


def _examine_default_model(catalog: ModelCatalog) -> MachineFinding:
    """Examine whether the default model can run. Its engine's libraries are imported, the model is not loaded."""
    model, subject = catalog.default, "default model"
    found = f"{model.id} ({catalog.why_default or model.origin})"
    if problem := _find_obstacle(model):
        return MachineFinding(subject, ERROR, f"{found}: {problem[0]}", problem[1])
    if model.is_external or model.is_replicated or model.card.remote:
        return MachineFinding(subject, OK, f"{found}, served by another program")
    options = {name: value for name, value in model.options.items() if name in ("device", "device_index")}
    answer = _ask_device(model, options)
    if answer["wrong"]:
        return MachineFinding(subject, ERROR, f"{found}: {answer['wrong']}", _advise_wrong_device(options))
    if answer["reason"]:
        return MachineFinding(subject, WARNING, f"{found}, on the CPU", answer["reason"])
    return MachineFinding(subject, OK, f"{found}, on {answer['device']}")


def _find_obstacle(model: Model) -> tuple[str, str] | None:
    """Find what keeps a model from running, and what to do about it."""
    if model.needs_download:
        return "it is not on this machine", model.format_pull_command()
    if not model.is_runnable:
        return f"{', '.join(model.card.missing_packages)} missing", model.card.install_here
    program = next(iter(split_command(model.entry.cmd)), "") if model.engine == COMMAND and model.entry else ""
    variables = dict(variable.split("=", 1) for variable in (model.entry.env if model.entry else ()) if "=" in variable)
    if program and not shutil.which(program, path=variables.get("PATH", os.environ.get("PATH"))):
        return f"the program {program} is not on this machine", "install it, or check its path in the config"
    return None


def _ask_device(model: Model, options: Mapping[str, object]) -> dict[str, str]:
    return probe_device(model.engine, json.dumps({"engine": model.engine, "options": options}), model.python)


def _advise_wrong_device(options: Mapping[str, object]) -> str:
    if options.get("device") == "cuda":
        return "follow the remedies in the lines GPU and CUDA, or set device to auto or cpu"
    reinstall = registry.name_interpreter(f"pip install --force-reinstall {registry.find_own_source(in_place=True)}")
    return f"install Eardrum's packages again: {reinstall}"
