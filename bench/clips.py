"""How long a 5 s clip waits while four long files are being transcribed."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil

from bench.client import runner_health, transcribe, transcribe_with_runner
from bench.figure import Compare, Figure
from bench.mixed_load import ATTEMPTS, Run, System, compare, disturbance
from bench.recordings import clips, tape_mp3
from bench.runners import runner
from bench.server import running
from bench.usage import cpu_of

FILES = 4


def measure(quick: bool) -> list[Figure]:
    """Clips beside files: ours, a lock per file, windows in the order they came."""
    file = tape_mp3(240 if quick else 600)
    count, repetitions = (8, 1) if quick else (16, 5)
    with ExitStack() as stack:
        server = stack.enter_context(running())
        batch = asyncio.run(runner_health(server.socket))["batch"]
        lock, lock_process = stack.enter_context(runner("lock", batch))
        fifo, fifo_process = stack.enter_context(runner("fifo", batch))
        systems = [
            System("ours", partial(transcribe, server.port), lambda: server.cpu, partial(windows, server.socket)),
            _baseline("lock", lock, psutil.Process(lock_process.pid)),
            _baseline("fifo", fifo, psutil.Process(fifo_process.pid)),
        ]
        runs = asyncio.run(compare(systems, file, FILES, clips(count), repetitions, attempts=1 if quick else ATTEMPTS))
    for ours, theirs in zip(runs["ours"], runs["fifo"], strict=True):
        if abs(ours.windows - theirs.windows) > 1:
            raise RuntimeError(f"Not the same work: {ours.windows} windows against {theirs.windows}")
    minutes = len(file) * 8 / 128_000 / 60
    note = f"{FILES} files of {minutes:.0f} min, {count} clips, batches of {batch}. {disturbance(runs)}"
    return _figures(runs, note)


async def windows(socket: Path) -> int:
    """Windows a runner has decoded."""
    count: int = (await runner_health(socket))["windows"]
    return count


def _baseline(name: str, socket: Path, process: psutil.Process) -> System:
    return System(name, partial(transcribe_with_runner, socket), partial(cpu_of, process), partial(windows, socket))


def _figures(runs: dict[str, list[Run]], note: str) -> list[Figure]:
    def series(name: str, value: str) -> list[float]:
        return [getattr(run, value) for run in runs[name]]

    def figure(name: str, what: str, value: str, against: str, compare: Compare, target: float | None) -> Figure:
        titles = {"lock": "one lock per file", "fifo": "windows first come, first served"}
        ours, baseline = series("ours", value), series(against, value)
        return Figure(name, what, titles[against], "s", ours, baseline, compare, target, note if name == "clips-total" else "")

    return [
        figure("clips-lock", "median 5 s clip beside long files", "clip_s", "lock", Compare.TIMES_LESS, 20),
        figure("clips-fifo", "median 5 s clip beside long files", "clip_s", "fifo", Compare.TIMES_LESS, 3.5),
        figure("clips-total", "until all long files are done", "files_s", "fifo", Compare.SHARE, 1.03),
        figure("clips-cpu", "CPU for all of it", "cpu_s", "fifo", Compare.SHARE, 1.03),
    ]
