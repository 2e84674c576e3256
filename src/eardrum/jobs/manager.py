"""The jobs of a server, for the protocols: their store is opened when the first request needs it.

At its start, the server only looks for the file of an earlier server's store. Before the first request, nothing else of this
package, and no SQLite, is imported unless there is one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from contextlib import suppress
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING

from eardrum.concurrency import drop_error
from eardrum.errors import ConfigError, EardrumError, KeyLimitError, ShuttingDownError, StorageFullError
from eardrum.gateway.key_usage import CURRENT_KEY
from eardrum.gateway.service import Service
from eardrum.jobs.records import ItemRecord, ItemStatus, JobRecord, JobStatus, OpenItems
from eardrum.transcription import Transcript

if TYPE_CHECKING:
    from eardrum.jobs.blobs import BlobFolder
    from eardrum.jobs.database import Database
    from eardrum.jobs.feed import JobFeed
    from eardrum.jobs.line_format import BatchLineFormat
    from eardrum.jobs.store import JobStore
    from eardrum.jobs.worker import JobWorker

log = logging.getLogger(__name__)

DATABASE_NAME = "jobs.sqlite"

RETRY_S = 30.0
"""Seconds between attempts to open the store of an earlier server, whose database may not be up yet."""

COUNT_TIMEOUT_S = 3.0
"""Seconds that a count for `/metrics` may take: Prometheus waits for 10 s for all of them."""


class OpenJobs:
    """The parts of a server's jobs, once they are open."""

    def __init__(self, store: JobStore, blobs: BlobFolder, worker: JobWorker, feed: JobFeed):
        self.store = store
        self.blobs = blobs
        self.worker = worker
        self.feed = feed
        # The worker must not act for the client whose request came first.
        self.working = asyncio.create_task(worker.run(), context=Context())

    async def cancel_job(self, job: JobRecord) -> JobRecord:
        """Cancel a job, and give up those of its recordings that run here."""
        found = await self.store.cancel_job(job.id, time.time()) or job
        self.worker.stop_job(job.id, JobStatus.CANCELLED)
        self.worker.wake()
        self.feed.publish(job.id)
        return found

    async def delete_job(self, job: JobRecord) -> None:
        """Delete a job that has ended, with its results."""
        for file in await self.store.delete_job(job.id):
            await self.blobs.remove(file)

    async def load_transcript(self, item: ItemRecord) -> Transcript:
        """Load the transcript of a recording, as far as it is finished."""
        from eardrum.jobs.items import load_transcript

        return await load_transcript(self.store, item)


