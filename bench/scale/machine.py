"""An archive on one real machine with the embedded model: against its engine alone, beside live sessions, and a large upload."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from bench.children import run_child
from bench.client import MODEL, build_form, get_runner_health, open_exchange
from bench.engines.beside import compute_percentiles
from bench.figure import BenchFigure, SeriesComparison
from bench.live_client import run_talk
from bench.live_delays import compute_delays
from bench.live_recording import build_recording
from bench.recordings import GeneratedWav, create_tape_mp3
from bench.scale.archive import ArchiveClient
from bench.server import BenchServer, run_server
from bench.usage import measure_peak_mb

TUNING_S = 15
"""In so many idle seconds a runner finds its batch size. It must not do so while the other side is measured."""

UPLOAD_BYTES = 600 << 20
FILE_S = 120


@dataclass(frozen=True, slots=True)
class MachineSizes:
    """How much is measured: rounds and recordings of the archive; sessions, for how long; bytes of the upload."""

    rounds: int
    files: int
    sessions: int
    session_s: float
    upload_bytes: int


FULL = MachineSizes(rounds=9, files=6, sessions=5, session_s=30, upload_bytes=UPLOAD_BYTES)
QUICK = MachineSizes(rounds=1, files=2, sessions=1, session_s=8, upload_bytes=20 << 20)


@dataclass(frozen=True, slots=True)
class WorkCost:
    """Seconds of CPU and of the clock."""

    cpu: float
    wall: float


def measure(quick: bool) -> list[BenchFigure]:
    """All of it, on fresh servers."""
    sizes = QUICK if quick else FULL
    return [*_measure_archive(sizes), *_measure_beside(sizes), _measure_upload(sizes)]


@contextmanager
def _run_job_server() -> Iterator[tuple[BenchServer, ArchiveClient]]:
    """A server whose jobs are its own; its model is loaded."""
    with (
        tempfile.TemporaryDirectory(prefix="eardrum-bench-") as folder,
        run_server(settings={"jobs": {"dir": folder}}) as server,
        ArchiveClient(server.port) as client,
    ):
        yield server, client


def _measure_archive(sizes: MachineSizes) -> list[BenchFigure]:
    """An archive against the same decode, VAD and engine called by hand, with the same windows in full batches."""
    served: list[WorkCost] = []
    direct: list[WorkCost] = []
    with _run_job_server() as (server, client), tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as file:
        file.write(create_tape_mp3(FILE_S))
        file.flush()
        id = client.upload(create_tape_mp3(FILE_S))
        time.sleep(TUNING_S)
        before = asyncio.run(get_runner_health(server.socket))
        client.wait_for_end(client.begin_batch([id]))
        windows = asyncio.run(get_runner_health(server.socket))["windows"] - before["windows"]
        batches = [before["batch"]] * (windows // before["batch"]) + [windows % before["batch"]] * (windows % before["batch"] > 0)
        with run_child(["-m", "bench.direct", file.name, ",".join(map(str, batches))], pipes=True) as process:
            for turn in range(sizes.rounds):
                if turn % 2:
                    direct.append(_run_direct(process, sizes.files))
                served.append(_run_served(server, client, id, sizes.files))
                if not turn % 2:
                    direct.append(_run_direct(process, sizes.files))
    audio = sizes.files * FILE_S
    note = (
        f"{sizes.rounds} rounds of {sizes.files} recordings of {FILE_S} s each as a batch, with the embedded model; {windows} "
        f"windows of each, by hand in batches of {before['batch']}. On the clock "
        f"{audio / median(one.wall for one in served):.1f} seconds of audio per second, by hand, one thing after the other, "
        f"{audio / median(one.wall for one in direct):.1f}."
    )
    against = "engine, decode and VAD by hand in one process"
    cpu = [one.cpu for one in served], [one.cpu for one in direct]
    wall = [one.wall for one in served], [one.wall for one in direct]
    return [
        BenchFigure(
            "archive",
            "an archive on one machine, CPU of all processes",
            against,
            "s",
            *cpu,
            SeriesComparison.TIMES_LESS,
            0.97,
            note,
        ),
        BenchFigure("archive-wall", "the same on the clock", against, "s", *wall, SeriesComparison.TIMES_LESS),
    ]


def _run_served(server: BenchServer, client: ArchiveClient, file: str, count: int) -> WorkCost:
    cpu, began = server.cpu, time.perf_counter()
    batch = client.wait_for_end(client.begin_batch([file] * count))
    cost = WorkCost(server.cpu - cpu, time.perf_counter() - began)
    client.check_output(batch, count)
    return cost


def _run_direct(process: subprocess.Popen[bytes], count: int) -> WorkCost:
    assert process.stdin
    assert process.stdout
    began = time.perf_counter()
    process.stdin.write(f"{count}\n".encode())
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise subprocess.SubprocessError("The direct process ended")
    return WorkCost(float(answer), time.perf_counter() - began)


def _measure_beside(sizes: MachineSizes) -> list[BenchFigure]:
    """How late the finals of live sessions are, beside nothing and beside an archive that does not end meanwhile."""
    with _run_job_server() as (server, client):
        alone = asyncio.run(_run_sessions(server, sizes))
        id = client.begin_batch([client.upload(create_tape_mp3(600))] * 40)
        while not client.describe(id)["progress"]["seconds"]:
            time.sleep(0.1)
        beside = asyncio.run(_run_sessions(server, sizes))
        done = client.describe(id)["progress"]["seconds"]
        if client.describe(id)["status"] != "in_progress":
            raise RuntimeError("The archive was done before the sessions")
        client.cancel(id)
    both = sorted(alone.keys() & beside.keys())
    ours, baseline = [beside[one] for one in both], [alone[one] for one in both]
    note = (
        f"{sizes.sessions} sessions of {sizes.session_s:.0f} s, the same audio twice; {len(both)} finals, from the end of the "
        f"speech. Median and 95 %: without {_format_seconds(baseline)}, beside {_format_seconds(ours)}. The archive went on "
        f"meanwhile: {done:.0f} s of audio."
    )
    what = "finals of live sessions beside a full archive, median"
    values = [median(ours)], [median(baseline)]
    return [BenchFigure("archive-live", what, "without it", "s", *values, SeriesComparison.SHARE, 1.2, note)]


async def _run_sessions(server: BenchServer, sizes: MachineSizes) -> dict[tuple[int, int], float]:
    """Sessions that begin one after another within a second; returns the delays of their finals, by session and last word."""

    async def speak(number: int) -> dict[tuple[int, int], float]:
        await asyncio.sleep(number / sizes.sessions)
        spoken = build_recording(sizes.session_s, skip=7 * number)
        found = compute_delays(spoken.words, (await run_talk(server.port, spoken.pcm)).messages)
        return {(number, last): delay for last, delay in found.finals.items()}

    return {key: delay for one in await asyncio.gather(*map(speak, range(sizes.sessions))) for key, delay in one.items()}


def _measure_upload(sizes: MachineSizes) -> BenchFigure:
    """The growth of the gateway by a large upload into a job, until its end."""
    size = sizes.upload_bytes
    with _run_job_server() as (server, client):
        client.wait_for_end(client.begin_batch([client.upload(create_tape_mp3(5))]))
        before = measure_peak_mb(server.gateway)
        id = asyncio.run(_send_job(server.port, GeneratedWav(size)))
        received = measure_peak_mb(server.gateway) - before
        client.wait_for_end(id)
        grown = measure_peak_mb(server.gateway) - before
    note = f"Peak (VmHWM) after a first small job: {before:.0f} MB. When the upload was complete, {received:.1f} MB more."
    what = f"growth of the gateway by a job of {size >> 20} MiB, upload and transcript"
    return BenchFigure("archive-upload", what, "", "MB", [grown], [], SeriesComparison.ABSOLUTE, 20, note)


async def _send_job(port: int, audio: GeneratedWav) -> str:
    async with open_exchange(port, "/api/jobs", build_form(audio, model=MODEL), wanted=202) as answer:
        text = (await answer.read()).decode()
    return text.split('"id":')[1].split('"')[1]


def _format_seconds(values: list[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in compute_percentiles(values))
