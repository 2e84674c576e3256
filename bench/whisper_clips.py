"""How long a 5 s clip waits while four long files are being transcribed by a Whisper."""

from __future__ import annotations

import asyncio
from functools import partial

from bench.client import transcribe
from bench.clips import FILES, windows
from bench.figure import Compare, Figure
from bench.lock_per_file import lock_per_file
from bench.mixed_load import ATTEMPTS, System, compare, disturbance
from bench.recordings import clips, tape_mp3
from bench.server import running
from bench.usage import cpu_of
from bench.whispers import NAME, reciting, settings


def measure(quick: bool) -> list[Figure]:
    """Clips beside files: our server, and faster-whisper behind a lock per file."""
    minutes, count, repetitions, tokens = (1, 4, 1, 20) if quick else (10, 16, 3, 100)
    file = tape_mp3(60 * minutes)
    with (
        reciting("tiny", tokens=tokens) as model,
        running(model=NAME, settings=settings(model)) as server,
        lock_per_file(model) as (port, process),
    ):
        systems = [
            System(
                "ours",
                partial(transcribe, server.port, model=NAME, language="en"),
                lambda: server.cpu,
                partial(windows, server.socket),
            ),
            System("lock", partial(transcribe, port, language="en"), partial(cpu_of, process)),
        ]
        runs = asyncio.run(compare(systems, file, FILES, clips(count), repetitions, attempts=1 if quick else ATTEMPTS))
    decoded = ", ".join(str(run.windows) for run in runs["ours"])
    note = (
        f"Whisper tiny of random weights, int8, beam 5, {tokens} tokens a window. {FILES} files of {minutes} min, {count} clips; "
        f"ours decoded {decoded} windows of speech, faster-whisper one for each half minute, speech or not. {disturbance(runs)}"
    )
    ours, lock = runs["ours"], runs["lock"]
    against = "faster-whisper, one lock per file"

    def figure(name: str, what: str, value: str, compare: Compare, target: float, note: str = "") -> Figure:
        series = [[getattr(run, value) for run in those] for those in (ours, lock)]
        return Figure(name, what, against, "s", *series, compare, target, note)

    return [
        figure("whisper-clips", "median 5 s clip beside long files", "clip_s", Compare.TIMES_LESS, 20, note),
        figure("whisper-clips-total", "until all long files are done", "files_s", Compare.SHARE, 1.03),
        figure("whisper-clips-cpu", "CPU for all of it", "cpu_s", Compare.SHARE, 1.03),
    ]
