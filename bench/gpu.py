"""An NVIDIA GPU: batches, number formats, two copies, faster-whisper beside it, texts, and the memory after the model is gone.

`python -m bench gpu` takes at most ten minutes on one GPU and needs only wheels: `pip install -e '.[dev,bench,cuda]'`. The
weights are random and of true size. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import ctranslate2  # type: ignore[import-untyped]

from bench.batching import list_texts, measure_turns
from bench.children import ask_child, run_child
from bench.client import transcribe_with_runner
from bench.errors import BenchError
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_one_window
from bench.runners import LoadOrder, start_own_runner
from bench.server import post_clip, run_server
from bench.whispers import NAME, build_hearing, build_reciting, build_settings, load_utterances

FREED_S = 5.0
"""The driver may take so long to free the memory of a process that has ended."""

MEMORY_QUERY = ("--query-gpu=memory.used", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class GpuCase:
    """A Whisper of this size and number format on a device, and the number of requests that it gets at once."""

    size: str
    quantization: str
    device: str
    repetitions: int
    requests: int
    tokens: int

    @property
    def title(self) -> str:
        """The model."""
        return f"Whisper {self.size}, {self.quantization}"

    @property
    def crowd(self) -> str:
        """The requests, and the model."""
        return f"{self.requests} requests of 30 s at once, {self.title}"

    def build_model(self) -> AbstractContextManager[LoadOrder]:
        """Write the model to a temporary folder."""
        return build_reciting(self.size, tokens=self.tokens, quantization=self.quantization, device=self.device)


def measure(quick: bool, device: str = "cuda") -> list[BenchFigure]:
    """Measure every part for itself. One that fails costs only its own figures, and is named in the note of the first.

    Raises:
        BenchError: there is no NVIDIA GPU that CTranslate2 can use.
    """
    if device == "cuda" and not ctranslate2.get_cuda_device_count():
        raise BenchError("CTranslate2 sees no NVIDIA GPU here. `eardrum doctor` says what is missing.")
    quantization = "float16" if device == "cuda" else "float32"
    sizes = ("tiny", quantization, device, 1, 3, 20) if quick else ("medium", quantization, device, 5, 16, 100)
    case = GpuCase(*sizes)
    parts: Sequence[Callable[[GpuCase], list[BenchFigure]]] = (
        _measure_memory,
        _measure_batches,
        _measure_copies,
        _measure_formats,
        _measure_stock,
        _compare_texts,
    )
    figures: list[BenchFigure] = []
    failures: list[str] = []
    for part in parts:
        try:
            figures += part(case)
        except Exception as error:  # noqa: BLE001 -- the time on a borrowed GPU must not be lost with one part
            failures.append(f"{part.__name__.strip('_')}: {error!r}")
            print(failures[-1], file=sys.stderr, flush=True)
    if not figures:
        raise BenchError("; ".join(failures))
    if failures:
        figures[0] = replace(figures[0], note=f"{figures[0].note} Not measured: {'; '.join(failures)}.".strip())
    return figures


def _measure_memory(case: GpuCase) -> list[BenchFigure]:
    """GPU memory through the server: with the model, and after it was unloaded; the first answer, again after that."""
    left, held, first, again = [], [], [], []
    with case.build_model() as model:
        for _ in range(min(case.repetitions, 3)):
            before = read_gpu_memory_mb()
            with run_server(warm=False, model=NAME, settings=build_settings(model)) as server:
                first.append(_time_clip(server.port))
                held.append(read_gpu_memory_mb() - before)
                server.unload_model(NAME)
                left.append(_wait_until_freed(before) - before)
                again.append(_time_clip(server.port))
    what = case.title
    return [
        BenchFigure("gpu-unload", f"GPU memory left by an unloaded {what}", "", "MB", left, [], SeriesComparison.ABSOLUTE, 0),
        BenchFigure("gpu-memory", f"GPU memory of a loaded {what}", "", "MB", held, [], SeriesComparison.ABSOLUTE),
        BenchFigure("gpu-reload", "first answer, loaded again", "the first time", "s", again, first, SeriesComparison.SHARE),
    ]  # fmt: skip


def _measure_batches(case: GpuCase) -> list[BenchFigure]:
    """Many requests at once, with the batches that the runner chose and without."""
    with case.build_model() as model:
        batch, turns = measure_turns(model, 0, [create_one_window()] * case.requests, case.repetitions)
    times = [turn.wall_s for turn, _ in turns], [turn.wall_s for _, turn in turns]
    note = f"The runner chose batches of {batch}."
    return [BenchFigure("gpu-batches", case.crowd, "batch_size: 1", "s", *times, SeriesComparison.TIMES_LESS, 2.5, note)]


def _measure_copies(case: GpuCase) -> list[BenchFigure]:
    """Two copies of the model on one GPU."""
    with case.build_model() as one:
        two = LoadOrder(one.engine, one.source, one.options | {"workers": 2})
        times = _time_rounds((two, one), case)
    return [BenchFigure("gpu-copies", f"{case.crowd}, two copies", "one copy", "s", *times, SeriesComparison.TIMES_LESS)]


def _measure_formats(case: GpuCase) -> list[BenchFigure]:
    """Integers of 8 bits in place of floating point numbers."""
    with case.build_model() as plain:
        small = LoadOrder(plain.engine, plain.source, plain.options | {"compute_type": f"int8_{case.quantization}"})
        times = _time_rounds((small, plain), case)
    return [BenchFigure("gpu-int8", f"{case.crowd}, in int8", case.quantization, "s", *times, SeriesComparison.TIMES_LESS)]


def _measure_stock(case: GpuCase) -> list[BenchFigure]:
    """One window at a time beside faster-whisper."""
    with case.build_model() as model, ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3"))
        file.write(create_one_window())
        file.flush()
        children = [
            stack.enter_context(run_child(arguments, pipes=True))
            for arguments in (
                ["-m", "bench.engine_alone", *model.arguments],
                ["-m", "bench.stock", "windows", str(model.source), case.quantization, case.device],
            )
        ]
        times: list[list[float]] = [[], []]
        for repetition in range(-1, 2 * case.repetitions):
            for child, series in zip(children, times, strict=True):
                started = time.perf_counter()
                ask_child(child, f"{file.name}\ten")
                if repetition >= 0:
                    series.append(time.perf_counter() - started)
    what = f"a window of 30 s, decoded from MP3, {case.title}"
    return [BenchFigure("gpu-window", what, "faster-whisper", "s", *times, SeriesComparison.SHARE, 0.95)]


def _compare_texts(case: GpuCase) -> list[BenchFigure]:
    """Whether a GPU and batches change the text of a Whisper that hears."""
    audio = [load_utterances(language, 20, first=first) for first in range(4) for language in ("en", "de")]
    with (
        build_hearing(case.quantization, device=case.device) as model,
        start_own_runner(model, len(audio)) as (socket, _batch, _process),
    ):
        texts = list_texts(asyncio.run(_transcribe_all(socket, audio)))
    with build_hearing("float32") as model, start_own_runner(model, 1) as (socket, _batch, _process):
        expected = list_texts(asyncio.run(_transcribe_all(socket, audio)))
    differing = float(sum(a != b for a, b in zip(texts, expected, strict=True)))
    what = f"texts of {len(audio)} in two languages that differ from the CPU's in float32"
    return [BenchFigure("gpu-texts", what, "", "texts", [differing], [], SeriesComparison.ABSOLUTE, 0)]


def _time_rounds(models: Sequence[LoadOrder], case: GpuCase) -> list[list[float]]:
    """Seconds until all requests are answered, of each model in turns."""
    audio = [create_one_window()] * case.requests
    with ExitStack() as stack:
        sockets = [stack.enter_context(start_own_runner(model, 0))[0] for model in models]
        times: list[list[float]] = [[] for _ in models]
        for repetition in range(-1, case.repetitions):
            for socket, series in zip(sockets, times, strict=True):
                started = time.perf_counter()
                asyncio.run(_transcribe_all(socket, audio))
                if repetition >= 0:
                    series.append(time.perf_counter() - started)
    return times


async def _transcribe_all(socket: Path, audio: Sequence[bytes]) -> list[bytes]:
    return await asyncio.gather(*(transcribe_with_runner(socket, one) for one in audio))


def _time_clip(port: int) -> float:
    started = time.perf_counter()
    post_clip(port, NAME)
    return time.perf_counter() - started


def _wait_until_freed(before: float) -> float:
    """Wait until the GPU holds no more than before, for a while; return what it holds in MB."""
    end = time.monotonic() + FREED_S
    while (held := read_gpu_memory_mb()) > before and time.monotonic() < end:
        time.sleep(0.2)
    return held


def read_gpu_memory_mb() -> float:
    """The memory in use of all GPUs in MB (2^20 bytes), from nvidia-smi; 0 without it."""
    if not (program := shutil.which("nvidia-smi")):
        return 0.0
    answer = subprocess.run([program, *MEMORY_QUERY], capture_output=True, text=True, timeout=30, check=True)
    return sum(float(line) for line in answer.stdout.split())
