"""One model behind the real server: texts and throughput, short clips beside long files, memory, loading."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.client import get_runner_health, transcribe
from bench.engines.beside import BesideTimes, measure_beside_files
from bench.engines.folder import Recording
from bench.engines.gpu import GpuMemory
from bench.server import BenchServer, run_server
from bench.usage import measure_peak_mb, measure_proportional_mb


@dataclass(frozen=True, slots=True)
class ThroughputFigure:
    """Seconds of audio per second for so many clients, with batches of at most `batch` windows; `chosen` by the runner itself?"""

    batch: int
    chosen: bool
    clients: int
    speed: float


@dataclass(slots=True)
class ServedFigures:
    """What was measured; times in seconds, memory in MB."""

    throughput: list[ThroughputFigure] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    first_use_s: float = 0.0
    again_s: float = 0.0
    loaded_answer_s: float = 0.0
    """The same clip when the model is loaded."""
    beside: BesideTimes | None = None
    peak_rss_mb: float = 0.0
    pss_mb: float = 0.0
    gpu_mb: float | None = None


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model's name, and settings for a server that has it, by batch size."""

    name: str
    settings: dict[int, dict[str, Any]]


def measure_target(target: ServedModel, recordings: Sequence[Recording], clients: Sequence[int], long_s: float) -> ServedFigures:
    """Everything about one model. The first batch size gets all of it, the others throughput alone."""
    served = ServedFigures()
    first, *others = target.settings
    with GpuMemory() as gpu, _run_server(target, first) as server:
        _measure_loading(served, server, target.name, recordings)
        _measure_throughput(served, server, target.name, first, recordings, clients)
        served.beside = asyncio.run(measure_beside_files(server, target.name, recordings, long_s))
        served.peak_rss_mb = measure_peak_mb(server.runner)
        served.pss_mb = measure_proportional_mb(server.runner)
    served.gpu_mb = gpu.grown_mb
    for batch in others:
        with _run_server(target, batch) as server:
            _time_answer(server, target.name, recordings[0])
            _measure_throughput(served, server, target.name, batch, recordings, clients)
    return served


@contextmanager
def _run_server(target: ServedModel, batch: int) -> Iterator[BenchServer]:
    with run_server(warm=False, settings=target.settings[batch], environment={}) as server:
        yield server


def _measure_loading(served: ServedFigures, server: BenchServer, name: str, recordings: Sequence[Recording]) -> None:
    """First use, the same once loaded, and again after it was unloaded."""
    clip = min(recordings, key=lambda recording: recording.seconds)
    served.first_use_s = _time_answer(server, name, clip)
    served.loaded_answer_s = min(_time_answer(server, name, clip) for _ in range(3))
    server.unload_model(name)
    served.again_s = _time_answer(server, name, clip)


def _time_answer(server: BenchServer, name: str, clip: Recording) -> float:
    started = time.perf_counter()
    asyncio.run(_post_recording(server.port, name, clip))
    return time.perf_counter() - started


def _measure_throughput(
    served: ServedFigures, server: BenchServer, name: str, batch: int, recordings: Sequence[Recording], clients: Sequence[int]
) -> None:
    in_force = asyncio.run(get_runner_health(server.socket))["batch"]
    for count in clients:
        times = max(1, -(-2 * count // len(recordings)))  # two for each client at least
        started = time.perf_counter()
        texts = asyncio.run(_run_clients(server.port, name, [*recordings] * times, count))
        wall = time.perf_counter() - started
        served.texts = served.texts or texts[: len(recordings)]
        served.throughput.append(ThroughputFigure(in_force, batch == 0, count, sum(r.seconds for r in recordings) * times / wall))


async def _run_clients(port: int, name: str, recordings: Sequence[Recording], count: int) -> list[str]:
    """The texts; so many clients, each sending the next recording when its last one is answered."""
    texts = [""] * len(recordings)
    waiting = iter(enumerate(recordings))

    async def client() -> None:
        for number, recording in waiting:
            texts[number] = await _post_recording(port, name, recording)

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(client())
    return texts


async def _post_recording(port: int, name: str, recording: Recording) -> str:
    language = {"language": recording.language} if recording.language else {}
    answer = json.loads(await transcribe(port, recording.path.read_bytes(), model=name, **language))
    return str(answer["text"])
