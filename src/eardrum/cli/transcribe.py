"""The command `transcribe`: turns recordings into text, one after another.

A recording that fails does not stop the others; failures are listed at the end.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from msgspec import Struct

from eardrum import config, logging_setup
from eardrum.cli.chunk_reader import ChunkReader
from eardrum.cli.options import (
    AssignmentsOption,
    AudioTrackOption,
    CertificateOption,
    ConfigFileOption,
    DiarizeOption,
    FormatOption,
    HighlightWordsOption,
    HotwordsOption,
    InputsArgument,
    KeyOption,
    LanguageOption,
    MaxCharactersPerSecondOption,
    MaxDurationOption,
    MaxLineCountOption,
    MaxLineWidthOption,
    MaxSpeakersOption,
    MaxWordsPerLineOption,
    MinDurationOption,
    MinGapOption,
    MinSpeakersOption,
    ModelOption,
    OptionalServerOption,
    OutputDirOption,
    OverwriteOption,
    PromptOption,
    SkipExistingOption,
    SubtitlesOption,
    TranslateOption,
    WordsOption,
    build_subtitle_fields,
)
from eardrum.cli.recordings import (
    STDIN,
    SUFFIXES,
    InputFailure,
    InputRecording,
    OutputFiles,
    check_writable,
    find_recordings,
    list_existing,
    plan_outputs,
    write_result,
)
from eardrum.cli.terminal import (
    INTERRUPTED,
    ProgressCallback,
    format_duration,
    guard_stdout,
    print_error,
    print_status,
    show_progress,
)
from eardrum.errors import ConfigError, EardrumError
from eardrum.garbage_collection import pause_garbage_collection
from eardrum.gateway.models.store import is_written_as_path
from eardrum.logging_setup import YELLOW
from eardrum.subtitles import RULE_NAMES

if TYPE_CHECKING:
    from eardrum.cli.transcribers import Transcriber, TranscriptTexts


def transcribe(
    inputs: InputsArgument,
    model: ModelOption = "",
    language: LanguageOption = "",
    translate: TranslateOption = False,
    prompt: PromptOption = "",
    hotwords: HotwordsOption = None,
    words: WordsOption = False,
    diarize: DiarizeOption = False,
    min_speakers: MinSpeakersOption = None,
    max_speakers: MaxSpeakersOption = None,
    audio_track: AudioTrackOption = None,
    format: FormatOption = None,
    output_dir: OutputDirOption = None,
    skip_existing: SkipExistingOption = False,
    overwrite: OverwriteOption = False,
    subtitles: SubtitlesOption = None,
    max_line_width: MaxLineWidthOption = None,
    max_line_count: MaxLineCountOption = None,
    max_words_per_line: MaxWordsPerLineOption = None,
    highlight_words: HighlightWordsOption = None,
    min_duration: MinDurationOption = None,
    max_duration: MaxDurationOption = None,
    min_gap: MinGapOption = None,
    max_characters_per_second: MaxCharactersPerSecondOption = None,
    server: OptionalServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
    config_file: ConfigFileOption = None,
    assignments: AssignmentsOption = None,
) -> None:
    """Transcribe recordings, with or without a server.

    A recording that fails does not stop the others. Failures are listed at the end, and the exit code is 1.
    """
    formats = _parse_flags(format or ["text"], words=words, diarize=diarize, skip_existing=skip_existing, overwrite=overwrite)
    _check_inputs(inputs, model, server)
    form = _build_form(model, language, prompt, audio_track, hotwords or (), words=words)
    form |= _build_speaker_fields(min_speakers, max_speakers) if diarize else {}
    form |= build_subtitle_fields(
        subtitles=subtitles,
        max_line_width=max_line_width,
        max_line_count=max_line_count,
        max_words_per_line=max_words_per_line,
        highlight_words=highlight_words,
        min_duration=min_duration,
        max_duration=max_duration,
        min_gap=min_gap,
        max_characters_per_second=max_characters_per_second,
    )
    batch = _plan_batch(inputs, formats, output_dir, skip_existing=skip_existing, overwrite=overwrite)
    if batch.jobs:
        with pause_garbage_collection():
            from eardrum.cli import transcribers

        order = transcribers.TranscriptionOrder(form, tuple(formats), translate)
        if server:
            _run_batch(batch, lambda: transcribers.transcribe_remotely(order, server, key, certificate))
        else:
            settings = _load_quiet_settings(config_file, assignments)
            _run_batch(batch, lambda: transcribers.transcribe_locally(order, settings))
    batch.report()
    if batch.failures:
        raise typer.Exit(1)


def _load_quiet_settings(files: Sequence[Path] | None, assignments: Sequence[str] | None) -> config.Settings:
    """Load the settings, and log errors only: the gateway's log lines are for servers."""
    settings = config.load_settings(files, assignments or ())
    logging_setup.configure_logging("error", settings.log.format)
    return settings


