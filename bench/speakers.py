"""CPU of telling speakers apart.

Also the program that is measured: `python -m bench.speakers FILE` prints CPU seconds.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from time import process_time

from bench.children import run_child
from bench.figure import BenchFigure, SeriesComparison

TURN_S = 18
TARGET = 0.1


def measure(quick: bool) -> list[BenchFigure]:
    """A long MP3 of two voices in turns, each time in a fresh process."""
    import numpy as np  # noqa: PLC0415 -- as below

    from bench.recordings import encode_mp3, load_speech, load_tape  # noqa: PLC0415 -- not in the measured process

    minutes, repetitions = (3, 1) if quick else (60, 5)
    turns = np.concatenate([load_speech(), load_tape()[: TURN_S * 16_000]])
    with tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as file:
        file.write(encode_mp3(np.resize(turns, 60 * minutes * 16_000)))
        file.flush()
        ours = [_run_in_child(file.name) / (60 * minutes) for _ in range(repetitions)]
    note = (
        f"{minutes} min of MP3, two voices in turns of {TURN_S} s with short pauses: more speech than in most recordings. CPU "
        "time of a fresh process from the bytes to the turns, decoding and voice activity included, the model loaded beforehand."
    )
    what, against = "CPU of telling speakers apart", "a second of audio"
    return [BenchFigure("speakers", what, against, "s", ours, [], SeriesComparison.ABSOLUTE, TARGET, note)]


def _run_in_child(file: str) -> float:
    with run_child(["-m", "bench.speakers", file], pipes=True) as process:
        assert process.stdout
        answer = process.stdout.read()
        if not answer:
            raise RuntimeError("The speakers could not be told apart")
        return float(answer)


async def find_turns(data: bytes) -> float:
    """Find the speakers as the runner does; returns the CPU seconds."""
    from eardrum.engines.base import EngineOptions  # noqa: PLC0415
    from eardrum.runner.batcher import WindowBatcher  # noqa: PLC0415
    from eardrum.runner.speakers.diarization import SpeakerJob  # noqa: PLC0415
    from eardrum.runner.speakers.voice_encoder import GRAPH_PATH, VoiceEncoder  # noqa: PLC0415
    from eardrum.runner.vad import VadModel  # noqa: PLC0415
    from eardrum.speakers import SpeakerRequest  # noqa: PLC0415

    batcher = WindowBatcher(VoiceEncoder.load(GRAPH_PATH, EngineOptions()), batch=8)
    job = SpeakerJob(SpeakerRequest(), batcher=batcher, vad=VadModel(), max_seconds=24 * 3600)

    async def feed() -> None:
        await job.pipe.feed(data)
        job.pipe.finish()

    started = process_time()
    found, _ = await asyncio.gather(job.find_turns(), feed())
    taken = process_time() - started
    batcher.close()
    if len({turn.speaker for turn in found.turns}) != 2:
        raise RuntimeError("Two voices were not told apart")
    return taken


if __name__ == "__main__":
    print(asyncio.run(find_turns(Path(sys.argv[1]).read_bytes())))
