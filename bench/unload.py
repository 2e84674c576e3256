"""What is left of a model that was unloaded, and what loading it again takes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.children import ask_child, run_child
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_clips
from bench.runners import LoadOrder
from bench.server import BenchServer, post_clip, run_server
from bench.usage import measure_rss_mb
from bench.whispers import NAME, build_reciting, build_settings


@dataclass(frozen=True, slots=True)
class ModelLife:
    """Memory in MB and open files before, while and after a model was there; seconds to the first answer, twice."""

    before: tuple[float, int]
    loaded: tuple[float, int]
    left: tuple[float, int]
    first_s: float = 0.0
    again_s: float = 0.0


def measure(quick: bool) -> list[BenchFigure]:
    """Ours ends a process; the baseline deletes the object and collects the garbage."""
    size, repetitions = ("tiny", 1) if quick else ("small", 5)
    ours, baseline = [], []
    with build_reciting(size, tokens=20) as model:
        for _ in range(repetitions):
            ours.append(_measure_ours(model))
            baseline.append(_measure_baseline(model))
    note = (
        f"Whisper {size}, int8. RSS of all processes after the model is gone less RSS before it was loaded; loaded, that was "
        f"{ours[-1].loaded[0]:.0f} MB and {baseline[-1].loaded[0]:.0f} MB. Before: the gateway with no model, and a process that "
        "has imported faster-whisper. The model is unloaded with `DELETE /api/ps/NAME`."
    )
    again = "From the request to the answer for a clip of 5 s. The first time the files may have to be read from disk."
    deleted = "del model; gc.collect()"
    left = [[life.left[0] - life.before[0] for life in lives] for lives in (ours, baseline)]
    files = [float(life.left[1] - life.before[1]) for life in ours]
    times = [life.again_s for life in ours], [life.first_s for life in ours]
    return [
        BenchFigure("unload", "memory left behind by a model", deleted, "MB", *left, SeriesComparison.TIMES_LESS, 15, note),
        BenchFigure("unload-files", "open files left behind by it", "", "files", files, [], SeriesComparison.ABSOLUTE, 0),
        BenchFigure(
            "reload", "first answer of a model loaded again", "the first time", "s", *times, SeriesComparison.SHARE, 1.05, again
        ),
    ]


def _measure_ours(model: LoadOrder) -> ModelLife:
    with run_server(warm=False, model=NAME, settings=build_settings(model)) as server:
        before = _measure_held(server)
        first = _wait_for_answer(server)
        loaded = _measure_held(server)
        server.unload_model(NAME)
        left = _measure_held(server)
        return ModelLife(before, loaded, left, first, _wait_for_answer(server))


def _wait_for_answer(server: BenchServer) -> float:
    started = time.perf_counter()
    post_clip(server.port, NAME)
    return time.perf_counter() - started


def _measure_held(server: BenchServer) -> tuple[float, int]:
    processes = [server.gateway, *server.gateway.children(recursive=True)]
    return sum(map(measure_rss_mb, processes)), sum(map(_count_open_files, processes))


def _count_open_files(process: psutil.Process) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def _measure_baseline(model: LoadOrder) -> ModelLife:
    with (
        tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as clip,
        run_child(["-m", "bench.stock", "unload", str(model.source)], pipes=True) as process,
    ):
        clip.write(create_clips(1)[0])
        clip.flush()
        return ModelLife(**{name: tuple(held) for name, held in ask_child(process, clip.name).items()})
