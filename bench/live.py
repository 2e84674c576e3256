"""One long live session: how late its text is, what it costs, how good it is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from bench.client import transcribe
from bench.engines.beside import percentiles
from bench.engines.errors_in_text import word_error_rate
from bench.engines.folder import Recording as Reference
from bench.figure import Compare, Figure
from bench.live_client import PIECE_S, Talk, talk
from bench.live_delays import delays
from bench.live_recording import Framed, Recording, framed
from bench.server import RunningServer, running
from bench.usage import busy


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds per second of audio in the first and the last minute, and those that other work took in all."""

    first: float
    last: float
    foreign: float


def measure(quick: bool) -> list[Figure]:
    """A recording pushed at the speed of speech, and then the same one as a file."""
    frames = framed(36, 8) if quick else framed(1200, 60)
    spoken = frames.recording
    with running() as server:
        session, costs = asyncio.run(_talk(server, frames))
        text = asyncio.run(transcribe(server.port, spoken.wav, response_format="text")).decode()
    return [*_delays(spoken, session, costs), _cpu(costs, frames.frame_s), _errors(spoken, session, text)]


async def _talk(server: RunningServer, frames: Framed) -> tuple[Talk, Costs]:
    """The session, and what it took."""
    cpu: list[float] = []
    moments = [moment for begin in frames.begins for moment in (begin, begin + frames.frame_s)]
    before, begun = busy(), server.cpu
    session = await talk(server.port, frames.recording.pcm, marks={at: lambda: cpu.append(server.cpu) for at in moments})
    foreign = max(busy() - before - (server.cpu - begun), 0.0)
    first, first_end, last, last_end = cpu
    return session, Costs((first_end - first) / frames.frame_s, (last_end - last) / frames.frame_s, foreign)


def _delays(spoken: Recording, session: Talk, costs: Costs) -> list[Figure]:
    found = delays(spoken.words, session.messages)
    words, finals = percentiles(found.words), percentiles(list(found.finals.values()))
    note = (
        f"{spoken.seconds / 60:.1f} min at the speed of speech, in pieces of {PIECE_S * 1000:.0f} ms. {found.missed} of "
        f"{len(spoken.words)} words stood in no text as they were said, and are not counted. The speaker was late by "
        f"{session.late_s * 1000:.0f} ms at the worst, and other work on the machine took {costs.foreign:.0f} s of CPU."
    )
    return [
        _seconds("live-word", "end of a word to the first text that has it, median", words[0], note),
        _seconds("live-word-p95", "the same, 95 % of the words", words[1]),
        _seconds("live-final", "end of speech to its final text, median", finals[0], f"{len(found.finals)} of them."),
        _seconds("live-final-p95", "the same, 95 % of them", finals[1]),
    ]


def _seconds(name: str, what: str, value: float, note: str = "") -> Figure:
    return Figure(name, what, "", "s", [value], [], Compare.ABSOLUTE, note=note)


def _cpu(costs: Costs, frame_s: float) -> Figure:
    what, against = "CPU per second of audio, last minute", "first minute, same audio"
    note = f"Gateway and runner; {frame_s:.0f} s each."
    return Figure("live-cpu", what, against, "ms", [costs.last * 1000], [costs.first * 1000], Compare.SHARE, 1.1, note)


def _errors(spoken: Recording, session: Talk, text: str) -> Figure:
    reference = [Reference(Path(), spoken.seconds, spoken.text, "en")]
    live, file = (word_error_rate(reference, [heard]) * 100 for heard in (session.text, text))
    return Figure(
        "live-wer", "word errors of the live text", "of the same audio as a file", "%", [live], [file], Compare.SHARE, 1.1
    )
