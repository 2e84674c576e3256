"""An archive on simulated nodes: real runners on TCP with a scripted engine, behind one gateway."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import psutil

from bench.children import run_child
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_tape_wav
from bench.scale.archive import ArchiveClient
from bench.scale.scripted_engine import ScriptedModel, read_log
from bench.server import BenchServer, find_free_port, post_clip, run_server, wait_until_healthy
from bench.usage import measure_cpu

TITLE = "simulated nodes, scripted engine"
RATE = 20.0
"""Seconds of audio that the engine of a node transcribes in a second."""
LENGTHS_S = (30, 40, 50, 60)
"""Of the recordings of the archive, in turn."""
TARGET = 0.9
NODES = 8
"""As many nodes have a target."""
IN_HAND = 3
"""Windows that are begun again after a kill: the one in the engine, and of both recordings one that is on its way."""


@dataclass(frozen=True, slots=True)
class SimulatedNode:
    """A real runner of the scripted engine."""

    port: int
    process: psutil.Process
    log: Path

    def count_windows(self, kind: str) -> int:
        """Windows that were `begun` or `done` so far."""
        return len(read_log(self.log, kind))


@dataclass(frozen=True, slots=True)
class ArchiveRun:
    """An archive on so many nodes. Seconds of CPU, and the load average at the end."""

    nodes: int
    audio_s: float
    wall_s: float
    busy: float
    """The share of the time in which the engines slept, as they were told to."""
    gateway_cpu: float
    runner_cpu: float
    load: float

    @property
    def rate(self) -> float:
        """Seconds of audio per second."""
        return self.audio_s / self.wall_s

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.nodes}: {self.wall_s:.1f} s, {self.rate:.0f}x real time, engines busy {self.busy:.3f}, CPU gateway "
            f"{self.gateway_cpu:.1f} s, runners {self.runner_cpu:.1f} s, load {self.load:.1f}"
        )


def measure(quick: bool) -> list[BenchFigure]:
    """The same work for each node on more and more nodes, and then a node that is killed in the middle."""
    levels, each = ((1, 2), 4) if quick else ((1, 2, 4, NODES, 16), 24)
    with tempfile.TemporaryDirectory(prefix="eardrum-bench-") as temp:
        model = ScriptedModel(Path(temp))
        model.install()
        with _run_nodes(model, max(levels)) as nodes:
            runs = [_run_archive(model, nodes[:count], each) for count in levels]
            again, hand = _kill_one(model, nodes[: min(NODES, max(levels))], max(each // 2 // 4 * 4, 4))
    return [*_build_figures(runs), _build_kill_figure(again, hand)]


def _build_figures(runs: Sequence[ArchiveRun]) -> Iterator[BenchFigure]:
    first = runs[0]
    note = (
        f"WAV files of {LENGTHS_S[0]} to {LENGTHS_S[-1]} s, {first.audio_s:.0f} s of audio for each node, engines of {RATE:g} "
        f"times real time, from sending the batch to its end. Nodes: {'; '.join(run.describe() for run in runs)}. All nodes "
        f"share the {os.cpu_count()} cores of this machine with the gateway."
    )
    for run in runs[1:]:
        is_bound = run.nodes == min(NODES, runs[-1].nodes)
        yield BenchFigure(
            f"scale-{run.nodes}",
            f"{TITLE}: {run.nodes} nodes, efficiency",
            "one node, a share of the work",
            "s",
            [run.wall_s],
            [first.wall_s],
            SeriesComparison.TIMES_LESS,
            TARGET if is_bound else None,
            note if is_bound else "",
        )
        yield BenchFigure(
            f"scale-{run.nodes}-idle",
            f"{TITLE}: {run.nodes} nodes, share of the time in which an engine has nothing to do",
            "",
            "",
            [1 - run.busy],
            [],
            SeriesComparison.ABSOLUTE,
            1 - TARGET if is_bound else None,
        )


def _build_kill_figure(again: int, hand: str) -> BenchFigure:
    return BenchFigure(
        "scale-kill",
        f"{TITLE}: windows begun again after a node was killed",
        "",
        "windows",
        [again],
        [],
        SeriesComparison.ABSOLUTE,
        IN_HAND,
        f"SIGKILL to one of the nodes in the middle of an archive. {hand} Every recording has one result.",
    )


@contextmanager
def _run_nodes(model: ScriptedModel, count: int) -> Iterator[list[SimulatedNode]]:
    with ExitStack() as stack:
        nodes = [_start_node(stack, model, number) for number in range(count)]
        for node, process in nodes:
            wait_until_healthy(node.port, process)
        yield [node for node, _ in nodes]


def _start_node(stack: ExitStack, model: ScriptedModel, number: int) -> tuple[SimulatedNode, Popen[bytes]]:
    port, log = find_free_port(), model.folder / f"{number}.log"
    entry = {**model.entry, "options": {"log": str(log), "rate": RATE}}
    arguments = ["runner", "m", "--listen", f"127.0.0.1:{port}", "--set", f"models={json.dumps({'m': entry})}"]
    process = stack.enter_context(run_child(["-m", "eardrum", *arguments], environment=model.environment))
    return SimulatedNode(port, psutil.Process(process.pid), log), process


@contextmanager
def _run_gateway(model: ScriptedModel, nodes: Sequence[SimulatedNode]) -> Iterator[tuple[BenchServer, ArchiveClient]]:
    """A gateway before these nodes, which has sent a clip to one of them."""
    with tempfile.TemporaryDirectory(prefix="eardrum-bench-") as folder:
        addresses = [f"http://127.0.0.1:{node.port}" for node in nodes]
        settings = {
            "models": {"m": {**model.entry, "replicas": {"addresses": addresses}}},
            "default_model": "m",
            "jobs": {"dir": folder},
        }
        with (
            run_server(warm=False, settings=settings, environment=model.environment) as server,
            ArchiveClient(server.port) as client,
        ):
            post_clip(server.port, "m")
            yield server, client


def _run_archive(model: ScriptedModel, nodes: Sequence[SimulatedNode], each: int) -> ArchiveRun:
    with _run_gateway(model, nodes) as (server, client):
        files = [client.upload(create_tape_wav(seconds)) for seconds in LENGTHS_S]
        count = len(nodes) * each
        gateway, runners = measure_cpu(server.gateway), _sum_cpu(nodes)
        began, clock = time.time(), time.perf_counter()
        id = client.begin_batch([files[n % len(files)] for n in range(count)])
        batch = client.wait_for_end(id)
        wall, ended, load = time.perf_counter() - clock, time.time(), os.getloadavg()[0]
        client.check_output(batch, count)
        asleep = sum(sum(read_log(node.log, "done", began, ended)) for node in nodes)
        audio = sum(LENGTHS_S[n % len(LENGTHS_S)] for n in range(count))
        used = measure_cpu(server.gateway) - gateway, _sum_cpu(nodes) - runners
    return ArchiveRun(len(nodes), audio, wall, asleep / (len(nodes) * wall), *used, load)


def _sum_cpu(nodes: Sequence[SimulatedNode]) -> float:
    return sum(measure_cpu(node.process) for node in nodes)


def _kill_one(model: ScriptedModel, nodes: Sequence[SimulatedNode], each: int) -> tuple[int, str]:
    """Kill a node once a third of the archive is done; returns the windows that were begun again, and a sentence about them."""
    with _run_gateway(model, nodes) as (_, client):
        files = [client.upload(create_tape_wav(seconds)) for seconds in LENGTHS_S]
        before = _count_all(nodes, "done")
        client.wait_for_end(client.begin_batch(files))
        windows = _count_all(nodes, "done") - before
        count, begun = len(nodes) * each, _count_all(nodes, "begun")
        id = client.begin_batch([files[n % len(files)] for n in range(count)])
        while client.count_done(id) < count // 3:
            time.sleep(0.1)
        os.kill(nodes[0].process.pid, signal.SIGKILL)
        client.check_output(client.wait_for_end(id), count)
        wanted = windows * count // len(files)
        again = _count_all(nodes, "begun") - begun - wanted
    return again, f"{wanted} windows on {len(nodes)} nodes, {count} recordings."


def _count_all(nodes: Sequence[SimulatedNode], kind: str) -> int:
    return sum(node.count_windows(kind) for node in nodes)