def _build_form(
    model: str, language: str, prompt: str, audio_track: int | None, hotwords: Sequence[str], *, words: bool
) -> dict[str, list[str]]:
    """Build the form fields of a request, except those for subtitles."""
    return {
        "model": [model],
        "language": [language],
        "prompt": [prompt],
        "audio_track": [str(audio_track or "")],
        **_build_hotword_fields(hotwords),
        "timestamp_granularities": ["segment", "word"] if words else [],
    }


def _build_speaker_fields(least: int | None, most: int | None) -> dict[str, list[str]]:
    return {"diarize": ["true"], "min_speakers": [str(least or "")], "max_speakers": [str(most or "")]}


def _parse_flags(given: Sequence[str], *, words: bool, diarize: bool, skip_existing: bool, overwrite: bool) -> list[str]:
    """Return the formats, and refuse flags that contradict them or each other."""
    formats = _parse_formats(given)
    if diarize and not SPEAKER_FORMATS.intersection(formats):
        raise ConfigError("--diarize needs --format srt, vtt or verbose_json: the other formats have no room for speakers.")
    if words and "verbose_json" not in formats:
        raise ConfigError("--words needs --format verbose_json: the other formats cannot hold the times of words.")
    if skip_existing and overwrite:
        raise ConfigError("--skip-existing keeps existing texts, --overwrite replaces them: use one of the two.")
    return formats


def _check_inputs(inputs: Sequence[str], model: str, server: str) -> None:
    """Refuse combinations that cannot work, before any file is opened.

    Raises:
        ConfigError: the message names the option or the input at fault.
    """
    if server and is_written_as_path(model):
        raise ConfigError(f"--model {model}: a server has models by name. Leave out --server to use a folder on this machine.")
    if "" in inputs:
        raise ConfigError("An input is empty, perhaps an unset variable. Use `.` for the current folder.")
    if STDIN in inputs and sys.stdin.isatty():
        raise ConfigError("`-` reads a recording from stdin, but stdin is a terminal: pipe a recording in, or name a file.")


TranscriberFactory = Callable[[], AbstractAsyncContextManager["Transcriber"]]


def _run_batch(batch: TranscriptionBatch, transcribing: TranscriberFactory) -> None:
    async def run() -> None:
        async with transcribing() as transcriber:
            await batch.run(transcriber)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        batch.report()
        print_status("Interrupted. Run the same command with --skip-existing to transcribe the rest.")
        raise typer.Exit(INTERRUPTED) from None


def _plan_batch(
    inputs: Sequence[str], formats: Sequence[str], folder: Path | None, *, skip_existing: bool, overwrite: bool
) -> TranscriptionBatch:
    recordings, failures = find_recordings(inputs)
    jobs, skipped = _plan_jobs(recordings, formats, folder, skip_existing=skip_existing, overwrite=overwrite)
    return TranscriptionBatch(jobs, failures, skipped=skipped, replace=overwrite)


