"""Reads the input file of a batch, whose lines become items, and writes its output files. Some hundred items are in memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import IO, Any

from eardrum.errors import EardrumError, FileElsewhereError, NotFoundError
from eardrum.jobs.blobs import BlobFolder, BlobWriter
from eardrum.jobs.items import LEASE_S, load_transcript
from eardrum.jobs.line_format import BatchLineFormat, ParsedLine
from eardrum.jobs.records import OUTPUT_PURPOSE, AudioReference, FileRecord, ItemStatus, JobRecord, create_file_id
from eardrum.jobs.store import MAX_TRIES, JobStore

LOT_LINES, LOT_BYTES = 200, 4 << 20
"""Lines, and bytes, that are parsed in one go."""

YIELD_ITEMS = 20
"""Items whose models are found before the event loop runs again."""

MAX_ERRORS = 100
"""Faults that are reported."""

MAX_KEY_CHARS = 512

PAGE_ITEMS = 10
"""Items whose results are written in one go, within the lease of the job."""


class InputFault(Exception):  # noqa: N818 -- a fault of the client's file, not of the server
    """A fault of an input file, in OpenAI's words."""

    def __init__(self, message: str, code: str, line: int | None = None, param: str | None = None):
        super().__init__(message)
        self.report = {"code": code, "message": message, "line": line, "param": param}


class BatchValidator:
    """Validates one batch.

    Args:
        store: where the items go.
        blobs: where the input file is, and audio from its lines goes.
        line_format: parses the lines.
        max_items: most lines.
        max_line_bytes: longest line.
        keep_s: how long files are kept.
        max_open: most items of the job's owner, in all jobs, that have not ended; None: any number.
    """

    def __init__(
        self,
        store: JobStore,
        blobs: BlobFolder,
        line_format: BatchLineFormat,
        max_items: int,
        max_line_bytes: int,
        keep_s: float,
        *,
        max_open: int | None = None,
    ):
        self._store = store
        self._blobs = blobs
        self._line_format = line_format
        self._max_items = max_items
        self._max_line_bytes = max_line_bytes
        self._keep_s = keep_s
        self._max_open = max_open
        self._keys: set[str] = set()
        self._faults: list[dict[str, Any]] = []
        self._count = 0

    async def validate(self, job: JobRecord) -> list[dict[str, Any]]:
        """Add the items of the job's input file; returns the faults because of which the job has failed, if there are any.

        Raises:
            LeaseLostError: the job was cancelled, or another owner validates it.
            FileElsewhereError: the input file is not on this server.
        """
        async with AsyncExitStack() as stack:
            try:
                path = await stack.enter_async_context(self._blobs.open_copy(job.input_file))
                file = stack.enter_context(await asyncio.to_thread(path.open, "rb"))
            except FileNotFoundError:
                return [await self._report_missing_file(job)]
            lots = self._read_lots(file)
            while lot := await asyncio.to_thread(lambda: next(lots, None)):
                parsed = await asyncio.to_thread(self._parse_lot, lot, job.endpoint)
                if not self._faults:
                    await self._add_lot(job, parsed)
                if len(self._faults) >= MAX_ERRORS:
                    break
        if not self._count and not self._faults:
            self._faults.append(InputFault("The file holds no lines.", "empty_file").report)
        return self._faults[:MAX_ERRORS]

    async def _report_missing_file(self, job: JobRecord) -> dict[str, Any]:
        """Return the fault of a job whose input file is missing.

        Raises:
            FileElsewhereError: another server may have the file, and there are tries left.
        """
        message = f"The file {job.input_file} was deleted."
        try:
            await self._store.check_missing_file(job.input_file, time.time())
        except FileElsewhereError as error:
            if job.epoch < MAX_TRIES:
                raise
            message = error.message
        return InputFault(message, "file_not_found").report

    def _read_lots(self, file: IO[bytes]) -> Iterator[list[tuple[int, bytes]]]:
        """Yield lots of lines that are not empty, with their numbers from 1 on."""
        lot: list[tuple[int, bytes]] = []
        size = number = 0
        while line := file.readline(self._max_line_bytes + 1):
            number += 1
            if len(line) > self._max_line_bytes:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LOT_BYTES)
                line = b""
                lot.append((number, line))
            elif stripped := line.strip():
                lot.append((number, stripped))
            size += len(line)
            if len(lot) >= LOT_LINES or size >= LOT_BYTES:
                yield lot
                lot, size = [], 0
        if lot:
            yield lot

    def _parse_lot(self, lot: list[tuple[int, bytes]], endpoint: str) -> list[ParsedLine]:
        found = []
        for number, line in lot:
            try:
                found.append(self._parse_line(line, endpoint))
            except InputFault as fault:
                self._faults.append({**fault.report, "line": number})
            except EardrumError as error:
                self._faults.append(InputFault(error.message, error.code, number, error.param).report)
        return found

    def _parse_line(self, line: bytes, endpoint: str) -> ParsedLine:
        self._count += 1
        if self._count > self._max_items:
            raise InputFault(f"The file has more than {self._max_items:,} lines (jobs.max_items).", "too_many_tasks")
        if not line:
            raise InputFault(f"The line is longer than {self._max_line_bytes:,} bytes (limits.json_bytes).", "line_too_long")
        parsed = self._line_format.parse_line(line, endpoint)
        key = parsed.item.key
        if len(key) > MAX_KEY_CHARS:
            raise InputFault(f"custom_id is longer than {MAX_KEY_CHARS} characters.", "invalid_custom_id", param="custom_id")
        if key in self._keys:
            raise InputFault(f"The custom_id {key!r} is in the file twice.", "duplicate_custom_id", param="custom_id")
        self._keys.add(key)
        return parsed

    async def _add_lot(self, job: JobRecord, lot: list[ParsedLine]) -> None:
        first = self._count - len(lot)
        named = [line.item.source.file for line in lot if line.item.source.file]
        known = await self._store.find_files(job.owner, named)
        for number, line in enumerate(lot):
            if number % YIELD_ITEMS == 0:
                await asyncio.sleep(0)
            item = line.item
            if item.source.file and item.source.file not in known and not item.error:
                item.error = NotFoundError(f"There is no file {item.source.file}.", param="file").to_json()
            if not item.error:
                await self._line_format.resolve_item(item)
        valid = [line for line in lot if not line.item.error]
        if await self._is_owner_over(job, len(valid)):
            message = f"With these lines, the key has more than {self._max_open:,} unfinished recordings in jobs (max_job_items)."
            self._faults.append(InputFault(message, "too_many_tasks").report)
            return
        for line in valid:
            if line.audio:
                line.item.source = await self._store_audio(job, line)
        await self._store.add_items(job, first, [line.item for line in lot], time.time(), LEASE_S)

    async def _is_owner_over(self, job: JobRecord, more: int) -> bool:
        """Whether the owner of the job may not have so many more items."""
        if not more or self._max_open is None:
            return False
        return await self._store.count_open_items(job.owner) + more > self._max_open

    async def _store_audio(self, job: JobRecord, line: ParsedLine) -> AudioReference:
        """Store the audio that a line holds as a file of its item's own."""
        now = time.time()
        file = FileRecord(create_file_id(), job.owner, "inline", line.item.source.name, len(line.audio), now)
        async with self._blobs.open_writer() as writer:
            await writer.write(line.audio)
            await writer.save(file.id)
        await self._store.add_file(replace(file, hidden=True, expires_at=now + self._keep_s))
        return AudioReference(file=file.id, name=line.item.source.name)


