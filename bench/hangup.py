"""What is still decoded for a client that hung up in the middle of its stream."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from bench.client import exchange, form, next_segment, quiet_windows, runner_health, transcribe
from bench.figure import Compare, Figure
from bench.recordings import tape_mp3
from bench.server import RunningServer, running
from bench.usage import cpu_of


def measure(quick: bool) -> list[Figure]:
    """Windows decoded, and CPU used, after the client hung up."""
    minutes = 6 if quick else 20
    after = (3, 11, 22) if quick else (3, 10, 17, 24, 31, 38, 45, 52, 59)
    with running() as server:
        return asyncio.run(_measure(server, tape_mp3(60 * minutes), minutes, after))


@dataclass(frozen=True, slots=True)
class Work:
    """What the runner did: windows decoded to their end, and CPU seconds."""

    windows: int
    cpu_s: float

    def __sub__(self, other: Work) -> Work:
        return Work(self.windows - other.windows, self.cpu_s - other.cpu_s)


async def _measure(server: RunningServer, file: bytes, minutes: int, after: tuple[int, ...]) -> list[Figure]:
    batch = (await runner_health(server.socket))["batch"]
    before = await _quiet(server)
    await transcribe(server.port, file)
    whole = await _quiet(server) - before
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
        Figure("hangup", windows, "never noticing", "windows", late, left, Compare.ABSOLUTE, 1, note),
        Figure("hangup-cpu", cpu, "never noticing", "s", late_cpu, left_cpu, Compare.TIMES_LESS),
    ]


async def _hang_up(server: RunningServer, file: bytes, segments: int) -> tuple[Work, Work]:
    """The runner's work on one request before and after its client left."""
    before = await _quiet(server)
    async with exchange(server.port, "/v1/audio/transcriptions", form(file, stream="true")) as answer:
        for _ in range(segments):
            await next_segment(answer)
        leaving = Work((await runner_health(server.socket))["windows"], cpu_of(server.runner))
    return leaving - before, await _quiet(server) - leaving


async def _quiet(server: RunningServer) -> Work:
    return Work(await quiet_windows(server.socket), cpu_of(server.runner))
