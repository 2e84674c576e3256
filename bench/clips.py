"""How long a 5 s clip waits while four long files are being transcribed."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil

from bench.client import get_runner_health, transcribe, transcribe_with_runner
from bench.figure import BenchFigure, SeriesComparison
from bench.mixed_load import ATTEMPTS, LoadedSystem, LoadRun, compare_systems, describe_disturbance
from bench.recordings import create_clips, create_tape_mp3
from bench.runners import start_runner
from bench.server import run_server
from bench.usage import measure_cpu

FILES = 4


def measure(quick: bool) -> list[BenchFigure]:
    """Clips beside files: ours, a lock per file, windows in the order they came."""
    file = create_tape_mp3(240 if quick else 600)
    count, repetitions = (8, 1) if quick else (16, 5)
    with ExitStack() as stack:
        server = stack.enter_context(run_server())
        batch = asyncio.run(get_runner_health(server.socket))["batch"]
        lock, lock_process = stack.enter_context(start_runner("lock", batch))
        fifo, fifo_process = stack.enter_context(start_runner("fifo", batch))
        systems = [
            LoadedSystem("ours", partial(transcribe, server.port), lambda: server.cpu, partial(count_windows, server.socket)),
            _create_baseline("lock", lock, psutil.Process(lock_process.pid)),
            _create_baseline("fifo", fifo, psutil.Process(fifo_process.pid)),
        ]
        runs = asyncio.run(
            compare_systems(systems, file, FILES, create_clips(count), repetitions, attempts=1 if quick else ATTEMPTS)
        )
    for ours, theirs in zip(runs["ours"], runs["fifo"], strict=True):
        if abs(ours.windows - theirs.windows) > 1:
            raise RuntimeError(f"Not the same work: {ours.windows} windows against {theirs.windows}")
    minutes = len(file) * 8 / 128_000 / 60
    note = f"{FILES} files of {minutes:.0f} min, {count} clips, batches of {batch}. {describe_disturbance(runs)}"
    return _build_figures(runs, note)


async def count_windows(socket: Path) -> int:
    """Windows a runner has decoded."""
    count: int = (await get_runner_health(socket))["windows"]
    return count


def _create_baseline(name: str, socket: Path, process: psutil.Process) -> LoadedSystem:
    return LoadedSystem(
        name, partial(transcribe_with_runner, socket), partial(measure_cpu, process), partial(count_windows, socket)
    )


def _build_figures(runs: dict[str, list[LoadRun]], note: str) -> list[BenchFigure]:
    def series(name: str, value: str) -> list[float]:
        return [getattr(run, value) for run in runs[name]]

    def figure(name: str, what: str, value: str, against: str, compare: SeriesComparison, target: float | None) -> BenchFigure:
        titles = {"lock": "one lock per file", "fifo": "windows first come, first served"}
        ours, baseline = series("ours", value), series(against, value)
        return BenchFigure(
            name, what, titles[against], "s", ours, baseline, compare, target, note if name == "clips-total" else ""
        )

    return [
        figure("clips-lock", "median 5 s clip beside long files", "clip_s", "lock", SeriesComparison.TIMES_LESS, 20),
        figure("clips-fifo", "median 5 s clip beside long files", "clip_s", "fifo", SeriesComparison.TIMES_LESS, 3.5),
        figure("clips-total", "until all long files are done", "files_s", "fifo", SeriesComparison.SHARE, 1.03),
        figure("clips-cpu", "CPU for all of it", "cpu_s", "fifo", SeriesComparison.SHARE, 1.03),
    ]
