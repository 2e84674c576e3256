"""Live sessions beside each other, and beside a long file: when finals come later."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median

from bench.client import quiet_windows, transcribe, transcribe_with_runner
from bench.engines.beside import percentiles
from bench.figure import Compare, Figure
from bench.live_client import talk
from bench.live_delays import Delays, delays
from bench.live_recording import recording
from bench.recordings import mp3, speech, tape_mp3
from bench.server import RunningServer, running
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
class Sizes:
    """How much is measured: how many sessions at once, for how long; how many beside the file, for how long and how often."""

    levels: Sequence[int]
    alone_s: float
    level_s: float
    beside: int
    beside_s: float
    rounds: int


FULL = Sizes((2, 4, 6, 8, 12, 16, 24, 32, 48, 64), alone_s=120, level_s=40, beside=10, beside_s=45, rounds=2)
QUICK = Sizes((3,), alone_s=6, level_s=6, beside=2, beside_s=6, rounds=1)


def measure(quick: bool) -> list[Figure]:
    """More and more sessions at once; then ten, without and with a file of an hour beside them."""
    sizes = QUICK if quick else FULL
    with running(settings=SETTINGS) as server:
        return [asyncio.run(_more_and_more(server, sizes)), *asyncio.run(_beside_a_file(server, sizes))]


async def _more_and_more(server: RunningServer, sizes: Sizes) -> Figure:
    alone = _late(await _together(server, 1, sizes.alone_s))
    held, seen = 1, [f"1: {alone:.2f}"]
    for count in sizes.levels:
        late = _late(await _together(server, count, sizes.level_s))
        seen.append(f"{count}: {late:.2f}")
        if late > LATER * alone:
            break
        held = count
    note = (
        f"Sessions, and the seconds in which 95 % of their finals came: {'; '.join(seen)}. Their clients run on the same machine."
    )
    what = "sessions at once before the latest 5 % of the finals come twice as late"
    return Figure("live-sessions", what, "", "", [held], [], Compare.ABSOLUTE, note=note)


async def _beside_a_file(server: RunningServer, sizes: Sizes) -> list[Figure]:
    """By how many windows finals come later."""
    window_s = await _window_s(server)
    file = tape_mp3(HOUR_S)
    without, beside, later = [], [], []
    for _ in range(sizes.rounds):
        alone = await _together(server, sizes.beside, sizes.beside_s)
        decoding = asyncio.create_task(transcribe(server.port, file))
        await asyncio.sleep(HEAD_START_S)
        disturbed = await _together(server, sizes.beside, sizes.beside_s, quiet=False)
        if decoding.done():
            raise RuntimeError("The file was done before the sessions")
        decoding.cancel()
        with suppress(asyncio.CancelledError):
            await decoding
        await quiet_windows(server.socket)
        for before, after in zip(alone, disturbed, strict=True):
            same = before.finals.keys() & after.finals.keys()
            without += [before.finals[last] for last in same]
            beside += [after.finals[last] for last in same]
            later += [after.finals[last] - before.finals[last] for last in same]
    note = (
        f"{sizes.beside} sessions of {sizes.beside_s:.0f} s, {sizes.rounds} times, the same audio without and with a file of an "
        f"hour; {len(later)} finals. A window takes the engine {window_s * 1000:.0f} ms alone. Seconds until finals came, median "
        f"and 95 %: without the file {_shown(without)}, with it {_shown(beside)}; later by {_shown(later)}."
    )
    return [
        Figure("live-beside", "finals beside a file come later by", "median", "windows", [median(later) / window_s], [],
               Compare.ABSOLUTE, 2, note),
        Figure("live-beside-p95", "the same, of the time in which 95 % come", "", "windows",
               [(percentiles(beside)[1] - percentiles(without)[1]) / window_s], [], Compare.ABSOLUTE, 2),
    ]  # fmt: skip


async def _together(server: RunningServer, count: int, seconds: float, *, quiet: bool = True) -> list[Delays]:
    """Sessions that begin one after another within a second, each somewhere else in the tape."""

    async def one(number: int) -> Delays:
        await asyncio.sleep(number / count)
        spoken = recording(seconds, skip=7 * number % 40)
        return delays(spoken.words, (await talk(server.port, spoken.pcm)).messages)

    found = await asyncio.gather(*(one(number) for number in range(count)))
    if quiet:
        await quiet_windows(server.socket)
    return found


async def _window_s(server: RunningServer) -> float:
    """Seconds of the engine for a full window, when it has nothing else to do."""
    clip = mp3(speech()[: int(WINDOW_S * SAMPLE_RATE)])
    seen = []
    for _ in range(5):
        text = await transcribe_with_runner(server.socket, clip)
        summary = next(json.loads(line)["summary"] for line in text.splitlines() if b'"summary"' in line)
        seen.append(summary["decode_s"] / summary["windows"])
    return median(seen)


def _late(sessions: Sequence[Delays]) -> float:
    """The time in which 95 % of their finals came."""
    return percentiles([delay for one in sessions for delay in one.finals.values()])[1]


def _shown(seconds: Sequence[float]) -> str:
    return " and ".join(f"{value:.2f}" for value in percentiles(seconds))
