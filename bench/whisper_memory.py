"""How much memory an hour of audio takes on top of a loaded Whisper."""

from __future__ import annotations

import asyncio
import tempfile

from bench.children import ask_child, run_child
from bench.client import transcribe
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_clips, create_tape_mp3
from bench.runners import LoadOrder
from bench.server import run_server
from bench.whispers import NAME, build_hearing, build_settings


def measure(quick: bool) -> list[BenchFigure]:
    """Growth of the peak, in fresh processes."""
    minutes, repetitions = (5, 1) if quick else (60, 3)
    file = create_tape_mp3(60 * minutes)
    ours, stock = [], []
    with build_hearing() as model:
        for _ in range(repetitions):
            ours.append(_measure_ours(model, file))
            stock.append(_measure_stock(model, file))
    grown = [[peak - loaded for loaded, peak in series] for series in (ours, stock)]
    peaks = [[peak for _, peak in series] for series in (ours, stock)]
    note = (
        f"{minutes} min of 128 kbit/s stereo MP3 ({len(file) / 1e6:.0f} MB). VmHWM after the file less VmHWM after a clip of "
        f"5 s, in fresh processes; ours is gateway and runner together. After the clip: {ours[-1][0]:.0f} MB against "
        f"{stock[-1][0]:.0f} MB. The tiny Whisper that hears, so that an hour passes quickly: what grows is audio, not weights."
    )
    what, against = f"growth of the peak with {minutes} min of audio, Whisper", "faster-whisper transcribe(vad_filter=True)"
    return [
        BenchFigure("whisper-memory", what, against, "MB", *grown, SeriesComparison.TIMES_LESS, 20, note),
        BenchFigure("whisper-memory-peak", "the peak itself", against, "MB", *peaks, SeriesComparison.TIMES_LESS),
    ]


def _measure_ours(model: LoadOrder, file: bytes) -> tuple[float, float]:
    with run_server(model=NAME, settings=build_settings(model)) as server:
        loaded = sum(server.peak_mb)
        asyncio.run(transcribe(server.port, file, model=NAME, language="en"))
        return loaded, sum(server.peak_mb)


def _measure_stock(model: LoadOrder, file: bytes) -> tuple[float, float]:
    with (
        tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as long,
        tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as short,
        run_child(["-m", "bench.stock", "file", str(model.source), model.options["compute_type"]], pipes=True) as process,
    ):
        for handle, data in ((long, file), (short, create_clips(1)[0])):
            handle.write(data)
            handle.flush()
        return ask_child(process, short.name)["peak_mb"], ask_child(process, long.name)["peak_mb"]
