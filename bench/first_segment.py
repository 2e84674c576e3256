"""How soon the first words of a long upload come back."""

from __future__ import annotations

import asyncio
import time

from bench.children import child
from bench.client import exchange, form, next_segment, quiet_windows
from bench.figure import Compare, Figure
from bench.recordings import tape_mp3
from bench.server import free_port, running, until_healthy

MBIT_PER_S = 100


def measure(quick: bool) -> list[Figure]:
    """Time from the first byte sent to the first segment received."""
    minutes, repetitions = (6, 1) if quick else (26, 5)
    file = tape_mp3(60 * minutes)
    port = free_port()
    with running() as server, child(["-m", "bench.upload_first", str(port)]) as usual:
        until_healthy(port, usual)
        ours, baseline = [], []
        for _ in range(repetitions):
            ours.append(asyncio.run(_first(server.port, file)))
            asyncio.run(quiet_windows(server.socket))
            baseline.append(asyncio.run(_first(port, file)))
    note = (
        f"{len(file) / 1e6:.0f} MB of MP3 ({minutes} min) at {MBIT_PER_S} Mbit/s. The baseline takes the upload into a file, "
        "decodes all of it, runs the VAD over all of it, then transcribes the first window with the same engine and sends it."
    )
    against = "upload, decode, VAD, then the first window"
    return [Figure("first-segment", "first segment of a long upload", against, "s", ours, baseline, Compare.TIMES_LESS, 20, note)]


async def _first(port: int, file: bytes) -> float:
    started = time.perf_counter()
    body = form(file, stream="true")
    async with exchange(port, "/v1/audio/transcriptions", body, bytes_per_s=MBIT_PER_S * 1e6 / 8) as answer:
        await next_segment(answer)
        return time.perf_counter() - started
