"""Recordings one after another: one that fails costs nothing but itself, and all that failed is told at the end."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eardrum.commands.pieces import Pieces
from eardrum.commands.progress import Advance, duration, say, show_progress
from eardrum.commands.recordings import STDIN, Failure, Recording
from eardrum.commands.results import Targets, check_writable, write_result
from eardrum.errors import EardrumError
from eardrum.subtitles import RULES

if TYPE_CHECKING:
    from eardrum.offline import Transcriber, Written

log = logging.getLogger(__name__)

SUBTITLES = ("srt", "vtt")

FLAGS = {"keywords": "hotwords"}
"""Flags that are called otherwise than the fields they become."""


@dataclass(frozen=True, slots=True)
class Job:
    """A recording, and the files its text goes to; if there are none it goes to stdout."""

    recording: Recording
    targets: Targets


class Batch:
    """What is to be done, and what became of it so far.

    Args:
        jobs: what is to be done.
        failures: what has failed before that, such as inputs that do not exist.
        skipped: recordings whose text is there.
        replace: files that are there may be written over.
    """

    def __init__(self, jobs: Sequence[Job], failures: Sequence[Failure] = (), *, skipped: int = 0, replace: bool = False):
        self.jobs = jobs
        self.failures = list(failures)
        self._total = len(jobs) + len(failures) + skipped
        self._skipped = skipped
        self._replace = replace
        self._done = 0
        self._audio_s = 0.0
        self._begun_at = time.monotonic()
        self._noted: set[str] = set()

    async def run(self, transcriber: Transcriber) -> None:
        """Do it.

        Raises:
            EardrumError: there is no use in going on, because stdout takes nothing more.
        """
        for number, job in enumerate(self.jobs, 1):
            name = job.recording.name
            title = f"[{number}/{len(self.jobs)}] {name}" if len(self.jobs) > 1 else name
            begun_at = time.monotonic()
            try:
                written = await self._transcribe(job, title, transcriber)
            except EardrumError as error:
                self.failures.append(Failure(name, error.message))
            except OSError as error:
                self.failures.append(Failure(name, f"It cannot be read: {error.strerror or error}."))
            except Exception as error:  # a mistake of ours with one recording is no reason to lose the others
                log.debug("%s failed", name, exc_info=error)
                self.failures.append(Failure(name, f"It failed in a way that nobody foresaw: {error!r}."))
            else:
                self._add(written, title, time.monotonic() - begun_at)
                if not job.targets:
                    self._print(name, written)

    def report(self) -> None:
        """Say what failed, a line each, and what all of it amounted to."""
        for failure in self.failures:
            say(f"eardrum: {failure.name}: {failure.reason}")
        if self._total > 1:
            left = self._total - self._done - self._skipped - len(self.failures)
            took = duration(time.monotonic() - self._begun_at)
            audio = f"{duration(self._audio_s)} of audio " if self._audio_s else ""
            parts = [f"{self._done} transcribed" + (f" ({audio}in {took})" if self._done else "")]
            counts = {"skipped, as their text is there": self._skipped, "failed": len(self.failures), "not begun": left}
            parts += [f"{count} {what}" for what, count in counts.items() if count]
            say(f"{self._total} recordings: {', '.join(parts)}.")

    async def _transcribe(self, job: Job, title: str, transcriber: Transcriber) -> Written:
        """The texts, which are in their files by then.

        Raises:
            EardrumError: the recording has no text, or it cannot be written.
            OSError: the recording cannot be read.
        """
        for target in job.targets.values():
            try:
                check_writable(target)
            except OSError as error:
                raise EardrumError(_unwritable(target, error)) from error
        with show_progress(title) as advance:
            written = await _heard(job.recording, transcriber, advance)
        unwritable = []
        for format, target in job.targets.items():
            try:
                write_result(target, written.texts[format], replace=self._replace)
            except OSError as error:
                unwritable.append(_unwritable(target, error))
        if unwritable:
            raise EardrumError(" ".join(unwritable))
        return written

    def _add(self, written: Written, title: str, took_s: float) -> None:
        self._done += 1
        self._audio_s += written.seconds or 0.0
        for field in written.ignored:
            why = "only srt and vtt have cues" if field in ("subtitles", *RULES) else "the model does not take it"
            self._note(f"{FLAGS.get(field, field)} has no effect: {why}.")
        for warning in written.warnings:
            say(f"{title}: {warning}")
        if len(self.jobs) > 1 and not sys.stderr.isatty():
            audio = "" if written.seconds is None else f"{duration(written.seconds)} of audio "
            say(f"{title}: {audio}in {duration(took_s)}")

    def _note(self, line: str) -> None:
        """Say what holds for all recordings, once."""
        if line not in self._noted:
            self._noted.add(line)
            say(line)

    def _print(self, name: str, written: Written) -> None:
        """Print the text. Subtitles end with an empty line, and where there are several, each begins with its name."""
        for format, text in written.texts.items():
            apart = format in SUBTITLES and self._total > 1
            shown = f"==> {name} <==\n\n{text.strip()}\n" if apart else text.strip()
            try:
                print(shown, flush=True)
            except BrokenPipeError:
                raise  # whoever reads has enough
            except OSError as error:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python tries again at its end
                raise EardrumError(f"The text of {name} cannot be written to stdout: {error.strerror}.") from error


async def _heard(recording: Recording, transcriber: Transcriber, advance: Advance) -> Written:
    if not recording.piped:
        with recording.path.open("rb"):  # what cannot be read is told before a model is loaded
            pass
        return await transcriber.transcribe(recording.path, recording.path.name, advance)
    pieces = Pieces(sys.stdin.fileno() if recording.path == Path(STDIN) else recording.path)
    try:
        written = await transcriber.transcribe(pieces, recording.below.name, advance)
    except EardrumError:
        if pieces.error:
            raise pieces.error from None
        raise
    if pieces.error:
        raise pieces.error
    return written


def _unwritable(target: Path, error: OSError) -> str:
    return f"{target} cannot be written: {error.strerror or error}."
