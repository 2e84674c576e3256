"""What the server costs on top of its engine, and what it costs while nobody asks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from subprocess import Popen

from bench.children import run_child
from bench.client import get_runner_health, transcribe, transcribe_with_runner
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_30_s_clip
from bench.runners import start_runner
from bench.server import BenchServer, run_server
from bench.usage import measure_busy


@dataclass(frozen=True, slots=True)
class OverheadRound:
    """CPU seconds per request: served, the gateway's part of that, and directly; and those that other work took in all."""

    served: float
    gateway: float
    direct: float
    foreign: float


def measure(quick: bool) -> list[BenchFigure]:
    """CPU of a request through the server against the same work done by hand in one process."""
    requests, rounds = (5, 3) if quick else (10, 16)
    with run_server() as server, tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as file:
        file.write(create_30_s_clip())
        file.flush()
        batches = _find_batches(asyncio.run(get_runner_health(server.socket))["batch"])
        sizes = ",".join(map(str, batches))
        with run_child(["-m", "bench.direct", file.name, sizes], pipes=True) as direct:
            _measure_direct(direct, 1)
            played = [_run_round(server, direct, requests, served_first=turn % 2 == 0) for turn in range(rounds)]
    kept = sorted(played, key=lambda one: one.foreign)[: (rounds + 1) // 2]
    foreign = f"{kept[0].foreign:.1f} to {kept[-1].foreign:.1f} s of CPU"
    note = (
        f"{rounds} rounds of {requests} requests each, one after the other, of 30 s of MP3; counted is the half of the rounds in "
        f"which other work on the machine took least ({foreign}). Batches of {sizes} windows on both sides, as a runner formed "
        f"them when asked. Of ours the gateway used {median(one.gateway for one in kept) * 1000:.1f} ms."
    )
    what, against = "CPU per request of 30 s", "engine called directly in one process"
    ours, baseline = [one.served * 1000 for one in kept], [one.direct * 1000 for one in kept]
    return [BenchFigure("overhead", what, against, "ms", ours, baseline, SeriesComparison.SHARE, 1.03, note)]


def _run_round(server: BenchServer, direct: Popen[bytes], requests: int, *, served_first: bool) -> OverheadRound:
    """Both ways once. They take turns in going first: the second meets the machine in another state."""
    before = measure_busy()
    if served_first:
        served, gateway = asyncio.run(_measure_served(server, requests))
        by_hand = _measure_direct(direct, requests)
    else:
        by_hand = _measure_direct(direct, requests)
        served, gateway = asyncio.run(_measure_served(server, requests))
    return OverheadRound(served, gateway, by_hand, max(measure_busy() - before - requests * (served + by_hand), 0.0))


def _find_batches(limit: int) -> list[int]:
    """The batches a runner forms from the clip, told by one of the bench's own with the same order of service."""
    with start_runner("fair", limit, tell=True) as (socket, process):
        counts = [asyncio.run(_read_batches(socket, process)) for _ in range(6)][1:]
        return max(counts, key=counts.count)


async def _read_batches(socket: Path, process: Popen[bytes]) -> list[int]:
    assert process.stdout
    text = await transcribe_with_runner(socket, create_30_s_clip())
    summary = next(json.loads(line)["summary"] for line in text.splitlines() if b'"summary"' in line)
    sizes: list[int] = []
    while sum(sizes) < summary["windows"]:
        sizes.append(json.loads(process.stdout.readline())["batch"])
    return sizes


async def _measure_served(server: BenchServer, requests: int) -> tuple[float, float]:
    """CPU seconds per request: of gateway and runner, and of the gateway alone."""
    gateway = server.gateway.cpu_times()
    before = server.cpu
    for _ in range(requests):
        await transcribe(server.port, create_30_s_clip())
    after = server.gateway.cpu_times()
    alone = after.user + after.system - gateway.user - gateway.system
    return (server.cpu - before) / requests, alone / requests


def _measure_direct(process: Popen[bytes], requests: int) -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{requests}\n".encode())
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise subprocess.SubprocessError("The direct process ended")
    return float(answer) / requests