class JobManager:
    """Opens a server's jobs when they are needed, and closes them in order. `line_format` is that of batches."""

    def __init__(self, service: Service, line_format: BatchLineFormat):
        self._service = service
        self._settings = service.settings.jobs
        self._line_format = line_format
        self._opening = asyncio.Lock()
        self._open: OpenJobs | None = None
        self._closing = asyncio.Event()
        self._resuming: asyncio.Task[None] | None = None
        service.shutdown_callbacks.append(self.begin_shutdown)

    def start(self) -> None:
        """Continue the jobs of an earlier server, if there are any."""
        if self._settings.database or (self._find_folder() / DATABASE_NAME).exists():
            self._resuming = asyncio.create_task(self._resume())

    async def _resume(self) -> None:
        message = ""
        while not self._closing.is_set():
            try:
                await self.open()
                return
            except EardrumError as error:
                if error.message != message:
                    message = error.message
                    log.error("Jobs are not being processed: %s Trying again every %g s.", message, RETRY_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), RETRY_S)

    async def open(self) -> OpenJobs:
        """Open the store, unless it is open.

        Raises:
            ConfigError: it cannot be used; the message says why.
            ShuttingDownError: the server stops.
        """
        async with self._opening:
            if self._closing.is_set():
                raise ShuttingDownError("The server is shutting down.", retry_after=5.0)
            if not self._open:
                self._open = await self._open_parts()
            return self._open

    async def _open_parts(self) -> OpenJobs:
        from eardrum.jobs.feed import JobFeed
        from eardrum.jobs.store import JobStore
        from eardrum.jobs.worker import JobWorker

        folder = self._find_folder()
        blobs = self._create_blobs(folder / "files")
        try:
            await asyncio.to_thread(blobs.create)
        except OSError as error:
            raise ConfigError(f"The folder of jobs {folder} cannot be used: {error.strerror}. Set jobs.dir.") from error
        store = JobStore(self._create_database(folder))
        await store.open()
        feed = JobFeed(shared=store.database.shared)
        worker = JobWorker(self._service, store, blobs, self._line_format, feed, secrets.token_hex(8))
        log.info("Jobs are kept in %s.", folder)
        return OpenJobs(store, blobs, worker, feed)

    def _create_blobs(self, folder: Path) -> BlobFolder:
        if self._settings.bucket:
            try:
                from eardrum.jobs.bucket import BlobBucket
            except ImportError:
                raise ConfigError("jobs.bucket needs a package: pip install 'eardrum[s3]'.") from None
            return BlobBucket(self._settings.bucket, folder, self._settings.free_bytes)
        from eardrum.jobs.blobs import BlobFolder

        return BlobFolder(folder, self._settings.free_bytes)

    def _create_database(self, folder: Path) -> Database:
        if self._settings.database:
            try:
                from eardrum.jobs.postgres import PostgresDatabase
            except ImportError:
                raise ConfigError("jobs.database needs a package: pip install 'eardrum[postgres]'.") from None
            return PostgresDatabase(self._settings.database)
        from eardrum.jobs.database import SqliteDatabase

        return SqliteDatabase(folder / DATABASE_NAME)

    def _find_folder(self) -> Path:
        if self._settings.dir:
            return self._settings.dir
        state = os.environ.get("XDG_STATE_HOME")
        return (Path(state) if state else Path.home() / ".local" / "state") / "eardrum"

    def begin_shutdown(self) -> None:
        """End the waits of clients, and give all work back."""
        self._closing.set()
        if self._open:
            self._open.feed.close()
            self._open.worker.begin_shutdown()

    async def close(self) -> None:
        """Close the store once everything is given back."""
        self.begin_shutdown()
        if self._resuming:
            await asyncio.wait([self._resuming])
        async with self._opening:
            if parts := self._open:
                self._open = None
                parts.worker.begin_shutdown()
                await asyncio.wait([parts.working])
                drop_error(parts.working)
                await parts.store.close()

    @property
    def is_open(self) -> bool:
        """Whether jobs were used since the server's start, or are there from before."""
        return self._open is not None

    async def count_open_items(self) -> dict[tuple[str, ItemStatus], OpenItems] | None:
        """Count the recordings that wait and that run, by model and state; None if the store does not answer."""
        if not self._open:
            return None
        try:
            async with asyncio.timeout(COUNT_TIMEOUT_S):
                return await self._open.store.count_open_by_model()
        except (EardrumError, TimeoutError):
            return None

    def check_webhook(self, address: str) -> None:
        """Check that webhooks can be sent to the address.

        Raises:
            InvalidRequestError: they cannot.
        """
        from eardrum.jobs.webhooks import check_address

        check_address(address, self._settings)

    async def check_room(self, parts: OpenJobs, bytes: int = 0) -> None:
        """Check that a new file of so many bytes is within the limits of the disk, and of the client's key.

        Raises:
            StorageFullError: it is not.
        """
        await parts.blobs.check_room()
        if self._settings.disk_bytes and await parts.store.sum_bytes() + bytes > self._settings.disk_bytes:
            raise StorageFullError(f"The files of jobs may have {self._settings.disk_bytes:,} bytes together (jobs.disk_bytes).")
        usage = CURRENT_KEY.get()
        limit = usage.settings.max_file_bytes if usage else None
        if usage and limit and await parts.store.sum_bytes(get_owner()) + bytes > limit:
            raise StorageFullError(f"The files of {usage.name} may have {limit:,} bytes together (max_file_bytes).")

    async def check_items(self, parts: OpenJobs) -> None:
        """Check that the client's key may have one more recording in its jobs.

        Raises:
            KeyLimitError: it may not.
        """
        usage = CURRENT_KEY.get()
        limit = usage.settings.max_job_items if usage else None
        if usage and limit and (count := await parts.store.count_open_items(get_owner())) >= limit:
            message = f"{usage.name} has {count} recordings in jobs that have not ended, its limit (max_job_items)."
            raise KeyLimitError(message, retry_after=60.0)


def get_owner() -> str:
    """Return the owner of what the current request makes: its key's digest; empty without keys."""
    usage = CURRENT_KEY.get()
    return usage.settings.digest.hex() if usage else ""
