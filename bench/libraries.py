"""What a server costs beside the library that its engine is built on: the library's own pipeline, called directly."""

from __future__ import annotations

import asyncio
import tempfile
import wave
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np

from bench.children import ask_child, run_child
from bench.client import transcribe
from bench.engines.errors_in_text import compute_word_error_rate
from bench.engines.folder import Recording
from bench.figure import BenchFigure, SeriesComparison
from bench.live_client import run_talk
from bench.live_recording import build_recording, load_announcements
from bench.parakeets import build_parakeet
from bench.recordings import Samples
from bench.runners import WEIGHTS
from bench.server import BenchServer, run_server
from eardrum.transcription import SAMPLE_RATE
from tests.models import whisper_base

MOST = 1.03
"""Eardrum's share of what the library takes."""

AT_ONCE = 8

NAME = "measured"
"""What a model is called that is not the embedded one."""


def measure(quick: bool) -> list[BenchFigure]:
    """Each engine and its library, in turns: Moonshine, a model like Parakeet, and a live session with Whisper base."""
    return [*_measure_moonshine(quick), *_measure_parakeet(quick), _measure_live(quick)]


def _measure_moonshine(quick: bool) -> Iterator[BenchFigure]:
    clips = load_announcements()[: 5 if quick else 41]
    rounds = 2 if quick else 7
    texts = [clip.text for clip in clips]
    tape = build_recording(20 if quick else 300)
    with ExitStack() as stack:
        files = [stack.enter_context(_write_wav(clip.samples)) for clip in clips]
        long = stack.enter_context(_write_wav(np.concatenate([part.samples for part in tape.parts])))
        alone = stack.enter_context(run_child(["-m", "bench.library_alone", "moonshine", str(WEIGHTS)], pipes=True))
        server = stack.enter_context(run_server())
        against = "moonshine-voice, its own pipeline"
        short = _take_turns(_send_one_by_one(server, files), _ask_one_by_one(alone, files), rounds)
        yield _build_figure("moonshine-clips", f"CPU of {len(clips)} clips, Moonshine", against, short, texts)
        whole = _take_turns(_send_one_by_one(server, [long]), _ask_one_by_one(alone, [long]), rounds)
        yield _build_figure("moonshine-file", f"CPU of {tape.seconds:.0f} s of speech, Moonshine", against, whole, [tape.text])


def _measure_parakeet(quick: bool) -> Iterator[BenchFigure]:
    clips = load_announcements()[: 8 if quick else 16]
    rounds = 2 if quick else 7
    with ExitStack() as stack:
        model = stack.enter_context(build_parakeet())
        files = [stack.enter_context(_write_wav(clip.samples)) for clip in clips]
        alone = stack.enter_context(run_child(["-m", "bench.library_alone", "onnx-asr", str(model)], pipes=True))
        settings = {"models": {NAME: {"engine": "onnx_asr", "source": str(model)}}}
        server = stack.enter_context(run_server(settings=settings, model=NAME))
        against, note = "onnx-asr, `recognize`", "A model of true size, 8 bits, random weights: its text means nothing."
        single = _take_turns(_send_one_by_one(server, files, NAME), _ask_one_by_one(alone, files), rounds)
        yield _build_figure("parakeet-clips", f"CPU of {len(files)} clips, a model like Parakeet", against, single, note=note)
        many = files[:AT_ONCE]
        crowd = _take_turns(_send_at_once(server, many, NAME), _ask_as_batch(alone, many), rounds)
        yield _build_figure(
            "parakeet-crowd", f"CPU of {AT_ONCE} clips at once", f"{against} of all as one batch", crowd, note=note
        )


