"""Writes the files of an ended batch: a line for each item, with its result or with its error."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack

from eardrum.jobs.blobs import BlobFolder, BlobWriter
from eardrum.jobs.items import LEASE_S, load_transcript
from eardrum.jobs.records import FileRecord, ItemStatus, JobRecord, create_file_id
from eardrum.jobs.store import JobStore
from eardrum.jobs.wire import JobWire

PAGE_ITEMS = 100
OUTPUT_PURPOSE = "batch_output"


async def write_output(store: JobStore, blobs: BlobFolder, wire: JobWire, job: JobRecord, keep_s: float) -> list[FileRecord]:
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
                transcript = await load_transcript(store, item) if item.status is ItemStatus.DONE else None
                line = await asyncio.to_thread(wire.render_line, job, item, transcript)
                lines["output" if transcript else "errors"].append(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            for kind, found in lines.items():
                if found and kind not in writers:
                    writers[kind] = await stack.enter_async_context(blobs.open_writer())
                if found:
                    await writers[kind].write(b"".join(found))
            await store.renew_job(job, time.time(), LEASE_S)
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