async def write_output(
    store: JobStore, blobs: BlobFolder, line_format: BatchLineFormat, job: JobRecord, keep_s: float
) -> list[FileRecord]:
    """Write the files of a batch whose items have all ended, and set their ids in `job`; returns their records.

    Raises:
        LeaseLostError: another owner has claimed the job.
        StorageFullError: the disk is full.
    """
    files: list[FileRecord] = []
    async with AsyncExitStack() as stack:
        writers: dict[str, BlobWriter] = {}
        after = -1
        while items := await store.list_items(job.id, after=after, limit=PAGE_ITEMS):
            lines: dict[str, list[bytes]] = {"output": [], "errors": []}
            for item in items:
                is_done = item.status is ItemStatus.DONE
                transcript = await load_transcript(store, item) if is_done and not item.is_speech else None
                line = await asyncio.to_thread(line_format.render_line, job, item, transcript)
                lines["output" if is_done else "errors"].append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            for kind, found in lines.items():
                if found and kind not in writers:
                    writers[kind] = await stack.enter_async_context(blobs.open_writer())
                if found:
                    await writers[kind].write(b"".join(found))
            await store.renew_job(job, job.status, time.time(), LEASE_S)
            after = items[-1].n
        now = time.time()
        expires_at = now + float(job.body.get("output_expires_after") or keep_s)
        for kind, writer in writers.items():
            name = f"{job.id}_{'output' if kind == 'output' else 'error'}.jsonl"
            file = FileRecord(create_file_id(), job.owner, OUTPUT_PURPOSE, name, writer.size, now, expires_at)
            await writer.save(file.id)
            files.append(file)
            if kind == "output":
                job.output_file = file.id
            else:
                job.error_file = file.id
    return files