def _measure_live(quick: bool) -> BenchFigure:
    spoken = build_recording(15 if quick else 90)
    with ExitStack() as stack:
        model = whisper_base.build(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eardrum-bench-"))))
        file = stack.enter_context(_write_wav(np.concatenate([part.samples for part in spoken.parts])))
        alone = stack.enter_context(run_child(["-m", "bench.library_alone", "re-decoding", str(model)], pipes=True))
        settings = {"models": {NAME: {"engine": "faster_whisper", "source": str(model), "compute_type": "int8"}}}
        server = stack.enter_context(run_server(settings=settings, model=NAME))

        def talk() -> tuple[float, list[str]]:
            before = server.cpu
            session = asyncio.run(run_talk(server.port, spoken.pcm, model=NAME, language="en"))
            return server.cpu - before, [session.text]

        turns = _take_turns(talk, _ask_one_by_one(alone, [file]), 1 if quick else 3)
    return _build_figure(
        "live-whisper",
        f"CPU of a live session of {spoken.seconds:.0f} s, Whisper base",
        "faster-whisper, decoding again and again what is not final, as WhisperLive does",
        turns,
        [spoken.text],
        target=1.0,
    )


MeasuredTurn = Callable[[], tuple[float, list[str]]]
"""CPU seconds of the same recordings once more, and their texts."""


def _take_turns(ours: MeasuredTurn, theirs: MeasuredTurn, rounds: int) -> tuple[list[float], list[float], list[str], list[str]]:
    """The CPU of both in each round, after one that does not count, and the last texts."""
    ours()
    theirs()
    mine: list[float] = []
    others: list[float] = []
    for turn in range(rounds):
        if turn % 2:
            (cpu, texts), (other, their_texts) = ours(), theirs()
        else:
            (other, their_texts), (cpu, texts) = theirs(), ours()
        mine.append(cpu)
        others.append(other)
    return mine, others, texts, their_texts


def _send_one_by_one(server: BenchServer, files: Sequence[Path], model: str = "") -> MeasuredTurn:
    fields = {"model": model} if model else {}

    def send() -> tuple[float, list[str]]:
        before = server.cpu
        texts = [asyncio.run(transcribe(server.port, file.read_bytes(), response_format="text", **fields)) for file in files]
        return server.cpu - before, [text.decode() for text in texts]

    return send


def _send_at_once(server: BenchServer, files: Sequence[Path], model: str) -> MeasuredTurn:
    async def send_all() -> list[bytes]:
        sent = [transcribe(server.port, file.read_bytes(), response_format="text", model=model) for file in files]
        return await asyncio.gather(*sent)

    def send() -> tuple[float, list[str]]:
        before = server.cpu
        texts = asyncio.run(send_all())
        return server.cpu - before, [text.decode() for text in texts]

    return send


def _ask_one_by_one(alone: Popen[bytes], files: Sequence[Path]) -> MeasuredTurn:
    def ask() -> tuple[float, list[str]]:
        answers = [ask_child(alone, str(file)) for file in files]
        return sum(answer["cpu_s"] for answer in answers), [answer["texts"][0] for answer in answers]

    return ask


def _ask_as_batch(alone: Popen[bytes], files: Sequence[Path]) -> MeasuredTurn:
    def ask() -> tuple[float, list[str]]:
        answer = ask_child(alone, "\t".join(map(str, files)))
        return answer["cpu_s"], answer["texts"]

    return ask


def _build_figure(
    name: str,
    what: str,
    against: str,
    turns: tuple[list[float], list[float], list[str], list[str]],
    said: Sequence[str] = (),
    note: str = "",
    target: float = MOST,
) -> BenchFigure:
    ours, theirs, texts, their_texts = turns
    if said:
        note += f"Word errors: {_count_errors(said, texts):.1%}, the library's {_count_errors(said, their_texts):.1%}."
    return BenchFigure(f"libraries-{name}", what, against, "s", ours, theirs, SeriesComparison.SHARE, target, note)


def _count_errors(said: Sequence[str], heard: Sequence[str]) -> float:
    return compute_word_error_rate([Recording(Path(), 0.0, text, "en") for text in said], heard)


@contextmanager
def _write_wav(samples: Samples | Any) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(prefix="eardrum-bench-", suffix=".wav") as file:
        with wave.open(file, "wb") as writing:
            writing.setnchannels(1)
            writing.setsampwidth(2)
            writing.setframerate(SAMPLE_RATE)
            writing.writeframes((samples * 32767).astype("<i2").tobytes())
        file.flush()
        yield Path(file.name)
