"""What the server costs on top of its engine, and what it costs while nobody asks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from pathlib import Path
from statistics import median
from subprocess import Popen

from bench.client import runner_health, transcribe, transcribe_with_runner
from bench.figure import Compare, Figure
from bench.recordings import clip_30_s
from bench.runners import runner
from bench.server import RunningServer, child, running


def measure(quick: bool) -> list[Figure]:
    """CPU of a request through the server against the same work done by hand in one process."""
    requests, rounds = (5, 3) if quick else (10, 15)
    with running() as server, tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as file:
        file.write(clip_30_s())
        file.flush()
        batches = _batches(asyncio.run(runner_health(server.socket))["batch"])
        sizes = ",".join(map(str, batches))
        with child(["-m", "bench.direct", file.name, sizes], pipes=True) as direct:
            ours, gateway, baseline = [], [], []
            _directly(direct, 1)
            for turn in range(rounds):
                # Whoever goes first meets the machine in another state than who goes second.
                if turn % 2:
                    baseline.append(_directly(direct, requests))
                total, share = asyncio.run(_served(server, requests))
                ours.append(total)
                gateway.append(share)
                if not turn % 2:
                    baseline.append(_directly(direct, requests))
    note = (
        f"{rounds} rounds of {requests} requests each, one after the other, of 30 s of MP3; batches of {sizes} windows on both "
        f"sides, as a runner formed them when asked. Of ours the gateway used {median(gateway) * 1000:.1f} ms."
    )
    what, against = "CPU per request of 30 s", "engine called directly in one process"
    ours, baseline = ([value * 1000 for value in series] for series in (ours, baseline))
    return [Figure("overhead", what, against, "ms", ours, baseline, Compare.SHARE, 1.03, note)]


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
