"""What a load found out by timing (batch size, threads), kept for the next one, also after a restart of the server.

Only a cache: without the file, or with a broken one, models are timed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eardrum import __version__
from eardrum.cores import usable_cores
from eardrum.gateway.inventory import Model

log = logging.getLogger(__name__)

FILE = "timings.json"
MOST = 200
"""Models that are remembered; the one timed longest ago makes room."""

CPU, QUOTA, GPUS = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max"), Path("/proc/driver/nvidia/gpus")


def default_folder() -> Path | None:
    """Where programs keep what they can do without; None for a user without a home."""
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "eardrum"
    return None


@dataclass(frozen=True, slots=True)
class Timing:
    """Windows per batch, 0 if that was never timed, and options of the engine that timing chose."""

    batch: int = 0
    options: dict[str, Any] = field(default_factory=dict)


class Timings:
    """What is known of models on this machine, by all that their speed depends on. Its methods block on the disk.

    Without a folder it is known as long as the process lives.
    """

    def __init__(self, folder: Path | None):
        self._file = folder / FILE if folder else None
        self._found: dict[str, Timing] = {}

    def of(self, model: Model) -> Timing:
        """What was found for the model, in this process or an earlier one."""
        key = _key(model)
        return self._found.get(key) or self._read().get(key, Timing())

    def keep(self, model: Model, timing: Timing) -> None:
        """Remember what was found, on disk only for models that are there."""
        key = _key(model)
        if self._found.get(key) == timing:
            return
        self._found[key] = timing
        if self._file and model.source and timing != Timing():
            kept = self._read()
            kept.pop(key, None)
            kept[key] = timing  # as the latest
            self._write(self._file, dict(list(kept.items())[-MOST:]))

    def _read(self) -> dict[str, Timing]:
        if not self._file:
            return {}
        try:
            entries = json.loads(self._file.read_bytes())
            return {key: Timing(int(entry["batch"]), dict(entry["options"])) for key, entry in entries.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.debug("%s is of no use: %s", self._file, error)
            return {}

    def _write(self, file: Path, kept: dict[str, Timing]) -> None:
        """Put the file in place whole: another server may be reading it."""
        content = json.dumps({key: {"batch": timing.batch, "options": timing.options} for key, timing in kept.items()})
        new = file.with_name(f"{FILE}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(content)
            new.replace(file)
        except OSError as error:
            log.debug("%s cannot be written: %s", file, error)
            with suppress(OSError):
                new.unlink()


def _key(model: Model) -> str:
    what = [model.engine, str(model.source), _files(model.source), model.options, model.python, __version__, _machine()]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _files(source: Path | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a model's files: another model may have come to lie in the same place."""
    found = []
    with suppress(OSError):
        if source:
            for file in [source, *sorted(source.iterdir())] if source.is_dir() else [source]:
                state = file.stat()
                found.append((file.name, state.st_size, state.st_mtime_ns))
    return found


def _machine() -> list[str]:
    """What a model's speed depends on here."""
    return [
        platform.machine(),
        _line(CPU, "model name"),
        str(usable_cores()),
        _line(QUOTA),
        *_gpus(),
        os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    ]


def _gpus() -> list[str]:
    with suppress(OSError):
        return [_line(gpu, "Model") for gpu in sorted(GPUS.glob("*/information"))]
    return []


def _line(file: Path, begins: str = "") -> str:
    """The first line that begins so; empty if there is none."""
    with suppress(OSError), file.open(errors="replace") as lines:
        return next((line.strip() for line in lines if line.startswith(begins)), "")
    return ""
