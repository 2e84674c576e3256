"""One long live session: how late its text is, what it costs, how good it is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from bench.client import transcribe
from bench.engines.beside import compute_percentiles
from bench.engines.errors_in_text import compute_word_error_rate
from bench.engines.folder import Recording as Reference
from bench.figure import BenchFigure, SeriesComparison
from bench.live_client import PIECE_S, TalkResult, run_talk
from bench.live_delays import compute_delays
from bench.live_recording import AnnouncementRecording, FramedRecording, build_framed
from bench.server import BenchServer, run_server
from bench.usage import measure_busy


@dataclass(frozen=True, slots=True)
class LiveCosts:
    """CPU seconds per second of audio in the first and the last minute, and those that other work took in all."""

    first: float
    last: float
    foreign: float


def measure(quick: bool) -> list[BenchFigure]:
    """A recording pushed at the speed of speech, and then the same one as a file."""
    frames = build_framed(36, 8) if quick else build_framed(1200, 60)
    spoken = frames.recording
    with run_server() as server:
        session, costs = asyncio.run(_run_session(server, frames))
        text = asyncio.run(transcribe(server.port, spoken.wav, response_format="text")).decode()
    return [
        *_build_delay_figures(spoken, session, costs),
        _build_cpu_figure(costs, frames.frame_s),
        _build_error_figure(spoken, session, text),
    ]


async def _run_session(server: BenchServer, frames: FramedRecording) -> tuple[TalkResult, LiveCosts]:
    """The session, and what it took."""
    cpu: list[float] = []
    moments = [moment for begin in frames.begins for moment in (begin, begin + frames.frame_s)]
    before, begun = measure_busy(), server.cpu
    session = await run_talk(server.port, frames.recording.pcm, marks={at: lambda: cpu.append(server.cpu) for at in moments})
    foreign = max(measure_busy() - before - (server.cpu - begun), 0.0)
    first, first_end, last, last_end = cpu
    return session, LiveCosts((first_end - first) / frames.frame_s, (last_end - last) / frames.frame_s, foreign)


def _build_delay_figures(spoken: AnnouncementRecording, session: TalkResult, costs: LiveCosts) -> list[BenchFigure]:
    found = compute_delays(spoken.words, session.messages)
    words, finals = compute_percentiles(found.words), compute_percentiles(list(found.finals.values()))
    note = (
        f"{spoken.seconds / 60:.1f} min at the speed of speech, in pieces of {PIECE_S * 1000:.0f} ms. {found.missed} of "
        f"{len(spoken.words)} words stood in no text as they were said, and are not counted. The speaker was late by "
        f"{session.late_s * 1000:.0f} ms at the worst, and other work on the machine took {costs.foreign:.0f} s of CPU."
    )
    return [
        _build_seconds_figure("live-word", "end of a word to the first text that has it, median", words[0], note),
        _build_seconds_figure("live-word-p95", "the same, 95 % of the words", words[1]),
        _build_seconds_figure(
            "live-final", "end of speech to its final text, median", finals[0], f"{len(found.finals)} of them."
        ),
        _build_seconds_figure("live-final-p95", "the same, 95 % of them", finals[1]),
    ]


def _build_seconds_figure(name: str, what: str, value: float, note: str = "") -> BenchFigure:
    return BenchFigure(name, what, "", "s", [value], [], SeriesComparison.ABSOLUTE, note=note)


def _build_cpu_figure(costs: LiveCosts, frame_s: float) -> BenchFigure:
    what, against = "CPU per second of audio, last minute", "first minute, same audio"
    note = f"Gateway and runner; {frame_s:.0f} s each."
    return BenchFigure(
        "live-cpu", what, against, "ms", [costs.last * 1000], [costs.first * 1000], SeriesComparison.SHARE, 1.1, note
    )


def _build_error_figure(spoken: AnnouncementRecording, session: TalkResult, text: str) -> BenchFigure:
    reference = [Reference(Path(), spoken.seconds, spoken.text, "en")]
    live, file = (compute_word_error_rate(reference, [heard]) * 100 for heard in (session.text, text))
    return BenchFigure(
        "live-wer",
        "word errors of the live text",
        "of the same audio as a file",
        "%",
        [live],
        [file],
        SeriesComparison.SHARE,
        1.1,
    )
