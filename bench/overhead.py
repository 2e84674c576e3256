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

from bench.children import child
from bench.client import runner_health, transcribe, transcribe_with_runner
from bench.figure import Compare, Figure
from bench.recordings import clip_30_s
from bench.runners import runner
from bench.server import RunningServer, running
from bench.usage import busy


@dataclass(frozen=True, slots=True)
class Round:
    """CPU seconds per request: served, the gateway's part of that, and directly; and those that other work took in all."""

    served: float
    gateway: float
    direct: float
    foreign: float


def measure(quick: bool) -> list[Figure]:
    """CPU of a request through the server against the same work done by hand in one process."""
    requests, rounds = (5, 3) if quick else (10, 16)
    with running() as server, tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as file:
        file.write(clip_30_s())
        file.flush()
        batches = _batches(asyncio.run(runner_health(server.socket))["batch"])
        sizes = ",".join(map(str, batches))
        with child(["-m", "bench.direct", file.name, sizes], pipes=True) as direct:
            _directly(direct, 1)
            played = [_round(server, direct, requests, served_first=turn % 2 == 0) for turn in range(rounds)]
    kept = sorted(played, key=lambda one: one.foreign)[: (rounds + 1) // 2]
    foreign = f"{kept[0].foreign:.1f} to {kept[-1].foreign:.1f} s of CPU"
    note = (
        f"{rounds} rounds of {requests} requests each, one after the other, of 30 s of MP3; counted is the half of the rounds in "
        f"which other work on the machine took least ({foreign}). Batches of {sizes} windows on both sides, as a runner formed "
        f"them when asked. Of ours the gateway used {median(one.gateway for one in kept) * 1000:.1f} ms."
    )
    what, against = "CPU per request of 30 s", "engine called directly in one process"
    ours, baseline = [one.served * 1000 for one in kept], [one.direct * 1000 for one in kept]
    return [Figure("overhead", what, against, "ms", ours, baseline, Compare.SHARE, 1.03, note)]


def _round(server: RunningServer, direct: Popen[bytes], requests: int, *, served_first: bool) -> Round:
    """Both ways once. They take turns in going first: the second meets the machine in another state."""
    before = busy()
    if served_first:
        served, gateway = asyncio.run(_served(server, requests))
        by_hand = _directly(direct, requests)
    else:
        by_hand = _directly(direct, requests)
        served, gateway = asyncio.run(_served(server, requests))
    return Round(served, gateway, by_hand, max(busy() - before - requests * (served + by_hand), 0.0))


def _batches(limit: int) -> list[int]:
    """The batches a runner forms from the clip, told by one of the bench's own with the same order of service."""
    with runner("fair", limit, tell=True) as (socket, process):
        counts = [asyncio.run(_told(socket, process)) for _ in range(6)][1:]
        return max(counts, key=counts.count)


async def _told(socket: Path, process: Popen[bytes]) -> list[int]:
    assert process.stdout
    text = await transcribe_with_runner(socket, clip_30_s())
    summary = next(json.loads(line)["summary"] for line in text.splitlines() if b'"summary"' in line)
    sizes: list[int] = []
    while sum(sizes) < summary["windows"]:
        sizes.append(json.loads(process.stdout.readline())["batch"])
    return sizes


async def _served(server: RunningServer, requests: int) -> tuple[float, float]:
    """CPU seconds per request: of gateway and runner, and of the gateway alone."""
    gateway = server.gateway.cpu_times()
    before = server.cpu
    for _ in range(requests):
        await transcribe(server.port, clip_30_s())
    after = server.gateway.cpu_times()
    alone = after.user + after.system - gateway.user - gateway.system
    return (server.cpu - before) / requests, alone / requests


def _directly(process: Popen[bytes], requests: int) -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{requests}\n".encode())
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise subprocess.SubprocessError("The direct process ended")
    return float(answer) / requests
