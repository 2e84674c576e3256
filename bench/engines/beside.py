"""Short clips of a folder, sent to a model while it has long files to do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import quantiles

from bench.client import transcribe
from bench.engines.folder import Recording
from bench.mixed_load import SPAN, Load, System, arrivals, run
from bench.recordings import decoded, joined, mp3
from bench.server import RunningServer

FILES = 2
"""Long files at a time in the mixed load."""

CLIPS, CLIP_S = 16, 15.0
"""So many of the shortest recordings are the clips beside them, if they are no longer than this; else 5 s of each."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Seconds until a clip was answered, and audio seconds per second of the files meanwhile."""

    clip_p50_s: float
    clip_p95_s: float
    files_speed: float


async def beside_files(server: RunningServer, name: str, recordings: Sequence[Recording], long_s: float) -> Beside:
    """Time the files alone, then send clips while they run."""
    spoken = {recording.language for recording in recordings}
    language = {"language": spoken.pop()} if len(spoken) == 1 and "" not in spoken else {}
    system = System(name, partial(transcribe, server.port, model=name, **language), lambda: server.cpu)
    long = joined([recording.path for recording in recordings], long_s)
    clock = asyncio.get_running_loop().time
    started = clock()
    await system.transcribe(long)
    span = SPAN * FILES * (clock() - started)
    clips = _clips(recordings)
    result = await run(system, Load(long, FILES, clips, arrivals(len(clips), span, random.Random(5))))
    return Beside(*percentiles(result.clips_s), FILES * long_s / result.files_s)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The median, and what 95 % of the values stay below, between the two nearest of them."""
    if len(values) == 1:
        return values[0], values[0]
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]


def _clips(recordings: Sequence[Recording]) -> list[bytes]:
    shortest = sorted(recordings, key=lambda recording: recording.seconds)[:CLIPS]
    clips = [recording.path.read_bytes() for recording in shortest if recording.seconds <= CLIP_S]
    clips = clips or [mp3(decoded(recording.path)[: 5 * 16_000]) for recording in shortest]
    return [clips[number % len(clips)] for number in range(CLIPS)]
