"""What is still decoded for a client that hung up in the middle of its stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bench.client import build_form, get_runner_health, open_exchange, read_next_segment, transcribe, wait_for_quiet
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_tape_mp3
from bench.server import BenchServer, run_server
from bench.usage import measure_cpu


def measure(quick: bool) -> list[BenchFigure]:
    """Windows decoded, and CPU used, after the client hung up."""
    minutes = 6 if quick else 20
    after = (3, 11, 22) if quick else (3, 10, 17, 24, 31, 38, 45, 52, 59)
    with run_server() as server:
        return asyncio.run(_measure(server, create_tape_mp3(60 * minutes), minutes, after))


@dataclass(frozen=True, slots=True)
class RunnerWork:
    """What the runner did: windows decoded to their end, and CPU seconds."""

    windows: int
    cpu_s: float

    def __sub__(self, other: RunnerWork) -> RunnerWork:
        return RunnerWork(self.windows - other.windows, self.cpu_s - other.cpu_s)


async def _measure(server: BenchServer, file: bytes, minutes: int, after: tuple[int, ...]) -> list[BenchFigure]:
    batch = (await get_runner_health(server.socket))["batch"]
    before = await _wait_for_quiet(server)
    await transcribe(server.port, file)
    whole = await _wait_for_quiet(server) - before
    late, left, late_cpu, left_cpu = [], [], [], []
    for segments in after:
        until, since = await _hang_up(server, file, segments)
        late.append(float(since.windows))
        left.append(float(whole.windows - until.windows))
        late_cpu.append(since.cpu_s)
        left_cpu.append(whole.cpu_s * left[-1] / whole.windows)
    note = (
        f"A {minutes} min file of {whole.windows} windows in batches of up to {batch}; the client leaves after segment "
        f"{', '.join(map(str, after))}. Counted by the runner: windows decoded to their end, a second after that count last "
        "moved, less the count just before hanging up. Windows of the batch in hand that the engine gave up half done are not "
        f"in it, which is why the CPU is measured too. Single counts: {', '.join(f'{n:.0f}' for n in late)}. The baseline is "
        "the rest of the file, which a server that does not watch the connection decodes."
    )
    windows, cpu = "windows decoded for a client that left", "CPU used for a client that left"
    return [
        BenchFigure("hangup", windows, "never noticing", "windows", late, left, SeriesComparison.ABSOLUTE, 1, note),
        BenchFigure("hangup-cpu", cpu, "never noticing", "s", late_cpu, left_cpu, SeriesComparison.TIMES_LESS),
    ]


async def _hang_up(server: BenchServer, file: bytes, segments: int) -> tuple[RunnerWork, RunnerWork]:
    """The runner's work on one request before and after its client left."""
    before = await _wait_for_quiet(server)
    async with open_exchange(server.port, "/v1/audio/transcriptions", build_form(file, stream="true")) as answer:
        for _ in range(segments):
            await read_next_segment(answer)
        leaving = RunnerWork((await get_runner_health(server.socket))["windows"], measure_cpu(server.runner))
    return leaving - before, await _wait_for_quiet(server) - leaving


async def _wait_for_quiet(server: BenchServer) -> RunnerWork:
    return RunnerWork(await wait_for_quiet(server.socket), measure_cpu(server.runner))
