"""How soon the first words of a long upload come back."""

from __future__ import annotations

import asyncio
import time

from bench.children import run_child
from bench.client import build_form, open_exchange, read_next_segment, wait_for_quiet
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_tape_mp3
from bench.server import find_free_port, run_server, wait_until_healthy

MBIT_PER_S = 100


def measure(quick: bool) -> list[BenchFigure]:
    """Time from the first byte sent to the first segment received."""
    minutes, repetitions = (6, 1) if quick else (26, 5)
    file = create_tape_mp3(60 * minutes)
    port = find_free_port()
    with run_server() as server, run_child(["-m", "bench.upload_first", str(port)]) as usual:
        wait_until_healthy(port, usual)
        ours, baseline = [], []
        for _ in range(repetitions):
            ours.append(asyncio.run(_time_first(server.port, file)))
            asyncio.run(wait_for_quiet(server.socket))
            baseline.append(asyncio.run(_time_first(port, file)))
    note = (
        f"{len(file) / 1e6:.0f} MB of MP3 ({minutes} min) at {MBIT_PER_S} Mbit/s. The baseline takes the upload into a file, "
        "decodes all of it, runs the VAD over all of it, then transcribes the first window with the same engine and sends it."
    )
    against = "upload, decode, VAD, then the first window"
    return [
        BenchFigure(
            "first-segment", "first segment of a long upload", against, "s", ours, baseline, SeriesComparison.TIMES_LESS, 20, note
        )
    ]


async def _time_first(port: int, file: bytes) -> float:
    started = time.perf_counter()
    body = build_form(file, stream="true")
    async with open_exchange(port, "/v1/audio/transcriptions", body, bytes_per_s=MBIT_PER_S * 1e6 / 8) as answer:
        await read_next_segment(answer)
        return time.perf_counter() - started
