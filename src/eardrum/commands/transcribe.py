"""`transcribe`: any number of recordings to text, with or without a server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eardrum import config, log
from eardrum.commands.batch import Batch, Job
from eardrum.commands.options import Assignments, Certificate, ConfigFile, Key
from eardrum.commands.recordings import STDIN, Recording, find_recordings
from eardrum.commands.results import SUFFIXES, Targets, existing, plan_targets
from eardrum.commands.shape import (
    HighlightWords,
    MaxCharactersPerSecond,
    MaxDuration,
    MaxLineCount,
    MaxLineWidth,
    MaxWordsPerLine,
    MinDuration,
    MinGap,
    Subtitles,
    shape_fields,
)
from eardrum.errors import ConfigError
from eardrum.gateway.store import is_written_as_path
from eardrum.importing import uncollected

if TYPE_CHECKING:
    from eardrum.offline import Transcriber

INTERRUPTED = 130
"""Exit code of what Ctrl-C ended."""


def transcribe(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Audio or video files, folders with all below them, patterns, pipes; `-` is stdin.", metavar="FILES..."
        ),
    ],
    model: Annotated[str, typer.Option(help="Model or alias, or a folder with a model; the default model if left out.")] = "",
    language: Annotated[str, typer.Option(help="Language spoken, as a code; detected if left out.")] = "",
    translate: Annotated[bool, typer.Option("--translate", help="Translate into English.")] = False,
    prompt: Annotated[str, typer.Option(help="Text that might come before: its style and names guide the model.")] = "",
    hotwords: Annotated[
        list[str] | None, typer.Option(help="Words and names to listen for, separated by commas; repeatable.")
    ] = None,
    words: Annotated[bool, typer.Option("--words", help="With verbose_json: when each word was said, too.")] = False,
    audio_track: Annotated[
        int | None,
        typer.Option(min=1, help="Which audio track, counted from 1; the default one, or the first with sound, if left out."),
    ] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(show_default="text", help=f"What to write: {', '.join(SUFFIXES)}. Repeatable, or separated by commas."),
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Write one file per recording here, not to the terminal.")] = None,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave out what has its text already.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over the texts that are there already.")] = False,
    subtitles: Subtitles = None,
    max_line_width: MaxLineWidth = None,
    max_line_count: MaxLineCount = None,
    max_words_per_line: MaxWordsPerLine = None,
    highlight_words: HighlightWords = None,
    min_duration: MinDuration = None,
    max_duration: MaxDuration = None,
    min_gap: MinGap = None,
    max_characters_per_second: MaxCharactersPerSecond = None,
    server: Annotated[
        str,
        typer.Option(
            envvar=config.CLIENT_SERVER_VARIABLE, help="Use this server, as in http://127.0.0.1:8100; without it none is needed."
        ),
    ] = "",
    key: Key = "",
    certificate: Certificate = None,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Turn recordings into text, with or without a server.

    One that fails does not stop the others: what failed is told at the end, and the exit code is 1.
    """
    formats = _formats(format or ["text"])
    form = {
        "model": [model],
        "language": [language],
        "prompt": [prompt],
        "audio_track": [str(audio_track or "")],
        **_hotwords(hotwords or ()),
        "timestamp_granularities": ["segment", "word"] if words else [],
        **shape_fields(
            subtitles=subtitles,
            max_line_width=max_line_width,
            max_line_count=max_line_count,
            max_words_per_line=max_words_per_line,
            highlight_words=highlight_words,
            min_duration=min_duration,
            max_duration=max_duration,
            min_gap=min_gap,
            max_characters_per_second=max_characters_per_second,
        ),
    }
    if words and "verbose_json" not in formats:
        raise ConfigError("--words is for --format verbose_json: the other formats have no place for the times of words.")
    if skip_existing and overwrite:
        raise ConfigError("--skip-existing keeps the texts that are there, --overwrite does not: say one of them.")
    if server and is_written_as_path(model):
        raise ConfigError(f"--model {model}: a server has models by name. Leave out --server to use a folder of this machine.")
    if "" in inputs:
        raise ConfigError("One of the inputs is an empty word: it may be a variable that is not set. This folder is `.`.")
    if STDIN in inputs and sys.stdin.isatty():
        raise ConfigError("`-` is what is piped in, and stdin is a terminal: pipe a recording in, or name a file.")
    recordings, failures = find_recordings(inputs)
    jobs, skipped = _jobs(recordings, formats, output_dir, skip_existing=skip_existing, overwrite=overwrite)
    batch = Batch(jobs, failures, skipped=skipped, replace=overwrite)
    if jobs:
        with uncollected():
            from eardrum import offline

        order = offline.Order(form, tuple(formats), translate)
        if server:
            transcribing: Transcribing = lambda: offline.through_server(order, server, key, certificate)  # noqa: E731
        else:
            settings = config.load(config_file, assignments or ())
            log.set_up("error", settings.log.format)
            transcribing = lambda: offline.here(order, settings)  # noqa: E731
        _run(batch, transcribing)
    batch.report()
    if batch.failures:
        raise typer.Exit(1)


