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
from bench.mixed_load import SPAN, LoadedSystem, MixedLoad, draw_arrivals, run_load
from bench.recordings import decode_file, encode_mp3, join_files
from bench.server import BenchServer

FILES = 2
"""Long files at a time in the mixed load."""

CLIPS, CLIP_S = 16, 15.0
"""So many of the shortest recordings are the clips beside them, if they are no longer than this; else 5 s of each."""


@dataclass(frozen=True, slots=True)
class BesideTimes:
    """Seconds until a clip was answered, and audio seconds per second of the files meanwhile."""

    clip_p50_s: float
    clip_p95_s: float
    files_speed: float


async def measure_beside_files(server: BenchServer, name: str, recordings: Sequence[Recording], long_s: float) -> BesideTimes:
    """Time the files alone, then send clips while they run."""
    spoken = {recording.language for recording in recordings}
    language = {"language": spoken.pop()} if len(spoken) == 1 and "" not in spoken else {}
    system = LoadedSystem(name, partial(transcribe, server.port, model=name, **language), lambda: server.cpu)
    long = join_files([recording.path for recording in recordings], long_s)
    clock = asyncio.get_running_loop().time
    started = clock()
    await system.transcribe(long)
    span = SPAN * FILES * (clock() - started)
    clips = _create_clips(recordings)
    result = await run_load(system, MixedLoad(long, FILES, clips, draw_arrivals(len(clips), span, random.Random(5))))
    return BesideTimes(*compute_percentiles(result.clips_s), FILES * long_s / result.files_s)


def compute_percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The median, and what 95 % of the values stay below, between the two nearest of them."""
    if len(values) == 1:
        return values[0], values[0]
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]


def _create_clips(recordings: Sequence[Recording]) -> list[bytes]:
    shortest = sorted(recordings, key=lambda recording: recording.seconds)[:CLIPS]
    clips = [recording.path.read_bytes() for recording in shortest if recording.seconds <= CLIP_S]
    clips = clips or [encode_mp3(decode_file(recording.path)[: 5 * 16_000]) for recording in shortest]
    return [clips[number % len(clips)] for number in range(CLIPS)]
