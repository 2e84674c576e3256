"""Eight different requests at once: short and long, in two languages, to translate, with words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.client import transcribe
from bench.figure import BenchFigure, SeriesComparison
from bench.lock_per_file import run_lock_per_file
from bench.recordings import encode_mp3
from bench.server import run_server
from bench.whispers import NAME, build_hearing, build_settings, load_utterances
from tests.models import tiny_whisper

AGAINST = "faster-whisper, one lock per file"
HEAD_START_S = 0.5
"""The long ones are being transcribed when the short ones come."""

WORDS = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}


@dataclass(frozen=True, slots=True)
class EightRequest:
    """A request, and whether it is a long one."""

    audio: bytes
    fields: dict[str, str] = field(default_factory=dict)
    long: bool = False


@dataclass(frozen=True, slots=True)
class EightTurn:
    """All of them once: until the last answer, the median short one, what the long and the short ones say."""

    total_s: float
    short_s: float
    long: Sequence[str]
    short: Sequence[str]


def measure(quick: bool) -> list[BenchFigure]:
    """The same eight through our server and through one with a lock, in turns."""
    minutes, repetitions = (1, 1) if quick else (10, 5)
    asked = _list_requests(minutes * 60)
    with (
        build_hearing() as model,
        run_server(model=NAME, settings=build_settings(model)) as server,
        run_lock_per_file(model) as (port, _),
    ):
        ours, lock = asyncio.run(_run_turns((server.port, port), asked, repetitions))
    note = (
        f"Two files of {minutes} min, and half a second later six utterances of 2 to 3 s: English, German, one translated, one "
        "with word times. The tiny Whisper that hears costs little, so what is around it counts for more than with a large one."
    )

    def figure(
        name: str, what: str, value: Callable[[EightTurn], float], compare: SeriesComparison, target: float | None = None
    ) -> BenchFigure:
        shown = note if target else ""
        return BenchFigure(name, what, AGAINST, "s", list(map(value, ours)), list(map(value, lock)), compare, target, shown)

    differing = [_compute_difference(x.short, y.short) for x, y in zip(ours, lock, strict=True)]
    longs = sum(_compute_difference(x.long, y.long) for x, y in zip(ours, lock, strict=True))
    cut = f"Of the {2 * len(ours)} texts of long ones {longs:.0f} differ: faster-whisper cuts every half minute, ours at pauses."
    what = "of them, short ones whose text differs"
    return [
        figure(
            "mixed-eight", "eight mixed requests until the last is answered", lambda t: t.total_s, SeriesComparison.SHARE, 1.03
        ),
        figure("mixed-eight-short", "the median short one of them", lambda t: t.short_s, SeriesComparison.TIMES_LESS),
        BenchFigure("mixed-eight-text", what, AGAINST, "requests", differing, [], SeriesComparison.ABSOLUTE, 0, cut),
    ]


def _compute_difference(ours: Sequence[str], theirs: Sequence[str]) -> float:
    return float(sum(a != b for a, b in zip(ours, theirs, strict=True)))


def _list_requests(seconds: float) -> list[EightRequest]:
    def short(name: str, **fields: str) -> EightRequest:
        return EightRequest(encode_mp3(tiny_whisper.get_clip(name).samples), fields)

    return [
        EightRequest(load_utterances("en", seconds), {"language": "en"}, long=True),
        EightRequest(load_utterances("de", seconds), {"language": "de"}, long=True),
        short("u02"),
        short("u03"),
        short("u34", language="en"),
        short("u23", language="de"),
        short("u15", language="de", task="translations"),
        short("u20", language="en", **WORDS),
    ]


async def _run_turns(
    ports: tuple[int, int], asked: Sequence[EightRequest], repetitions: int
) -> tuple[list[EightTurn], list[EightTurn]]:
    ours, lock = ports
    fields = {ours: {"model": NAME}, lock: {}}
    for port in ports:
        await transcribe(port, asked[2].audio, **fields[port])
    turns: dict[int, list[EightTurn]] = {ours: [], lock: []}
    for repetition in range(repetitions):
        for port in ports if repetition % 2 else reversed(ports):
            turns[port].append(await _run_turn(port, asked, fields[port]))
    return turns[ours], turns[lock]


async def _run_turn(port: int, asked: Sequence[EightRequest], fields: dict[str, str]) -> EightTurn:
    clock = asyncio.get_running_loop().time
    started = clock()

    async def answer(one: EightRequest) -> tuple[float, str]:
        await asyncio.sleep(0 if one.long else HEAD_START_S)
        sent = clock()
        data = json.loads(await transcribe(port, one.audio, **fields, **one.fields))
        return clock() - sent, data["text"]

    answers = await asyncio.gather(*map(answer, asked))
    total = clock() - started
    short = [(seconds, text) for one, (seconds, text) in zip(asked, answers, strict=True) if not one.long]
    return EightTurn(
        total_s=total,
        short_s=median(seconds for seconds, _ in short),
        long=[text for one, (_, text) in zip(asked, answers, strict=True) if one.long],
        short=[text for _, text in short],
    )
