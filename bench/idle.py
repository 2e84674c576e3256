"""What the server costs before the first request: time to start, imports, memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median

import psutil

from bench.children import build_environment, run_child
from bench.figure import BenchFigure, SeriesComparison
from bench.server import SERVE, find_free_port, wait_until_healthy
from bench.usage import measure_rss_mb

GATEWAY = "import gc; gc.disable(); import eardrum.server.app"
"""As the command does it."""


def measure(quick: bool) -> list[BenchFigure]:
    """Start to the first answer, imports and idle memory of the gateway."""
    repetitions = 3 if quick else 9
    _time_python(GATEWAY)  # leaves its bytecode behind
    starts, memory, nothing_wall, imports, nothing_cpu = [], [], [], [], []
    for _ in range(repetitions):
        started, held = _time_start()
        starts.append(started)
        memory.append(held)
        wall, cpu = _time_python("pass")
        nothing_wall.append(wall)
        nothing_cpu.append(cpu)
        imports.append(_time_python(GATEWAY)[1] - cpu)
    bare, importing = "python -c pass", "CPU to import the gateway, the interpreter's start taken off"
    interpreter = f"The bare interpreter starts in {median(nothing_cpu):.3f} s of CPU."
    shared = "Resident set, shared pages of the interpreter and libraries included."
    return [
        BenchFigure(
            "start", "process start to the first 200 of /health", bare, "s", starts, nothing_wall, SeriesComparison.SHARE
        ),
        BenchFigure("imports", importing, "", "s", imports, [], SeriesComparison.ABSOLUTE, 0.4, interpreter),
        BenchFigure(
            "idle-memory", "gateway at rest, no model loaded", "", "MB", memory, [], SeriesComparison.ABSOLUTE, 70, shared
        ),
    ]


def _time_start() -> tuple[float, float]:
    port = find_free_port()
    began = time.perf_counter()
    with run_child([*SERVE, "--port", str(port)]) as process:
        healthy = wait_until_healthy(port, process)
        return healthy - began, measure_rss_mb(psutil.Process(process.pid))


def _time_python(code: str) -> tuple[float, float]:
    """Wall and CPU seconds of an interpreter that runs `code`."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], env=build_environment())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{code!r} ended with {process.returncode}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime
