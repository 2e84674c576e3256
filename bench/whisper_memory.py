"""How much memory an hour of audio takes on top of a loaded Whisper."""

from __future__ import annotations

import asyncio
import tempfile

from bench.children import ask, child
from bench.client import transcribe
from bench.figure import Compare, Figure
from bench.recordings import clips, tape_mp3
from bench.runners import Loaded
from bench.server import running
from bench.whispers import NAME, hearing_whisper, settings


def measure(quick: bool) -> list[Figure]:
    """Growth of the peak, in fresh processes."""
    minutes, repetitions = (5, 1) if quick else (60, 3)
    file = tape_mp3(60 * minutes)
    ours, stock = [], []
    with hearing_whisper() as model:
        for _ in range(repetitions):
            ours.append(_ours(model, file))
            stock.append(_stock(model, file))
    grown = [[peak - loaded for loaded, peak in series] for series in (ours, stock)]
    peaks = [[peak for _, peak in series] for series in (ours, stock)]
    note = (
        f"{minutes} min of 128 kbit/s stereo MP3 ({len(file) / 1e6:.0f} MB). VmHWM after the file less VmHWM after a clip of "
        f"5 s, in fresh processes; ours is gateway and runner together. After the clip: {ours[-1][0]:.0f} MB against "
        f"{stock[-1][0]:.0f} MB. The tiny Whisper that hears, so that an hour passes quickly: what grows is audio, not weights."
    )
    what, against = f"growth of the peak with {minutes} min of audio, Whisper", "faster-whisper transcribe(vad_filter=True)"
    return [
        Figure("whisper-memory", what, against, "MB", *grown, Compare.TIMES_LESS, 20, note),
        Figure("whisper-memory-peak", "the peak itself", against, "MB", *peaks, Compare.TIMES_LESS),
    ]


def _ours(model: Loaded, file: bytes) -> tuple[float, float]:
    with running(model=NAME, settings=settings(model)) as server:
        loaded = sum(server.peak_mb)
        asyncio.run(transcribe(server.port, file, model=NAME, language="en"))
        return loaded, sum(server.peak_mb)


def _stock(model: Loaded, file: bytes) -> tuple[float, float]:
    with (
        tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as long,
        tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as short,
        child(["-m", "bench.stock", "file", str(model.source), model.options["compute_type"]], pipes=True) as process,
    ):
        for handle, data in ((long, file), (short, clips(1)[0])):
            handle.write(data)
            handle.flush()
        return ask(process, short.name)["peak_mb"], ask(process, long.name)["peak_mb"]