def _plan_jobs(
    recordings: Sequence[InputRecording], formats: Sequence[str], folder: Path | None, *, skip_existing: bool, overwrite: bool
) -> tuple[list[RecordingJob], int]:
    """Plan the jobs; returns them and the number of recordings skipped because their output exists.

    Raises:
        ConfigError: results would be lost.
    """
    if not folder:
        if len(formats) > 1 or skip_existing or overwrite:
            subject = "--skip-existing needs" if skip_existing else "--overwrite needs" if overwrite else "Several formats need"
            raise ConfigError(f"{subject} --output-dir: the results go to files there.")
        return [RecordingJob(recording, {}) for recording in recordings], 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"Cannot write to {folder}: {error.strerror}.") from None
    planned = plan_outputs(recordings, formats, folder)
    there = set(list_existing(planned))
    if there and not skip_existing and not overwrite:
        first = min(there)
        many = f"{first} is" if len(there) == 1 else f"{first} and {len(there) - 1} more are"
        raise ConfigError(
            f"{many} there already: use --skip-existing to leave out such recordings, or --overwrite to replace the files."
        )
    if skip_existing:
        planned = [_select_missing(targets, there) for targets in planned]
    jobs = [RecordingJob(recording, targets) for recording, targets in zip(recordings, planned, strict=True) if targets]
    return jobs, len(recordings) - len(jobs)


def _select_missing(targets: OutputFiles, there: set[Path]) -> OutputFiles:
    return {format: path for format, path in targets.items() if path not in there}


def _parse_formats(given: Sequence[str]) -> list[str]:
    """Parse the formats; each appears once. `txt`, the name in Whisper's own command, means text.

    Raises:
        BadParameter: a name is not a format.
    """
    names = [name.strip().lower() for value in given for name in value.split(",") if name.strip()]
    names = ["text" if name == "txt" else name for name in names]
    for name in names:
        if name not in SUFFIXES:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(SUFFIXES)}.", param_hint="'--format'")
    if not names:
        raise typer.BadParameter(f"Name at least one of {', '.join(SUFFIXES)}.", param_hint="'--format'")
    return list(dict.fromkeys(names))


def _build_hotword_fields(given: Sequence[str]) -> dict[str, list[str]]:
    """Build the field for hotwords: `keywords` may hold phrases, `hotwords` holds single words."""
    if len(given) > 1 or any("," in value for value in given):
        return {"keywords": [phrase.strip() for value in given for phrase in value.split(",") if phrase.strip()]}
    return {"hotwords": list(given)}


COMMANDS: dict[str, Callable[..., None]] = {"transcribe": transcribe}


log = logging.getLogger(__name__)

SUBTITLE_FORMATS = ("srt", "vtt")
SPEAKER_FORMATS = frozenset((*SUBTITLE_FORMATS, "verbose_json"))
"""Formats with room for speakers."""

FLAG_NAMES = {"keywords": "hotwords"}
"""Form fields whose flag has another name."""


class RecordingJob(Struct, frozen=True):
    """A recording and the output files of its text. Without output files, the text goes to stdout."""

    recording: InputRecording
    targets: OutputFiles


