"""How long a 5 s clip waits while four long files are being transcribed by a Whisper."""

from __future__ import annotations

import asyncio
from functools import partial

from bench.client import transcribe
from bench.clips import FILES, count_windows
from bench.figure import BenchFigure, SeriesComparison
from bench.lock_per_file import run_lock_per_file
from bench.mixed_load import ATTEMPTS, LoadedSystem, compare_systems, describe_disturbance
from bench.recordings import create_clips, create_tape_mp3
from bench.server import run_server
from bench.usage import measure_cpu
from bench.whispers import NAME, build_reciting, build_settings


def measure(quick: bool) -> list[BenchFigure]:
    """Clips beside files: our server, and faster-whisper behind a lock per file."""
    minutes, count, repetitions, tokens = (1, 4, 1, 20) if quick else (10, 16, 3, 100)
    file = create_tape_mp3(60 * minutes)
    with (
        build_reciting("tiny", tokens=tokens) as model,
        run_server(model=NAME, settings=build_settings(model)) as server,
        run_lock_per_file(model) as (port, process),
    ):
        systems = [
            LoadedSystem(
                "ours",
                partial(transcribe, server.port, model=NAME, language="en"),
                lambda: server.cpu,
                partial(count_windows, server.socket),
            ),
            LoadedSystem("lock", partial(transcribe, port, language="en"), partial(measure_cpu, process)),
        ]
        runs = asyncio.run(
            compare_systems(systems, file, FILES, create_clips(count), repetitions, attempts=1 if quick else ATTEMPTS)
        )
    decoded = ", ".join(str(run.windows) for run in runs["ours"])
    note = (
        f"Whisper tiny of random weights, int8, beam 5, {tokens} tokens a window. {FILES} files of {minutes} min, {count} clips; "
        f"ours decoded {decoded} windows of speech, faster-whisper one for each half minute, speech or not. "
        f"{describe_disturbance(runs)}"
    )
    ours, lock = runs["ours"], runs["lock"]
    against = "faster-whisper, one lock per file"

    def figure(name: str, what: str, value: str, compare: SeriesComparison, target: float, note: str = "") -> BenchFigure:
        series = [[getattr(run, value) for run in those] for those in (ours, lock)]
        return BenchFigure(name, what, against, "s", *series, compare, target, note)

    return [
        figure("whisper-clips", "median 5 s clip beside long files", "clip_s", SeriesComparison.TIMES_LESS, 20, note),
        figure("whisper-clips-total", "until all long files are done", "files_s", SeriesComparison.SHARE, 1.03),
        figure("whisper-clips-cpu", "CPU for all of it", "cpu_s", SeriesComparison.SHARE, 1.03),
    ]
