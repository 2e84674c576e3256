"""The bytes of files in a bucket of S3, or of another object storage. Needs the package `obstore`.

A file is written on this machine, and sent to the bucket once it is complete. To be read, it is fetched into a file here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Set
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from eardrum.errors import BusyError, ConfigError
from eardrum.jobs.blobs import ORPHAN_AGE_S, BlobFolder, get_blob_name

FETCH_BYTES = 8 << 20
"""Bytes of a file that are fetched by one request, which has its own time limit, and are in memory meanwhile."""


class BlobBucket(BlobFolder):
    """Files by their ids in a bucket. The folder has those that are being written, and copies of those that are being read.

    Args:
        address: the bucket and the folder in it, as in `s3://bucket/folder`. Nothing else may be in that folder.
        folder: the folder on this machine.
        free_bytes: room that stays free on the disk of that folder.

    Raises:
        ConfigError: this is no address of a bucket.
    """

    is_remote = True

    def __init__(self, address: str, folder: Path, free_bytes: int):
        super().__init__(folder, free_bytes)
        self._address = address
        try:
            self._bucket = from_url(address, client_options={"allow_http": True})
        except (BaseError, ValueError) as error:
            raise ConfigError(f"jobs.bucket {address} is not the address of a bucket: {error}") from error
        self._copies: set[Path] = set()

    def create(self) -> None:
        """Create the folder, and check that the bucket can be used.

        Raises:
            ConfigError: it cannot.
        """
        super().create()
        try:
            obstore.list_with_delimiter(self._bucket)
        except (BaseError, OSError, ValueError) as error:
            raise ConfigError(f"The bucket {self._address} (jobs.bucket) cannot be used: {_shorten(error)}") from error

    @asynccontextmanager
    async def open_copy(self, id: str) -> AsyncIterator[Path]:
        """Fetch a file, and return its path for the block.

        Raises:
            FileNotFoundError: the file was removed.
            BusyError: the bucket does not answer.
            StorageFullError: there is no room for the copy.
        """
        async with self.open_writer() as copy:
            self._copies.add(copy.path)
            try:
                with self._translate_errors():
                    name = get_blob_name(id)
                    size = (await obstore.head_async(self._bucket, name))["size"]
                    for start in range(0, size, FETCH_BYTES):
                        end = min(start + FETCH_BYTES, size)
                        await copy.write(bytes(await obstore.get_range_async(self._bucket, name, start=start, end=end)))
                yield copy.path
            finally:
                self._copies.discard(copy.path)

    def store(self, path: Path, id: str) -> None:
        """Send a complete file to the bucket. Called in a thread."""
        try:
            with self._translate_errors():
                obstore.put(self._bucket, get_blob_name(id), path)
        except FileNotFoundError as error:
            raise ConfigError(f"The bucket {self._address} (jobs.bucket) is gone: {_shorten(error)}") from error
        path.unlink()

    async def remove(self, id: str) -> None:
        """Remove a file, if it is there."""
        with self._translate_errors(), suppress(FileNotFoundError):
            await obstore.delete_async(self._bucket, get_blob_name(id))

    async def remove_orphans(self, known: Set[str]) -> None:
        """Remove old files that have no record, in the bucket and on this machine."""
        await super().remove_orphans(known)
        names = set(map(get_blob_name, known))
        before = datetime.now(UTC) - timedelta(seconds=ORPHAN_AGE_S)
        with self._translate_errors():
            async for found in obstore.list(self._bucket):
                old = [one["path"] for one in found if one["path"] not in names and one["last_modified"] < before]
                if old:
                    await obstore.delete_async(self._bucket, old)

    def _list_old_files(self) -> Iterator[Path]:
        return (path for path in super()._list_old_files() if path not in self._copies)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise ConfigError(f"The bucket {self._address} (jobs.bucket) refuses the request: {_shorten(error)}") from error
        except BaseError as error:
            raise BusyError(f"The bucket of jobs does not answer: {_shorten(error)}", retry_after=5.0) from error


def _shorten(error: Exception) -> str:
    """Return the first line of an error: the others are for people who know the library."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
