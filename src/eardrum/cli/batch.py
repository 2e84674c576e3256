"""The command `batch`: transcribes the recordings of a manifest as jobs of a running server, and continues where it was stopped.

A new recording is sent when an earlier one is done, so that neither the server's disk nor this command's memory has to hold all
of them. A journal next to the output lists the jobs that have begun.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from eardrum.cli.options import CertificateOption, KeyOption, LanguageOption, ModelOption, ServerOption, TranslateOption
from eardrum.cli.processes import call_server, format_period
from eardrum.cli.terminal import INTERRUPTED, print_status, print_warning
from eardrum.concurrency import cancel_and_wait
from eardrum.errors import ConfigError, EardrumError, ModelNotFoundError
from eardrum.text import is_encodable, normalize_word

if TYPE_CHECKING:
    from eardrum.client import EardrumClient

MAX_LINE_CHARS = 10 << 20
WAIT_S = 30.0
RETRY_S = 5.0
REFUSED_CLIENT = (401, 403)
"""Statuses that every recording would get."""
UNKNOWN_MODEL = ModelNotFoundError.code
"""The code of the error that every recording without a model of its own would get."""

PROGRESS_S = 10.0
AUDIO_FIELDS = ("file", "file_url", "url", "audio_url")
RESULT_FIELDS = ("pred_text", "error", "words", "word_errors")
"""Fields of a result. A manifest may consist of lines of earlier results, such as those that failed."""
MAX_SECONDS = 1e9
URL_PREFIXES = ("http://", "https://")


@dataclass(slots=True)
class ManifestLine:
    """A recording of a manifest."""

    number: int
    key: str
    audio: str
    """Path or address."""
    form: dict[str, list[str]] = field(default_factory=dict)
    """Form fields that the line sets itself."""
    text: str | None = None
    """The reference, if the line has one."""
    duration: float = 0.0
    given: dict[str, Any] | None = None
    """The line itself, if it is JSON."""
    is_request: bool = False
    """Whether the line is an OpenAI batch line, and so is its result."""


@dataclass(slots=True)
class BatchTotals:
    """The progress of a manifest."""

    recordings: int = 0
    done: int = 0
    failed: int = 0
    audio_s: float = 0.0
    known_s: float = 0.0
    words: int = 0
    errors: int = 0
    """Word errors against the references."""


def run_batch(
    manifest: Annotated[
        Path,
        typer.Argument(metavar="MANIFEST", help="File with a recording a line: NeMo's or OpenAI's JSON, a path, or an address."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", show_default="MANIFEST.out.jsonl", help="File of results.")
    ] = None,
    model: ModelOption = "",
    language: LanguageOption = "",
    translate: TranslateOption = False,
    parallel: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Recordings that the server has at a time.")] = 16,
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
) -> None:
    """Transcribe the recordings of a manifest, a line of results for each.

    The same command continues where it was stopped. If lines have a reference `text`, the word error rate is printed at the end.
    """
    lines = list(read_manifest(manifest))
    form = {name: [value] for name, value in (("model", model), ("language", language)) if value}
    if translate:
        form["task"] = ["translate"]
    output = output or manifest.with_name(f"{manifest.name}.out.jsonl")
    if output.exists() and output.samefile(manifest):
        raise ConfigError(f"--output {output} is the manifest itself: name another file.")
    run = ManifestRun(lines, output, form, parallel)
    try:
        with run:
            asyncio.run(call_server(server, key, certificate, run.run))
    except KeyboardInterrupt:
        print_status(f"Interrupted. {run.describe_progress()} The same command continues.")
        raise typer.Exit(INTERRUPTED) from None
    print_status(run.describe_end())
    if run.totals.failed:
        raise typer.Exit(1)


def read_manifest(path: Path) -> Iterator[ManifestLine]:
    """Read the lines of a manifest. Relative paths are relative to it.

    Raises:
        ConfigError: it cannot be read, or a line is none of the known kinds, or two have one key.
    """
    keys: set[str] = set()
    try:
        # Editors on Windows write a mark at the beginning; names of files may be no UTF-8.
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            number = 0
            while line := file.readline(MAX_LINE_CHARS + 1):
                number += 1
                if len(line) > MAX_LINE_CHARS:
                    raise ConfigError(f"{path}:{number}: the line is longer than {MAX_LINE_CHARS:,} characters.")
                if "\0" in line or (line.startswith("{") and not is_encodable(line)):
                    raise ConfigError(f"The manifest {path} cannot be read: line {number} is not UTF-8.")
                if line.strip():
                    found = _parse_line(line.strip(), number, path)
                    if found.key in keys:
                        raise ConfigError(f"{path}:{number}: the key {found.key!r} is there twice.")
                    keys.add(found.key)
                    yield found
    except OSError as error:
        raise ConfigError(f"The manifest {path} cannot be read: {error.strerror or error}.") from None


def _parse_line(line: str, number: int, manifest: Path) -> ManifestLine:
    if not line.startswith("{"):
        return ManifestLine(number, str(number), _resolve(line, manifest))
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{manifest}:{number}: the line is not JSON: {error}.") from None
    if isinstance(given.get("body"), dict):
        return _parse_request(given, number, manifest)
    audio = given.get("audio_filepath")
    if not isinstance(audio, str) or not audio:
        raise ConfigError(f"{manifest}:{number}: the line has neither audio_filepath nor a body with a file.")
    if given.get("offset"):
        raise ConfigError(f"{manifest}:{number}: `offset` is not supported: cut the recording.")
    language = given.get("lang") or given.get("source_lang")
    form = {"language": [str(language)]} if language else {}
    if given.get("taskname") in ("ast", "s2t_translation", "translate"):
        form["task"] = ["translate"]
    text = given.get("text")
    return ManifestLine(
        number,
        _choose_key(given.get("id"), number),
        _resolve(audio, manifest),
        form,
        text if isinstance(text, str) else None,
        _read_seconds(given.get("duration")),
        {name: value for name, value in given.items() if name not in RESULT_FIELDS},
    )


def _parse_request(given: dict[str, Any], number: int, manifest: Path) -> ManifestLine:
    body = dict(given["body"])
    places = [place for name in AUDIO_FIELDS if (place := body.pop(name, None))]
    if len(places) != 1 or not isinstance(places[0], str):
        raise ConfigError(f"{manifest}:{number}: the body must name the audio once, in `file` or `file_url`.")
    form = {
        name: [item if isinstance(item, str) else json.dumps(item) for item in _as_list(value) if item is not None]
        for name, value in body.items()
    }
    if str(given.get("url", "")).endswith("/translations"):
        form["task"] = ["translate"]
    key = _choose_key(given.get("custom_id"), number)
    return ManifestLine(number, key, _resolve(places[0], manifest), form, given=given, is_request=True)


def _choose_key(id: Any, number: int) -> str:
    """Return the key of a line: its id, which may be 0, or its number."""
    return str(number if id in (None, "") else id)


def _read_seconds(value: Any) -> float:
    """Return a length in seconds; 0 if the value is none."""
    return float(value) if isinstance(value, int | float) and 0 < value < MAX_SECONDS else 0.0


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _resolve(audio: str, manifest: Path) -> str:
    return audio if audio.startswith(URL_PREFIXES) else str(manifest.parent / audio)


class ManifestRun:
    """Works through the lines of a manifest that have no result yet."""

    def __init__(self, lines: Sequence[ManifestLine], output: Path, form: Mapping[str, list[str]], parallel: int):
        self.totals = BatchTotals(len(lines), known_s=sum(line.duration for line in lines))
        self._lines = lines
        self._form = form
        self._parallel = parallel
        self._output = output
        self._journal_path = output.with_name(f"{output.name}.journal")
        self._counts_errors = bool(find_spec("rapidfuzz"))
        if not self._counts_errors and any(line.text is not None for line in lines):
            print_warning("Word error rates need a package: pip install 'eardrum[wer]'.")
        self._jobs: dict[str, str] = {}
        """Jobs, also of an earlier run, by the digests of their requests: the manifest may have changed since then."""
        self._results: IO[bytes]
        self._journal: IO[bytes]
        self._printed_at = time.monotonic()
        self._began_at = time.monotonic()
        self._resumed_s = 0.0

    def __enter__(self) -> None:
        try:
            ended: dict[str, str] = {}
            for record in _read_records(self._output):
                self._count_result(record)
                ended[_get_key(record)] = str(record.get("audio_filepath") or "")
            for line in self._lines:
                self._check_result(line, ended.get(line.key, ""))
            self._jobs = {str(record.get("key")): str(record.get("job")) for record in _read_records(self._journal_path)}
            self._results = self._output.open("ab")
            self._journal = self._journal_path.open("ab")
        except OSError as error:
            raise ConfigError(f"{self._output} cannot be written: {error.strerror}.") from None
        except ValueError:
            raise ConfigError(f"{self._output}, or its journal, holds something else than results: name another file.") from None
        self._lines = [line for line in self._lines if line.key not in ended]
        self._resumed_s = self.totals.audio_s
        if ended:
            print_status(f"{len(ended):,} of {self.totals.recordings:,} recordings are done already.")

    def __exit__(self, *_: object) -> None:
        for file in (self._results, self._journal):
            with suppress(OSError):  # it is told already: every line is written at once
                file.close()
        if self.totals.done + self.totals.failed == self.totals.recordings:
            self._journal_path.unlink(missing_ok=True)

    def _check_result(self, line: ManifestLine, before: str) -> None:
        """Check that the result that a line has is that of its recording. Folders may differ: paths may be relative.

        Raises:
            ConfigError: it is that of the recording `before`.
        """
        if before and Path(before).name != Path(line.audio).name:
            raise ConfigError(
                f"{self._output} has the result of {before} for line {line.number}, which is {line.audio} now: the manifest has "
                "changed. Name another file of results with --output, or give the lines an `id`."
            )

    async def run(self, client: EardrumClient) -> None:
        """Transcribe what is left.

        Raises:
            EardrumError: the server refuses the client for all recordings.
        """
        waiting = iter(self._lines)

        async def work() -> None:
            for line in waiting:
                await self._transcribe(client, line)

        if workers := [asyncio.ensure_future(work()) for _ in range(min(self._parallel, len(self._lines)))]:
            try:
                await asyncio.gather(*workers)
            finally:
                await cancel_and_wait(*workers)

    async def _transcribe(self, client: EardrumClient, line: ManifestLine) -> None:
        from eardrum.client import ServerAnswerError

        while True:
            try:
                job = await self._await_job(client, line)
                result = json.loads(await client.get_result(job["id"], "verbose_json")) if job["status"] == "completed" else None
                break
            except ServerAnswerError as error:
                if error.is_transient:
                    print_warning(f"{error.message} Trying again in {RETRY_S:g} s.")
                    await asyncio.sleep(RETRY_S)
                elif error.http_status in REFUSED_CLIENT or (error.answered_code == UNKNOWN_MODEL and "model" not in line.form):
                    raise
                elif error.http_status != 404 or not self._jobs.pop(self._make_key(line), ""):  # else an earlier job was deleted
                    self._write_result(line, None, {"message": error.message}, 0.0)
                    return
            except OSError as error:
                self._write_result(line, None, {"message": f"{line.audio}: {error.strerror}."}, 0.0)
                return
        if result:
            self._write_result(line, result, None, job["progress"]["seconds"])
        else:
            self._write_result(line, None, job["error"] or {"message": f"The job was {job['status']}."}, 0.0)
        with suppress(EardrumError):
            await client.delete_job(job["id"])

    async def _await_job(self, client: EardrumClient, line: ManifestLine) -> dict[str, Any]:
        """Return the line's job once it has ended."""
        request = self._make_key(line)
        id = self._jobs.get(request)
        if not id:
            form = {**self._form, **line.form}
            form.pop("response_format", None)
            audio = line.audio if line.audio.startswith(URL_PREFIXES) else Path(line.audio)
            created = await client.create_job(audio, form, request)
            id = self._jobs[request] = created["id"]
            self._write_record(self._journal, {"key": request, "job": id})
        while True:
            job = await client.get_job(id, wait=WAIT_S)
            if job["ended_at"]:
                return job
            self._print_progress()

    def _make_key(self, line: ManifestLine) -> str:
        text = json.dumps([str(self._output.resolve()), line.key, line.audio, self._form, line.form], sort_keys=True)
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()

    def _write_result(
        self, line: ManifestLine, result: dict[str, Any] | None, error: dict[str, Any] | None, seconds: float
    ) -> None:
        if line.is_request:
            response = {"status_code": 200, "request_id": line.key, "body": result} if result else None
            record: dict[str, Any] = {"custom_id": line.key, "response": response, "error": error}
        else:
            record = {**(line.given or {"audio_filepath": line.audio}), "id": line.key}
            record |= (
                {"pred_text": result["text"], "duration": seconds} if result else {"error": error["message"] if error else ""}
            )
            if result and line.text is not None and self._counts_errors:
                record["words"], record["word_errors"] = compare_words(line.text, result["text"])
        self._write_record(self._results, record)
        self._count_result(record)
        self._print_progress()

    def _write_record(self, file: IO[bytes], record: dict[str, Any]) -> None:
        """Write a line.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            file.write(_encode_record(record))
            file.flush()
        except OSError as error:
            raise ConfigError(f"{self._output} cannot be written: {error.strerror}. The same command continues.") from None

    def _count_result(self, record: dict[str, Any]) -> None:
        if record.get("error"):
            self.totals.failed += 1
            return
        self.totals.done += 1
        body = (record.get("response") or {}).get("body") or record
        self.totals.audio_s += _read_seconds(body.get("duration"))
        self.totals.words += int(record.get("words") or 0)
        self.totals.errors += int(record.get("word_errors") or 0)

    def _print_progress(self) -> None:
        if time.monotonic() - self._printed_at >= PROGRESS_S:
            self._printed_at = time.monotonic()
            print_status(self.describe_progress())

    def describe_progress(self) -> str:
        """Describe how far the run is: recordings and hours of audio."""
        totals = self.totals
        known = f" of {format_period(totals.known_s)}" if totals.known_s > totals.audio_s else ""
        rate = (totals.audio_s - self._resumed_s) / max(time.monotonic() - self._began_at, 0.001)
        failed = f", {totals.failed:,} failed" if totals.failed else ""
        ended = totals.done + totals.failed
        audio = f"{format_period(totals.audio_s)}{known} of audio"
        return f"{ended:,} of {totals.recordings:,} recordings, {audio}, {rate:.0f}x{failed}."

    def describe_end(self) -> str:
        """Describe the results, with the word error rate where lines had references."""
        totals = self.totals
        rate = f" WER {100 * totals.errors / totals.words:.2f} % of {totals.words:,} words." if totals.words else ""
        return f"{self.describe_progress()}{rate} Results: {self._output}"


def _encode_record(record: dict[str, Any]) -> bytes:
    """Encode a record as a line. Names of files that are not UTF-8 can only be written as escapes."""
    line = json.dumps(record, ensure_ascii=False)
    return f"{line if is_encodable(line) else json.dumps(record)}\n".encode()


def _get_key(record: dict[str, Any]) -> str:
    """Return the key of the line whose result a record is."""
    return str(record.get("custom_id" if "response" in record else "id"))


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Read records; a line that was cut off when the writer was killed is removed.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = 0
        while line := file.readline():
            try:
                record = json.loads(line)
            except ValueError:
                if line.endswith(b"\n") or not line.startswith(b"{"):
                    raise
                file.seek(end)
                file.truncate()
                return
            if not isinstance(record, dict):
                raise ValueError
            if not line.endswith(b"\n"):
                file.write(b"\n")
            end = file.tell()
            yield record


def compare_words(reference: str, text: str) -> tuple[int, int]:
    """Return the words of a reference, and how many of them must be changed, removed or added to become the text."""
    from rapidfuzz.distance import Levenshtein

    expected, heard = ([word for part in spoken.split() if (word := normalize_word(part))] for spoken in (reference, text))
    return len(expected), Levenshtein.distance(expected, heard)


COMMANDS = {"batch": run_batch}