Transcribing = Callable[[], AbstractAsyncContextManager["Transcriber"]]


def _run(batch: Batch, transcribing: Transcribing) -> None:
    async def run() -> None:
        async with transcribing() as transcriber:
            await batch.run(transcriber)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        batch.report()
        print("Interrupted. With --skip-existing the same command does the rest.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _jobs(
    recordings: Sequence[Recording], formats: Sequence[str], folder: Path | None, *, skip_existing: bool, overwrite: bool
) -> tuple[list[Job], int]:
    """What there is to do, and how many recordings have their text already.

    Raises:
        ConfigError: results would get lost.
    """
    if not folder:
        if len(formats) > 1 or skip_existing or overwrite:
            what = "--skip-existing is" if skip_existing else "--overwrite is" if overwrite else "several formats are"
            raise ConfigError(f"{what[0].upper()}{what[1:]} for texts in files: say where with --output-dir.")
        return [Job(recording, {}) for recording in recordings], 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"Cannot write to {folder}: {error.strerror}.") from None
    planned = plan_targets(recordings, formats, folder)
    there = set(existing(planned))
    if there and not skip_existing and not overwrite:
        first = min(there)
        many = f"{first} is" if len(there) == 1 else f"{first} and {len(there) - 1} more are"
        raise ConfigError(f"{many} there already: --skip-existing leaves them out, --overwrite writes them again.")
    if skip_existing:
        planned = [_missing(targets, there) for targets in planned]
    jobs = [Job(recording, targets) for recording, targets in zip(recordings, planned, strict=True) if targets]
    return jobs, len(recordings) - len(jobs)


def _missing(targets: Targets, there: set[Path]) -> Targets:
    return {format: path for format, path in targets.items() if path not in there}


def _formats(given: Sequence[str]) -> list[str]:
    """The formats, each once. `txt` is the name that Whisper's own command has for text.

    Raises:
        BadParameter: one of them is none.
    """
    names = [name.strip().lower() for value in given for name in value.split(",") if name.strip()]
    names = ["text" if name == "txt" else name for name in names]
    for name in names:
        if name not in SUFFIXES:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(SUFFIXES)}.", param_hint="'--format'")
    if not names:
        raise typer.BadParameter(f"It names none of {', '.join(SUFFIXES)}.", param_hint="'--format'")
    return list(dict.fromkeys(names))


def _hotwords(given: Sequence[str]) -> dict[str, list[str]]:
    """As the field that keeps them together: `keywords` may hold phrases, `hotwords` are words."""
    if len(given) > 1 or any("," in value for value in given):
        return {"keywords": [phrase.strip() for value in given for phrase in value.split(",") if phrase.strip()]}
    return {"hotwords": list(given)}


COMMANDS: dict[str, Callable[..., None]] = {"transcribe": transcribe}
