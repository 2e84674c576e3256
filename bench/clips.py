"""How long a 5 s clip waits while four long files are being transcribed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from bench.client import runner_health, transcribe, transcribe_with_runner
from bench.figure import Compare, Figure
from bench.recordings import clips, tape_mp3
from bench.runners import runner
from bench.server import busy, cpu_of, running

FILES = 4
SPAN = 0.85
"""Clips arrive during this part of the time that one system alone needs for the files."""

ATTEMPTS = 3
DISTURBED = 0.1
"""A run is repeated when other work took more of a core than this: its times by the clock would be of something else."""


@dataclass(frozen=True, slots=True)
class System:
    """One way of serving: how to have it transcribe, where its runner listens, what CPU it has used."""

    name: str
    transcribe: Callable[[bytes], Awaitable[bytes]]
    socket: Path
    cpu: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Load:
    """What arrives: the files at once, each clip at its time."""

    file: bytes
    clips: Sequence[bytes]
    at: Sequence[float]


@dataclass(frozen=True, slots=True)
class Run:
    """How it went: the median clip, the last file, the CPU and the windows it took, the CPU that others took meanwhile."""

    clip_s: float
    files_s: float
    cpu_s: float
    windows: int
    foreign_s: float


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
            System("ours", partial(transcribe, server.port), server.socket, lambda: server.cpu),
            System("lock", partial(transcribe_with_runner, lock), lock, lambda: cpu_of(psutil.Process(lock_process.pid))),
            System("fifo", partial(transcribe_with_runner, fifo), fifo, lambda: cpu_of(psutil.Process(fifo_process.pid))),
        ]
        runs = asyncio.run(_runs(systems, file, count, repetitions))
    for ours, theirs in zip(runs["ours"], runs["fifo"], strict=True):
        if abs(ours.windows - theirs.windows) > 1:
            raise RuntimeError(f"Not the same work: {ours.windows} windows against {theirs.windows}")
    foreign = {name: ", ".join(f"{run.foreign_s:.1f}" for run in series) for name, series in runs.items()}
    note = (
        f"{FILES} files of {len(file) * 8 / 128_000 / 60:.0f} min, {count} clips, batches of {batch}. Other work on the machine "
        f"took {foreign['ours']} s of CPU during our runs, {foreign['lock']} s during those with a lock and {foreign['fifo']} s "
        "during first come, first served: where these differ much, times by the clock mean little, CPU still does."
    )
    return _figures(runs, note)


async def _runs(systems: Sequence[System], file: bytes, count: int, repetitions: int) -> dict[str, list[Run]]:
    for system in systems:
        await system.transcribe(clips(1)[0])
    clock = asyncio.get_running_loop().time
    started = clock()
    await systems[0].transcribe(file)
    span = SPAN * FILES * (clock() - started)
    when = random.Random(5)
    runs: dict[str, list[Run]] = {system.name: [] for system in systems}
    for repetition in range(repetitions):
        slots = [span * (i + when.random()) / count for i in range(count)]
        load = Load(file, clips(count), slots)
        for i in range(len(systems)):
            system = systems[(repetition + i) % len(systems)]
            runs[system.name].append(await _undisturbed(system, load))
    return runs


async def _undisturbed(system: System, load: Load) -> Run:
    """A run with little other work on the machine, or the one of `ATTEMPTS` that had least. The outcome has no say in it."""
    tried: list[Run] = []
    while len(tried) < ATTEMPTS:
        tried.append(await _run(system, load))
        if tried[-1].foreign_s < DISTURBED * tried[-1].files_s:
            break
    return min(tried, key=lambda run: run.foreign_s)


async def _run(system: System, load: Load) -> Run:
    clock = asyncio.get_running_loop().time
    windows, cpu, foreign = (await runner_health(system.socket))["windows"], system.cpu(), busy()
    started = clock()

    async def clip(audio: bytes, at: float) -> float:
        await asyncio.sleep(started + at - clock())
        arrived = clock()
        await system.transcribe(audio)
        return clock() - arrived

    async def file() -> float:
        await system.transcribe(load.file)
        return clock() - started

    async with asyncio.TaskGroup() as group:
        short = [group.create_task(clip(audio, at)) for audio, at in zip(load.clips, load.at, strict=True)]
        long = [group.create_task(file()) for _ in range(FILES)]
    used = system.cpu() - cpu
    return Run(
        clip_s=median(task.result() for task in short),
        files_s=max(task.result() for task in long),
        cpu_s=used,
        windows=(await runner_health(system.socket))["windows"] - windows,
        foreign_s=max(busy() - foreign - used, 0.0),
    )


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
