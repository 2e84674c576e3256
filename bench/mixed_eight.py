"""Eight different requests at once: short and long, in two languages, to translate, with words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.client import transcribe
from bench.figure import Compare, Figure
from bench.lock_per_file import lock_per_file
from bench.recordings import mp3
from bench.server import running
from bench.whispers import NAME, hearing_whisper, settings, utterances
from tests.models import tiny_whisper

AGAINST = "faster-whisper, one lock per file"
HEAD_START_S = 0.5
"""The long ones are being transcribed when the short ones come."""

WORDS = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and whether it is a long one."""

    audio: bytes
    fields: dict[str, str] = field(default_factory=dict)
    long: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """All of them once: until the last answer, the median short one, what the long and the short ones say."""

    total_s: float
    short_s: float
    long: Sequence[str]
    short: Sequence[str]


def measure(quick: bool) -> list[Figure]:
    """The same eight through our server and through one with a lock, in turns."""
    minutes, repetitions = (1, 1) if quick else (10, 5)
    asked = _asked(minutes * 60)
    with (
        hearing_whisper() as model,
        running(model=NAME, settings=settings(model)) as server,
        lock_per_file(model) as (port, _),
    ):
        ours, lock = asyncio.run(_turns((server.port, port), asked, repetitions))
    note = (
        f"Two files of {minutes} min, and half a second later six utterances of 2 to 3 s: English, German, one translated, one "
        "with word times. The tiny Whisper that hears costs little, so what is around it counts for more than with a large one."
    )

    def figure(name: str, what: str, value: Callable[[Turn], float], compare: Compare, target: float | None = None) -> Figure:
        shown = note if target else ""
        return Figure(name, what, AGAINST, "s", list(map(value, ours)), list(map(value, lock)), compare, target, shown)

    differing = [_differing(x.short, y.short) for x, y in zip(ours, lock, strict=True)]
    longs = sum(_differing(x.long, y.long) for x, y in zip(ours, lock, strict=True))
    cut = f"Of the {2 * len(ours)} texts of long ones {longs:.0f} differ: faster-whisper cuts every half minute, ours at pauses."
    what = "of them, short ones whose text differs"
    return [
        figure("mixed-eight", "eight mixed requests until the last is answered", lambda t: t.total_s, Compare.SHARE, 1.03),
        figure("mixed-eight-short", "the median short one of them", lambda t: t.short_s, Compare.TIMES_LESS),
        Figure("mixed-eight-text", what, AGAINST, "requests", differing, [], Compare.ABSOLUTE, 0, cut),
    ]


def _differing(ours: Sequence[str], theirs: Sequence[str]) -> float:
    return float(sum(a != b for a, b in zip(ours, theirs, strict=True)))


def _asked(seconds: float) -> list[Asked]:
    def short(name: str, **fields: str) -> Asked:
        return Asked(mp3(tiny_whisper.clip(name).samples), fields)

    return [
        Asked(utterances("en", seconds), {"language": "en"}, long=True),
        Asked(utterances("de", seconds), {"language": "de"}, long=True),
        short("u02"),
        short("u03"),
        short("u34", language="en"),
        short("u23", language="de"),
        short("u15", language="de", task="translations"),
        short("u20", language="en", **WORDS),
    ]


async def _turns(ports: tuple[int, int], asked: Sequence[Asked], repetitions: int) -> tuple[list[Turn], list[Turn]]:
    ours, lock = ports
    fields = {ours: {"model": NAME}, lock: {}}
    for port in ports:
        await transcribe(port, asked[2].audio, **fields[port])
    turns: dict[int, list[Turn]] = {ours: [], lock: []}
    for repetition in range(repetitions):
        for port in ports if repetition % 2 else reversed(ports):
            turns[port].append(await _turn(port, asked, fields[port]))
    return turns[ours], turns[lock]


async def _turn(port: int, asked: Sequence[Asked], fields: dict[str, str]) -> Turn:
    clock = asyncio.get_running_loop().time
    started = clock()

    async def answer(one: Asked) -> tuple[float, str]:
        await asyncio.sleep(0 if one.long else HEAD_START_S)
        sent = clock()
        data = json.loads(await transcribe(port, one.audio, **fields, **one.fields))
        return clock() - sent, data["text"]

    answers = await asyncio.gather(*map(answer, asked))
    total = clock() - started
    short = [(seconds, text) for one, (seconds, text) in zip(asked, answers, strict=True) if not one.long]
    return Turn(
        total_s=total,
        short_s=median(seconds for seconds, _ in short),
        long=[text for one, (_, text) in zip(asked, answers, strict=True) if one.long],
        short=[text for _, text in short],
    )
