"""Eight requests at once, with batches across requests as the runner forms them, and without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import ctranslate2  # type: ignore[import-untyped]
import psutil

from bench.client import transcribe_with_runner
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_one_window
from bench.runners import WEIGHTS, LoadOrder, start_own_runner
from bench.usage import measure_busy, measure_cpu
from bench.whispers import build_hearing, build_reciting, load_utterances

REQUESTS = 8
AGAINST = "the same runner with batch_size: 1"


@dataclass(frozen=True, slots=True)
class BatchCase:
    """A model to batch with, and how much faster that is to be at least."""

    name: str
    title: str
    target: float
    model: AbstractContextManager[LoadOrder]


@dataclass(frozen=True, slots=True)
class BatchTurn:
    """The requests once: until all are answered, CPU of the runner and of other work meanwhile, the texts."""

    wall_s: float
    cpu_s: float
    foreign_s: float
    texts: Sequence[str]


def measure(quick: bool) -> list[BenchFigure]:
    """Whisper in int8 and float32, Moonshine, and a GPU where there is one."""
    size, tokens = ("tiny", 20) if quick else ("base", 100)
    cases = [
        BatchCase("int8", f"Whisper {size}, int8", 0.97, build_reciting(size, tokens=tokens)),
        BatchCase("float32", "Whisper tiny, float32", 1.4, build_reciting("tiny", tokens=tokens, quantization="float32")),
        BatchCase("moonshine", "Moonshine tiny", 1.15, nullcontext(LoadOrder("moonshine", WEIGHTS))),
    ]
    if ctranslate2.get_cuda_device_count():
        model = build_reciting("small", quantization="float16", device="cuda")
        cases.append(BatchCase("gpu", "Whisper small, float16, on the GPU", 2.5, model))
    figures = list(chain.from_iterable(_measure_case(case, 1 if quick else 6) for case in cases))
    if len(cases) < 4:
        sentence = "CTranslate2 sees no NVIDIA GPU here, so batching on one was not measured."
        figures[0] = replace(figures[0], note=f"{figures[0].note} {sentence}")
    return [*figures, _compare_texts(quick)]


def _measure_case(case: BatchCase, repetitions: int) -> list[BenchFigure]:
    audio = [create_one_window()] * REQUESTS
    with case.model as model:
        batch, turns = measure_turns(model, 0, audio, repetitions)
    kept = sorted(turns, key=lambda pair: pair[0].foreign_s + pair[1].foreign_s)[: (repetitions + 1) // 2]
    on, off = zip(*kept, strict=True)
    differing = sum(a != b for x, y in turns for a, b in zip(x.texts, y.texts, strict=True))
    note = (
        f"{REQUESTS} requests of 30 s at once. The runner began with batches of {batch}. Of {repetitions} rounds the half with "
        f"least other work on the machine counts. Of the {len(turns) * REQUESTS} texts {differing} differ between the two."
    )
    name, what = f"batching-{case.name}", f"{REQUESTS} requests at once, {case.title}"
    times = [turn.wall_s for turn in on], [turn.wall_s for turn in off]
    cpu = [turn.cpu_s for turn in on], [turn.cpu_s for turn in off]
    return [
        BenchFigure(name, what, AGAINST, "s", *times, SeriesComparison.TIMES_LESS, case.target, note),
        BenchFigure(
            f"{name}-cpu", f"the same, CPU of the runner ({case.title})", AGAINST, "s", *cpu, SeriesComparison.TIMES_LESS
        ),
    ]


def _compare_texts(quick: bool) -> BenchFigure:
    """Whether batches change what a Whisper that really hears writes: eight different recordings in two languages."""
    audio = [load_utterances(language, 20, first=first) for first in range(REQUESTS // 2) for language in ("en", "de")]
    with build_hearing("float32") as model:
        _, turns = measure_turns(model, REQUESTS, audio, 1 if quick else 3)
    differing = [float(sum(a != b for a, b in zip(on.texts, off.texts, strict=True))) for on, off in turns]
    what = f"requests of {REQUESTS} whose text differs, float32, batches of {REQUESTS}"
    note = "The tiny Whisper that hears: eight recordings in English and German, of which no two are alike."
    return BenchFigure("batching-text", what, AGAINST, "requests", differing, [], SeriesComparison.ABSOLUTE, 0, note)


def measure_turns(
    model: LoadOrder, batch: int, audio: Sequence[bytes], repetitions: int
) -> tuple[int, list[tuple[BatchTurn, BatchTurn]]]:
    """The batch size at the start, and the requests with it and one by one; which comes first changes."""
    with ExitStack() as stack:
        (on, chosen, on_process), (off, _, off_process) = (
            stack.enter_context(start_own_runner(model, size)) for size in (batch, 1)
        )
        for socket in (on, off):
            asyncio.run(transcribe_with_runner(socket, audio[0]))
        turns = []
        for repetition in range(repetitions):
            order = [(on, on_process), (off, off_process)]
            if repetition % 2:
                order.reverse()
            pair = [asyncio.run(_run_turn(socket, process, audio)) for socket, process in order]
            turns.append((pair[1], pair[0]) if repetition % 2 else (pair[0], pair[1]))
    return chosen, turns


async def _run_turn(socket: Path, process: psutil.Process, audio: Sequence[bytes]) -> BatchTurn:
    clock = asyncio.get_running_loop().time
    started, cpu, foreign = clock(), measure_cpu(process), measure_busy()
    answers = await asyncio.gather(*(transcribe_with_runner(socket, one) for one in audio))
    wall, used = clock() - started, measure_cpu(process) - cpu
    return BatchTurn(wall, used, max(measure_busy() - foreign - used, 0.0), list_texts(answers))


def list_texts(answers: Sequence[bytes]) -> list[str]:
    """The texts of a runner's answers."""
    return [_read_text(answer) for answer in answers]


def _read_text(answer: bytes) -> str:
    lines = [json.loads(line) for line in answer.splitlines() if line.startswith(b"{")]
    return " ".join(line["segment"]["text"] for line in lines if "segment" in line)