class TranscriptionBatch:
    """The jobs of one command and their outcomes so far.

    Args:
        jobs: the recordings to transcribe.
        failures: earlier failures, such as inputs that do not exist.
        skipped: number of recordings skipped because their output exists.
        replace: whether existing output files may be replaced.
    """

    def __init__(
        self, jobs: Sequence[RecordingJob], failures: Sequence[InputFailure] = (), *, skipped: int = 0, replace: bool = False
    ):
        self.jobs = jobs
        self.failures = list(failures)
        self._total = len(jobs) + len(failures) + skipped
        self._skipped_count = skipped
        self._replace = replace
        self._done_count = 0
        self._audio_s = 0.0
        self._started_at = time.monotonic()
        self._notes_printed: set[str] = set()

    async def run(self, transcriber: Transcriber) -> None:
        """Transcribe all recordings, one after another.

        Raises:
            EardrumError: stdout cannot be written any more.
        """
        for number, job in enumerate(self.jobs, 1):
            name = job.recording.name
            title = f"[{number}/{len(self.jobs)}] {name}" if len(self.jobs) > 1 else name
            begun_at = time.monotonic()
            try:
                written = await self._transcribe(job, title, transcriber)
            except EardrumError as error:
                self.failures.append(InputFailure(name, error.message))
            except OSError as error:
                self.failures.append(InputFailure(name, f"It cannot be read: {error.strerror or error}."))
            except Exception as error:  # a bug that one recording triggers must not lose the others
                log.debug("%s failed", name, exc_info=error)
                self.failures.append(InputFailure(name, f"Unexpected error, please report it: {error!r}."))
            else:
                self._record_result(written, title, time.monotonic() - begun_at)
                if not job.targets:
                    self._print_text(name, written)

    def report(self) -> None:
        """Print a line for each failure, and a summary."""
        for failure in self.failures:
            print_error(f"{failure.name}: {failure.reason}")
        if self._total > 1:
            left = self._total - self._done_count - self._skipped_count - len(self.failures)
            took = format_duration(time.monotonic() - self._started_at)
            audio = f"{format_duration(self._audio_s)} of audio " if self._audio_s else ""
            parts = [f"{self._done_count} transcribed" + (f" ({audio}in {took})" if self._done_count else "")]
            counts = {"skipped (output exists)": self._skipped_count, "failed": len(self.failures), "not started": left}
            parts += [f"{count} {outcome}" for outcome, count in counts.items() if count]
            print_status(f"{self._total} recordings: {', '.join(parts)}.")

    async def _transcribe(self, job: RecordingJob, title: str, transcriber: Transcriber) -> TranscriptTexts:
        """Transcribe one recording and write its output files.

        Raises:
            EardrumError: the recording has no text, or a file cannot be written.
            OSError: the recording cannot be read.
        """
        for target in job.targets.values():
            try:
                check_writable(target)
            except OSError as error:
                raise EardrumError(_describe_unwritable(target, error)) from error
        with show_progress(title) as advance:
            written = await _transcribe_recording(job.recording, transcriber, advance)
        unwritable = []
        for format, target in job.targets.items():
            try:
                write_result(target, written.texts[format], replace=self._replace)
            except OSError as error:
                unwritable.append(_describe_unwritable(target, error))
        if unwritable:
            raise EardrumError(" ".join(unwritable))
        return written

    def _record_result(self, written: TranscriptTexts, title: str, took_s: float) -> None:
        self._done_count += 1
        self._audio_s += written.seconds or 0.0
        for field in written.ignored:
            reason = "only srt and vtt have cues" if field in ("subtitles", *RULE_NAMES) else "the model does not support it"
            self._print_note(f"{FLAG_NAMES.get(field, field)} has no effect: {reason}.")
        for warning in written.warnings:
            print_status(f"{title}: {warning}", YELLOW)
        if len(self.jobs) > 1 and not sys.stderr.isatty():
            audio = "" if written.seconds is None else f"{format_duration(written.seconds)} of audio "
            print_status(f"{title}: {audio}in {format_duration(took_s)}")

    def _print_note(self, line: str) -> None:
        """Print a note that applies to all recordings, once."""
        if line not in self._notes_printed:
            self._notes_printed.add(line)
            print_status(line, YELLOW)

    def _print_text(self, name: str, written: TranscriptTexts) -> None:
        """Print the texts. Subtitles of several recordings are printed with a heading each."""
        for format, text in written.texts.items():
            apart = format in SUBTITLE_FORMATS and self._total > 1
            shown = f"==> {name} <==\n\n{text.strip()}\n" if apart else text.strip()
            with guard_stdout(f"the text of {name}"):
                print(shown, flush=True)


async def _transcribe_recording(
    recording: InputRecording, transcriber: Transcriber, advance: ProgressCallback
) -> TranscriptTexts:
    if not recording.is_piped:
        with recording.path.open("rb"):  # an unreadable file fails before a model is loaded
            pass
        return await transcriber.transcribe(recording.path, recording.path.name, advance)
    pieces = ChunkReader(sys.stdin.fileno() if recording.path == Path(STDIN) else recording.path)
    try:
        written = await transcriber.transcribe(pieces, recording.relative_path.name, advance)
    except EardrumError:
        if pieces.error:
            raise pieces.error from None
        raise
    if pieces.error:
        raise pieces.error
    return written


def _describe_unwritable(target: Path, error: OSError) -> str:
    return f"Cannot write {target}: {error.strerror or error}."
