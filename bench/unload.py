"""What is left of a model that was unloaded, and what loading it again takes."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.children import ask, child
from bench.figure import Compare, Figure
from bench.recordings import clips
from bench.runners import Loaded
from bench.server import RunningServer, post_clip, running
from bench.usage import rss_mb
from bench.whispers import NAME, reciting, settings


@dataclass(frozen=True, slots=True)
class Life:
    """Memory in MB and open files before, while and after a model was there; seconds to the first answer, twice."""

    before: tuple[float, int]
    loaded: tuple[float, int]
    left: tuple[float, int]
    first_s: float = 0.0
    again_s: float = 0.0


def measure(quick: bool) -> list[Figure]:
    """Ours ends a process; the baseline deletes the object and collects the garbage."""
    size, repetitions = ("tiny", 1) if quick else ("small", 5)
    ours, baseline = [], []
    with reciting(size, tokens=20) as model:
        for _ in range(repetitions):
            ours.append(_ours(model))
            baseline.append(_baseline(model))
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
        Figure("unload", "memory left behind by a model", deleted, "MB", *left, Compare.TIMES_LESS, 15, note),
        Figure("unload-files", "open files left behind by it", "", "files", files, [], Compare.ABSOLUTE, 0),
        Figure("reload", "first answer of a model loaded again", "the first time", "s", *times, Compare.SHARE, 1.05, again),
    ]


def _ours(model: Loaded) -> Life:
    with running(warm=False, model=NAME, settings=settings(model)) as server:
        before = _held(server)
        first = _answered(server)
        loaded = _held(server)
        server.unload(NAME)
        left = _held(server)
        return Life(before, loaded, left, first, _answered(server))


def _answered(server: RunningServer) -> float:
    started = time.perf_counter()
    post_clip(server.port, NAME)
    return time.perf_counter() - started


def _held(server: RunningServer) -> tuple[float, int]:
    processes = [server.gateway, *server.gateway.children(recursive=True)]
    return sum(map(rss_mb, processes)), sum(map(_open_files, processes))


def _open_files(process: psutil.Process) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def _baseline(model: Loaded) -> Life:
    with (
        tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as clip,
        child(["-m", "bench.stock", "unload", str(model.source)], pipes=True) as process,
    ):
        clip.write(clips(1)[0])
        clip.flush()
        return Life(**{name: tuple(held) for name, held in ask(process, clip.name).items()})
