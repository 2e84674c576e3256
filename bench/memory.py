"""The most memory a request ever takes: long audio, and large uploads."""

from __future__ import annotations

import asyncio
from typing import Any

from bench.client import transcribe
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import GeneratedWav, create_sparse_mp3
from bench.server import run_server

TARGET = 1.10


def measure(quick: bool) -> list[BenchFigure]:
    """Peak memory of gateway and runner: long against short audio, a large upload against a small one."""
    hours, megabytes, repetitions = ((0.5, 1 / 6), (200, 10), 1) if quick else ((3, 1), (1000, 10), 3)
    return [
        _measure_figure(
            "memory-length",
            f"peak memory, {hours[0]:g} h of audio",
            f"{hours[1]:.2g} h of it",
            [create_sparse_mp3(hour * 3600) for hour in hours],
            repetitions,
        ),
        _measure_figure(
            "memory-upload",
            f"peak memory, upload of {megabytes[0]} MB",
            f"{megabytes[1]} MB",
            [GeneratedWav(size * 1_000_000) for size in megabytes],
            repetitions,
        ),
    ]


def _measure_figure(name: str, what: str, against: str, audio: list[Any], repetitions: int) -> BenchFigure:
    more, less = audio
    idle: list[float] = []
    series: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    for _ in range(repetitions):
        for i, one in enumerate((more, less)):
            loaded, peak = _measure_peaks(one)
            idle.append(sum(loaded))
            series[i].append(peak)
    note = (
        f"VmHWM of gateway plus runner, a fresh server for each request. Loaded, after one clip: {_compute_mean(idle):.0f} MB. "
        f"Gateway alone {_compute_mean([p[0] for p in series[0]]):.0f} "
        f"against {_compute_mean([p[0] for p in series[1]]):.0f} MB, "
        f"runner {_compute_mean([p[1] for p in series[0]]):.0f} against {_compute_mean([p[1] for p in series[1]]):.0f} MB."
    )
    ours, baseline = [sum(p) for p in series[0]], [sum(p) for p in series[1]]
    return BenchFigure(name, what, against, "MB", ours, baseline, SeriesComparison.SHARE, TARGET, note)


def _measure_peaks(audio: Any) -> tuple[tuple[float, float], tuple[float, float]]:
    """Peaks of gateway and runner before and after the request."""
    with run_server() as server:
        loaded = server.peak_mb
        asyncio.run(transcribe(server.port, audio))
        return loaded, server.peak_mb


def _compute_mean(values: list[float]) -> float:
    return sum(values) / len(values)
