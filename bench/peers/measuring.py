"""The rounds: every contender is started and does the same, figure by figure, in an order that changes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.mixed_load import SPAN, draw_arrivals
from bench.peers.contenders import KINDS, OURS, PeerAnswer, PeerModel, RunningContender, run_contender, time_script
from bench.peers.speech import SpeechSource, SpokenFile
from bench.usage import measure_busy

STREAMING = (OURS, "faster-whisper", "batched")
"""Whoever sends segments as they come gets long files and several requests at once: with all it would take twice as long."""
REST_S = 3.0
"""Seconds without requests before memory at rest is read."""

FIGURES = ("clips", "joined", "files", "eight", "beside")
"""What can be chosen; the start is measured with whichever."""


@dataclass(frozen=True, slots=True)
class HeardText:
    """A contender's text of a file of which it is known what is said."""

    contender: str
    file: str
    language: str
    said: str
    heard: str
    repeats: bool = False


@dataclass(slots=True)
class PeerLog:
    """Everything that was measured."""

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    """By row, contender and round."""
    heard: list[HeardText] = field(default_factory=list)
    words: dict[str, dict[str, int]] = field(default_factory=dict)
    """How many words each heard in files of which nobody knows what is said, by file and contender."""
    others: dict[str, list[float]] = field(default_factory=dict)
    """Cores that other processes took meanwhile, by figure."""
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """How long each round took."""

    def add(self, row: str, contender: str, turn: int, value: float) -> None:
        """Keep a value."""
        self.values.setdefault(row, {}).setdefault(contender, {})[turn] = value

    def add_text(self, contender: str, turn: int, file: SpokenFile, text: str) -> None:
        """Keep what was heard."""
        name = f"{turn} {file.name}"
        if file.text:
            self.heard.append(HeardText(contender, name, file.language, file.text, text, file.repeats))
        else:
            self.words.setdefault(name, {})[contender] = len(text.split())


@dataclass(slots=True)
class PeerRun:
    """A run of several rounds. `figures` are some of `FIGURES`, `names` some of `KINDS`."""

    model: PeerModel
    speech: SpeechSource
    names: Sequence[str]
    figures: Sequence[str]
    cache: Path
    log: PeerLog = field(default_factory=PeerLog)
    speed: float = 0.1
    """Seconds that Eardrum takes for a second of a long file: how fast clips must arrive to find it at work."""

    def prepare(self) -> None:
        """Start everybody once, so that code is compiled, files are cached and timings stored; drop those that do not answer."""
        for name in [*self.names]:
            try:
                with run_contender(KINDS[name], self.model, self.cache) as running:
                    asyncio.run(running.transcribe(self.speech.take_first()))
                    self.log.add("first-start", name, 0, time.perf_counter() - running.started_at)
                    if name == OURS:
                        file = self.speech.build_long(-1, self.speech.sizes.beside_s)
                        self.speed = asyncio.run(running.transcribe(file)).wall_s / file.seconds
            except Exception as error:  # noqa: BLE001 -- one that fails must not cost the results of the others
                self._note_failure(name, "did not start", error)
                self.names = [one for one in self.names if one != name]

    def run_round(self, turn: int, write: Callable[[], None]) -> None:
        """Measure everything once; `write` is called after each figure."""
        began = time.monotonic()
        names = [name for name in self.names if name not in COSTLY or takes_costly(turn)]
        order = [names[(turn + place) % len(names)] for place in range(len(names))]
        alive: dict[str, tuple[RunningContender, ExitStack]] = {}
        with ExitStack() as everybody:
            for name in order:
                stack = everybody.enter_context(ExitStack())
                try:
                    running = stack.enter_context(run_contender(KINDS[name], self.model, self.cache))
                    self._measure_start(name, running, turn)
                    alive[name] = (running, stack)
                except Exception as error:  # noqa: BLE001
                    self._note_failure(name, f"start, round {turn + 1}", error)
                    stack.close()
            for figure in self.figures:
                for name in order:
                    if name in alive and name in TAKERS.get(figure, KINDS):
                        self._measure_figure(figure, name, alive, turn)
                write()
        self.log.seconds.append(time.monotonic() - began)

    def _measure_start(self, name: str, running: RunningContender, turn: int) -> None:
        clip = self.speech.take_first()
        asyncio.run(running.transcribe(clip))
        self.log.add("start", name, turn, time.perf_counter() - running.started_at)
        time.sleep(REST_S)
        self.log.add("rest-clip", name, turn, running.resting_mb)
        if name == "faster-whisper":
            self.log.add("start-script", name, turn, time_script(self.model, clip))
        elif name == OURS:
            self.log.add("start-script", name, turn, self.log.values["start"][OURS][turn])

    def _measure_figure(self, figure: str, name: str, alive: dict[str, Any], turn: int) -> None:
        running, stack = alive[name]
        busy, cpu, clock = measure_busy(), running.cpu_s, time.perf_counter()
        try:
            found = asyncio.run(MEASURES[figure](FigureTurn(self, name, running, turn)))
            foreign = measure_busy() - busy - (running.cpu_s - cpu)
        except Exception as error:  # noqa: BLE001
            self._note_failure(name, f"{figure}, round {turn + 1}", error)
            stack.close()  # whatever it still does would disturb the others
            del alive[name]
            return
        for row, value in found.items():
            self.log.add(row, name, turn, value)
        self.log.others.setdefault(figure, []).append(max(foreign, 0.0) / (time.perf_counter() - clock))

    def _note_failure(self, name: str, where: str, error: Exception) -> None:
        notes = "; ".join([repr(error), *getattr(error, "__notes__", [])])
        self.log.failed.append(f"{KINDS[name].label} ({where}): {notes[-600:]}")


