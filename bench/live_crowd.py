"""Live sessions beside each other, and beside a long file: when finals come later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from bench.client import transcribe, transcribe_with_runner, wait_for_quiet
from bench.engines.beside import compute_percentiles
from bench.figure import BenchFigure, SeriesComparison
from bench.live_client import run_talk
from bench.live_delays import WordDelays, compute_delays
from bench.live_recording import build_recording
from bench.recordings import create_tape_mp3, encode_mp3, load_speech
from bench.server import BenchServer, run_server
from eardrum.transcription import SAMPLE_RATE

SETTINGS = {"live": {"sessions": 1000}, "limits": {"requests": 1000}}
"""So that it is the machine that says when there are too many."""

LATER = 2.0
HOUR_S = 3600
HEAD_START_S = 3.0
"""The file is being decoded when the sessions begin."""

WINDOW_S = 9.5
"""Of fluent speech: just under the longest window of the embedded model."""


@dataclass(frozen=True, slots=True)
class CrowdSizes:
    """How much is measured: how many sessions at once, for how long; how many beside the file, for how long and how often."""

    levels: Sequence[int]
    alone_s: float
    level_s: float
    beside: int
    beside_s: float
    rounds: int


FULL = CrowdSizes((2, 4, 6, 8, 12, 16, 24, 32, 48, 64), alone_s=120, level_s=40, beside=10, beside_s=45, rounds=2)
QUICK = CrowdSizes((3,), alone_s=6, level_s=6, beside=2, beside_s=6, rounds=1)


def measure(quick: bool) -> list[BenchFigure]:
    """More and more sessions at once; then ten, without and with a file of an hour beside them."""
    sizes = QUICK if quick else FULL
    with run_server(settings=SETTINGS) as server:
        return [asyncio.run(_measure_growing(server, sizes)), *asyncio.run(_measure_beside_file(server, sizes))]


async def _measure_growing(server: BenchServer, sizes: CrowdSizes) -> BenchFigure:
    alone = _find_late_share(await _run_together(server, 1, sizes.alone_s))
    held, seen = 1, [f"1: {alone:.2f}"]
    for count in sizes.levels:
        late = _find_late_share(await _run_together(server, count, sizes.level_s))
        seen.append(f"{count}: {late:.2f}")
        if late > LATER * alone:
            break
        held = count
    note = (
        f"Sessions, and the seconds in which 95 % of their finals came: {'; '.join(seen)}. Their clients run on the same machine."
    )
    what = "sessions at once before the latest 5 % of the finals come twice as late"
    return BenchFigure("live-sessions", what, "", "", [held], [], SeriesComparison.ABSOLUTE, note=note)


async def _measure_beside_file(server: BenchServer, sizes: CrowdSizes) -> list[BenchFigure]:
    """By how many windows finals come later."""
    window_s = await _measure_window_s(server)
    file = create_tape_mp3(HOUR_S)
    without, beside, later = [], [], []
    for _ in range(sizes.rounds):
        alone = await _run_together(server, sizes.beside, sizes.beside_s)
        decoding = asyncio.create_task(transcribe(server.port, file))
        await asyncio.sleep(HEAD_START_S)
        disturbed = await _run_together(server, sizes.beside, sizes.beside_s, quiet=False)
        if decoding.done():
            raise RuntimeError("The file was done before the sessions")
        decoding.cancel()
        with suppress(asyncio.CancelledError):
            await decoding
        await wait_for_quiet(server.socket)
        for before, after in zip(alone, disturbed, strict=True):
            same = before.finals.keys() & after.finals.keys()
            without += [before.finals[last] for last in same]
            beside += [after.finals[last] for last in same]
            later += [after.finals[last] - before.finals[last] for last in same]
    note = (
        f"{sizes.beside} sessions of {sizes.beside_s:.0f} s, {sizes.rounds} times, the same audio without and with a file of an "
        f"hour; {len(later)} finals. A window takes the engine {window_s * 1000:.0f} ms alone. Seconds until finals came, median "
        f"and 95 %: without the file {_format_seconds(without)}, with it {_format_seconds(beside)}; "
        f"later by {_format_seconds(later)}."
    )
    return [
        BenchFigure("live-beside", "finals beside a file come later by", "median", "windows", [median(later) / window_s], [],
               SeriesComparison.ABSOLUTE, 2, note),
        BenchFigure("live-beside-p95", "the same, of the time in which 95 % come", "", "windows",
               [(compute_percentiles(beside)[1] - compute_percentiles(without)[1]) / window_s], [], SeriesComparison.ABSOLUTE, 2),
    ]  # fmt: skip


async def _run_together(server: BenchServer, count: int, seconds: float, *, quiet: bool = True) -> list[WordDelays]:
    """Sessions that begin one after another within a second, each somewhere else in the tape."""

    async def one(number: int) -> WordDelays:
        await asyncio.sleep(number / count)
        spoken = build_recording(seconds, skip=7 * number % 40)
        return compute_delays(spoken.words, (await run_talk(server.port, spoken.pcm)).messages)

    found = await asyncio.gather(*(one(number) for number in range(count)))
    if quiet:
        await wait_for_quiet(server.socket)
    return found


async def _measure_window_s(server: BenchServer) -> float:
    """Seconds of the engine for a full window, when it has nothing else to do."""
    clip = encode_mp3(load_speech()[: int(WINDOW_S * SAMPLE_RATE)])
    seen = []
    for _ in range(5):
        text = await transcribe_with_runner(server.socket, clip)
        summary = next(json.loads(line)["summary"] for line in text.splitlines() if b'"summary"' in line)
        seen.append(summary["decode_s"] / summary["windows"])
    return median(seen)


def _find_late_share(sessions: Sequence[WordDelays]) -> float:
    """The time in which 95 % of their finals came."""
    return compute_percentiles([delay for one in sessions for delay in one.finals.values()])[1]


def _format_seconds(seconds: Sequence[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in compute_percentiles(seconds))
