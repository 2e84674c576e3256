"""CPU of half a minute of speech in Whisper: our engine, and faster-whisper as it comes."""

from __future__ import annotations

import tempfile
from subprocess import Popen

from bench.children import ask_child, run_child
from bench.figure import BenchFigure, SeriesComparison
from bench.recordings import create_one_window
from bench.runners import LoadOrder
from bench.whispers import build_reciting


def measure(quick: bool) -> list[BenchFigure]:
    """Turn by turn in two processes, each with the model loaded; a middling and a larger model."""
    if quick:
        return [_measure_figure("tiny", 3)]
    return [_measure_figure("base", 12), _measure_figure("base", 12, language=""), _measure_figure("small", 7)]


def _measure_figure(size: str, repetitions: int, language: str = "en") -> BenchFigure:
    with build_reciting(size) as model, tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".mp3") as file:
        file.write(create_one_window())
        file.flush()
        ours, stock = _run_turns(model, f"{file.name}\t{language}", repetitions)
    note = (
        f"Random weights, int8, beam 5, temperature 0, 100 tokens; half a minute of speech, decoded beforehand, {repetitions} "
        "times in turns, one window each. Ours is the engine in a process tuned like a runner's, without server, VAD or queue; "
        "what those cost, `overhead` says. With real weights the number of tokens varies, and with it the share of the encoder, "
        "where most of the difference is."
    )
    if not language:
        note += " No language is named, as by most clients: here the encoder's work is used for both, there it is done twice."
    named = "" if language else ", language to be found out"
    what, against = f"CPU per window of 30 s, Whisper {size}{named}", "faster_whisper.WhisperModel.transcribe, usual allocator"
    milliseconds = [[1000 * seconds for seconds in series] for series in (ours, stock)]
    return BenchFigure(
        f"whisper-window-{size}{'-detect' * (not language)}",
        what,
        against,
        "ms",
        *milliseconds,
        SeriesComparison.TIMES_LESS,
        1.12,
        note,
    )


def _run_turns(model: LoadOrder, line: str, repetitions: int) -> tuple[list[float], list[float]]:
    with (
        run_child(["-m", "bench.engine_alone", *model.arguments], pipes=True) as ours,
        run_child(["-m", "bench.stock", "windows", str(model.source), model.options["compute_type"]], pipes=True) as stock,
    ):
        mine, theirs = (ask_child(process, line)["text"] for process in (ours, stock))
        if mine != theirs:
            raise RuntimeError(f"Not the same text: {mine!r} and {theirs!r}")
        turns: dict[Popen[bytes], list[float]] = {ours: [], stock: []}
        for repetition in range(repetitions):
            for process in (ours, stock) if repetition % 2 else (stock, ours):
                turns[process].append(ask_child(process, line)["cpu_s"])
    return turns[ours], turns[stock]