@dataclass(frozen=True, slots=True)
class FigureTurn:
    """One contender's turn at one figure."""

    run: PeerRun
    name: str
    running: RunningContender
    turn: int

    @property
    def speech(self) -> SpeechSource:
        """Where the files come from."""
        return self.run.speech

    async def ask(self, file: SpokenFile, *, stream: bool = False) -> PeerAnswer:
        """Have a file transcribed, and keep the text."""
        answer = await self.running.transcribe(file, stream=stream)
        self.run.log.add_text(self.name, self.turn, file, answer.text)
        return answer

    async def ask_alone(self, file: SpokenFile, row: str, *, stream: bool = False) -> dict[str, float]:
        """The same, with CPU and wall under the names `row`-cpu and `row`-wall."""
        before = self.running.cpu_s
        answer = await self.ask(file, stream=stream)
        found = {f"{row}-cpu": self.running.cpu_s - before, f"{row}-wall": answer.wall_s}
        return found | ({f"{row}-first": answer.first_s} if answer.first_s else {})


async def measure_clips(turn: FigureTurn) -> dict[str, float]:
    """Short recordings, one after another."""
    before = turn.running.cpu_s
    walls = [(await turn.ask(clip)).wall_s for clip in turn.speech.take_clips(turn.turn)]
    return {"clips-cpu": turn.running.cpu_s - before, "clip-p50": median(walls)}


async def measure_joined(turn: FigureTurn) -> dict[str, float]:
    """Prompts one after another, and prompts said several times in a row."""
    found = await turn.ask_alone(turn.speech.join_prompts(turn.turn), "joined")
    found |= await turn.ask_alone(turn.speech.repeat_prompts(turn.turn), "repeated")
    await asyncio.sleep(REST_S)
    return found | {"joined-rest": turn.running.resting_mb, "joined-peak": turn.running.peak_mb}


async def measure_files(turn: FigureTurn) -> dict[str, float]:
    """Two long files, the second as a stream of events, and not in every round."""
    shorter, longer = (turn.speech.build_long(turn.turn, seconds) for seconds in turn.speech.sizes.long_s)
    found = await turn.ask_alone(shorter, "shorter")
    if not takes_costly(turn.turn):
        return found
    found |= await turn.ask_alone(longer, "longer", stream=True)
    await asyncio.sleep(REST_S)
    return found | {"file-rest": turn.running.resting_mb, "file-peak": turn.running.peak_mb}


async def measure_eight(turn: FigureTurn) -> dict[str, float]:
    """Requests at once: until the last is answered."""
    clips = turn.speech.take_others(turn.turn, turn.speech.sizes.at_once)
    before, started = turn.running.cpu_s, time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for clip in clips:
            group.create_task(turn.ask(clip))
    return {"eight-wall": time.perf_counter() - started, "eight-cpu": turn.running.cpu_s - before}


async def measure_beside(turn: FigureTurn) -> dict[str, float]:
    """Short recordings that arrive while two files are transcribed, within the time that Eardrum takes for the files."""
    size = turn.speech.sizes
    files = [turn.speech.build_long(1000 + 2 * turn.turn + number, size.beside_s) for number in (0, 1)]
    clips = turn.speech.take_others(turn.turn, size.beside_clips)
    moments = draw_arrivals(len(clips), SPAN * sum(file.seconds for file in files) * turn.run.speed, random.Random(turn.turn))
    clock = time.perf_counter
    started = clock()

    async def send_clip(clip: SpokenFile, moment: float) -> float:
        await asyncio.sleep(max(started + moment - clock(), 0))
        return (await turn.ask(clip)).wall_s

    async with asyncio.TaskGroup() as group:
        long = [group.create_task(turn.ask(file)) for file in files]
        short = [group.create_task(send_clip(*one)) for one in zip(clips, moments, strict=True)]
    return {
        "beside-p50": median(task.result() for task in short),
        "beside-files": max(task.result().wall_s for task in long),
    }


MEASURES: dict[str, Callable[[FigureTurn], Awaitable[dict[str, float]]]] = {
    "clips": measure_clips,
    "joined": measure_joined,
    "files": measure_files,
    "eight": measure_eight,
    "beside": measure_beside,
}
TAKERS = {"files": STREAMING, "eight": STREAMING, "beside": STREAMING}
COSTLY = ("whisper.cpp",)
"""Takes as much time as three others, so it takes part in every second round only. So does the longer file."""


def takes_costly(turn: int) -> bool:
    """Whether this round has what costs most in it: the first has, and every second one."""
    return turn % 2 == 0
