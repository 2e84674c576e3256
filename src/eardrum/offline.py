"""Recordings to text files, for the command line: in this process, or through a running server."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from eardrum.api.openai import answers, fields
from eardrum.client import Client
from eardrum.config import Settings
from eardrum.errors import ConfigError, EardrumError
from eardrum.gateway.service import Service
from eardrum.gateway.spool import StoredFile
from eardrum.types import Opened, Segment, Task, Transcript

SUFFIXES = {"text": ".txt", "srt": ".srt", "vtt": ".vtt", "json": ".json", "verbose_json": ".json"}


@dataclass(frozen=True, slots=True)
class Job:
    """What the command line asks for."""

    files: list[Path]
    model: str
    language: str
    translate: bool
    format: str
    output_dir: Path | None

    def check(self) -> None:
        """Find out about missing files and a bad folder before any work is done.

        Raises:
            ConfigError: the message names the file.
        """
        for file in self.files:
            if not file.is_file():
                raise ConfigError(f"{file} is a folder: name the files." if file.is_dir() else f"There is no file {file}.")
        if self.output_dir:
            try:
                self.output_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"Cannot write to {self.output_dir}: {error.strerror}.") from None

    @property
    def form(self) -> dict[str, str]:
        """The wishes as OpenAI's form fields."""
        wishes = {"model": self.model, "language": self.language, "response_format": self.format}
        return {name: value for name, value in wishes.items() if value}

    def deliver(self, file: Path, text: str) -> None:
        """Print the text, or write it next to its fellows."""
        if self.output_dir:
            (self.output_dir / (file.stem + SUFFIXES[self.format])).write_text(text, encoding="utf-8")
        else:
            print(text.strip(), flush=True)


async def here(job: Job, settings: Settings) -> int:
    """Transcribe without a server: the gateway's own parts, without its port. Returns the number of failures."""
    service = Service(settings)
    wish = fields.wish({k: [v] for k, v in job.form.items()}, Task.TRANSLATE if job.translate else Task.TRANSCRIBE)
    model = service.find(wish.model)
    service.prepared(model, wish.request)

    async def one(file: Path, advance: Advance) -> str:
        transcript, length = Transcript(), None
        async with aclosing(service.stream(model, wish.request, StoredFile(file))) as events:
            async for event in events:
                transcript.add(event)
                if isinstance(event, Opened):
                    length = event.duration
                elif isinstance(event, Segment):
                    advance(event.end, length)
        return bytes(answers.answer(transcript, wish).body).decode()

    try:
        return await _each(job, one)
    finally:
        await service.shutdown()


async def through_server(job: Job, address: str, key: str = "", certificate: Path | None = None) -> int:
    """Transcribe through a running server. Returns the number of failures."""
    async with Client(address, key, certificate) as client:

        async def one(file: Path, _: Advance) -> str:
            return await client.transcribe(file, job.form, translate=job.translate)

        return await _each(job, one)


Advance = Callable[[float, float | None], None]
"""Told how many seconds of audio are done, and of how many, if that is known."""


async def _each(job: Job, transcribed: Callable[[Path, Advance], Awaitable[str]]) -> int:
    """All files, one after another; one that fails is reported and does not stop the others."""
    failures = 0
    for file in job.files:
        try:
            with _progress(file) as advance:
                text = await transcribed(file, advance)
            job.deliver(file, text)
        except EardrumError as error:
            failures += 1
            print(f"eardrum: {file}: {error.message}", file=sys.stderr)
    return failures


@contextmanager
def _progress(file: Path) -> Iterator[Advance]:
    """A bar on the terminal that is gone when the text is printed; nothing where stderr is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn())
    quiet = not sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, disable=quiet) as bar:
        line = bar.add_task(file.name, total=None, done="")
        yield lambda seconds, length: bar.update(line, completed=seconds, total=length, done=f"{seconds:.0f} s")
