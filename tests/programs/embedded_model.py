"""The embedded model behind the fake servers: a runner of Eardrum transcribes, so the texts are those of a real model."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from msgspec.structs import replace

from eardrum.gateway.processes.runner_process import RunnerProcess
from eardrum.gateway.upstreams.runner import RunnerUpstream
from eardrum.transcription import Segment, TranscriptionRequest, TranscriptionSummary, Word


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where to listen, and which model; the embedded one if none is named."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--engine", default="moonshine")
    parser.add_argument("--source", type=Path, help="files of the model")


@dataclass
class WholeAudio:
    """Audio that is all here."""

    data: bytes

    async def read(self) -> AsyncIterator[bytes]:
        yield self.data


class TranscribingModel:
    """A model that listens."""

    def __init__(self, upstream: RunnerUpstream, *, words: bool, translate: bool):
        self._upstream = upstream
        self._words = words
        self.translates = translate

    async def transcribe(self, data: bytes, request: TranscriptionRequest) -> tuple[list[Segment], TranscriptionSummary]:
        """What is said in a file. Every segment has words: if the model knows no times of theirs, they share its time."""
        segments: list[Segment] = []
        async for event in self._upstream.transcribe(replace(request, words=self._words), WholeAudio(data)):
            if isinstance(event, Segment):
                segments.append(event if event.words else replace(event, words=_spread_words(event)))
            elif isinstance(event, TranscriptionSummary):
                return segments, event
        raise AssertionError("a runner ends with a summary")


def _spread_words(segment: Segment) -> list[Word]:
    said = segment.text.split()
    each = (segment.end - segment.start) / max(len(said), 1)
    return [Word(word, segment.start + i * each, segment.start + (i + 1) * each, 0.9) for i, word in enumerate(said)]


@asynccontextmanager
async def open_model(arguments: argparse.Namespace) -> AsyncIterator[TranscribingModel]:
    """Ears for the duration of the block."""
    with tempfile.TemporaryDirectory(prefix="fake-") as folder:
        socket = str(Path(folder) / "s")
        source = arguments.source or _find_embedded()
        options = ["--engine", arguments.engine, "--source", str(source), "--socket", socket, "--batch", "1", "--parent"]
        process = await RunnerProcess.start("ears", [sys.executable, "-m", "eardrum.runner", *options], within_s=60)
        upstream, can = RunnerUpstream(socket), process.ready_message["capabilities"]
        try:
            yield TranscribingModel(upstream, words=can["words"], translate=can["translate"])
        finally:
            await upstream.close()
            await process.stop()


def _find_embedded() -> Path:
    spec = importlib.util.find_spec("moonshine_voice")
    assert spec
    assert spec.origin
    return Path(spec.origin).parent / "assets" / "tiny-en"


async def read_form(request: web.Request) -> tuple[dict[str, list[str]], bytes]:
    """The fields of a form and its file."""
    fields: dict[str, list[str]] = {}
    file = b""
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            file = value.file.read()
            value.file.close()
        else:
            fields.setdefault(name, []).append(str(value))
    return fields, file
