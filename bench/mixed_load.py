"""Short clips that arrive beside long files, served in different ways on the same machine, turn by turn."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.usage import measure_busy

SPAN = 0.85
"""Clips arrive during this part of the time that one system alone needs for the files."""

ATTEMPTS = 3
DISTURBED = 0.1
"""A run is repeated, up to so many times, when other work took more of a core than this: its times would be of that."""


async def count_nothing() -> int:
    """For systems whose windows nobody counts."""
    return 0


@dataclass(frozen=True, slots=True)
class LoadedSystem:
    """One way of serving: how to have it transcribe, what CPU it has used, how many windows it has decoded."""

    name: str
    transcribe: Callable[[bytes], Awaitable[bytes]]
    cpu: Callable[[], float]
    windows: Callable[[], Awaitable[int]] = count_nothing


@dataclass(frozen=True, slots=True)
class MixedLoad:
    """What arrives: so many copies of the file at once, each clip at its time."""

    file: bytes
    files: int
    clips: Sequence[bytes]
    at: Sequence[float]


@dataclass(frozen=True, slots=True)
class LoadRun:
    """How it went: each clip's latency, the last file, the CPU and the windows it took, the CPU that others took meanwhile."""

    clips_s: Sequence[float]
    files_s: float
    cpu_s: float
    windows: int
    foreign_s: float

    @property
    def clip_s(self) -> float:
        """The median clip."""
        return median(self.clips_s)


def draw_arrivals(count: int, span: float, seed: random.Random) -> list[float]:
    """`count` moments within `span` seconds: one at random in each of as many equal parts."""
    return [span * (i + seed.random()) / count for i in range(count)]


async def compare_systems(
    systems: Sequence[LoadedSystem],
    file: bytes,
    files: int,
    clips: Sequence[bytes],
    repetitions: int,
    *,
    attempts: int = ATTEMPTS,
) -> dict[str, list[LoadRun]]:
    """The same load on each system, in turns; who begins changes. The first system alone says how long the files take."""
    for system in systems:
        await system.transcribe(clips[0])
    clock = asyncio.get_running_loop().time
    started = clock()
    await systems[0].transcribe(file)
    span = SPAN * files * (clock() - started)
    when = random.Random(5)
    runs: dict[str, list[LoadRun]] = {system.name: [] for system in systems}
    for repetition in range(repetitions):
        load = MixedLoad(file, files, clips, draw_arrivals(len(clips), span, when))
        for i in range(len(systems)):
            system = systems[(repetition + i) % len(systems)]
            runs[system.name].append(await _run_undisturbed(system, load, attempts))
    return runs


async def _run_undisturbed(system: LoadedSystem, load: MixedLoad, attempts: int) -> LoadRun:
    """A run with little other work on the machine, or the one of several that had least. The outcome has no say in it."""
    tried: list[LoadRun] = []
    while len(tried) < attempts:
        tried.append(await run_load(system, load))
        if tried[-1].foreign_s < DISTURBED * tried[-1].files_s:
            break
    return min(tried, key=lambda one: one.foreign_s)


async def run_load(system: LoadedSystem, load: MixedLoad) -> LoadRun:
    """The load once."""
    clock = asyncio.get_running_loop().time
    windows, cpu, foreign = await system.windows(), system.cpu(), measure_busy()
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
        long = [group.create_task(file()) for _ in range(load.files)]
    used = system.cpu() - cpu
    return LoadRun(
        clips_s=[task.result() for task in short],
        files_s=max(task.result() for task in long),
        cpu_s=used,
        windows=await system.windows() - windows,
        foreign_s=max(measure_busy() - foreign - used, 0.0),
    )


def describe_disturbance(runs: dict[str, list[LoadRun]]) -> str:
    """A sentence for the note under the table."""
    foreign = {name: ", ".join(f"{one.foreign_s:.1f}" for one in series) for name, series in runs.items()}
    named = "; ".join(f"{seconds} ({name})" for name, seconds in foreign.items())
    return (
        f"Other work on the machine took these seconds of CPU during the runs: {named}. Where they differ much, times by the "
        "clock mean little, CPU still does."
    )
