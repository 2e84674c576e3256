"""Stores files in a folder: writes a temporary file, syncs it, then renames it."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator, Set
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from eardrum.concurrency import drop_error
from eardrum.errors import StorageFullError, build_shortage_error

UNNAMED_SUFFIX = ".part"
ORPHAN_AGE_S = 3600.0
"""A file without a record, or without a name, is removed after so long: the server that wrote it has died."""

CHECK_BYTES = 64 << 20
"""Bytes after which the room on the disk is looked at again."""


class BlobFolder:
    """Files by their ids, spread over subfolders. A client's name is never part of a path."""

    is_remote = False
    """Whether a file has to be fetched before it can be read."""

    def __init__(self, folder: Path, free_bytes: int):
        self._folder = folder
        self._free_bytes = free_bytes

    def create(self) -> None:
        """Create the folder, and the one around it, for their owner alone."""
        self._folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def find_path(self, id: str) -> Path:
        """Return where a file with this id is, or would be."""
        name = get_blob_name(id)
        return self._folder / name[:2] / name

    @asynccontextmanager
    async def open_copy(self, id: str) -> AsyncIterator[Path]:
        """Return the path of a file that holds the bytes, for the block. It must not be changed.

        Raises:
            FileNotFoundError: the file was removed.
        """
        path = self.find_path(id)
        await asyncio.to_thread(path.stat)
        yield path

    def store(self, path: Path, id: str) -> None:
        """Give a complete file, which is on the disk, its name. Called in a thread."""
        place = self.find_path(id)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        path.rename(place)
        for folder in (place.parent, place.parent.parent):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def open_writer(self) -> BlobWriter:
        """Create the writer of a file, which begins with its context."""
        return BlobWriter(self, self._folder / f"{secrets.token_hex(16)}{UNNAMED_SUFFIX}")

    async def check_room(self) -> None:
        """Check that enough of the disk is free for everything else on it.

        Raises:
            StorageFullError: it is not.
        """
        usage = await asyncio.to_thread(shutil.disk_usage, self._folder)
        if usage.free < self._free_bytes:
            raise StorageFullError(
                f"The disk of the jobs has less than {self._free_bytes:,} bytes free (jobs.free_bytes): delete files or jobs."
            )

    async def remove(self, id: str) -> None:
        """Remove a file, if it is there."""
        await asyncio.to_thread(lambda: self.find_path(id).unlink(missing_ok=True))

    async def remove_orphans(self, known: Set[str]) -> None:
        """Remove old files that have no record, and those that were never completed. `known` are the ids of the others."""
        names = set(map(get_blob_name, known))

        def remove() -> None:
            for path in self._list_old_files():
                if path.name not in names:
                    path.unlink(missing_ok=True)

        await asyncio.to_thread(remove)

    def _list_old_files(self) -> Iterator[Path]:
        before = time.time() - ORPHAN_AGE_S
        for path in self._folder.rglob("*"):
            with suppress(FileNotFoundError):
                if path.is_file() and path.stat().st_mtime < before:
                    yield path


def get_blob_name(id: str) -> str:
    """Return the name under which the file with this id is stored."""
    name = id.rpartition("-")[2]
    assert name.isalnum()
    return name


class BlobWriter:
    """Writes a file. As a context: what was not saved at its end is removed."""

    def __init__(self, folder: BlobFolder, path: Path):
        self.size = 0
        self._folder = folder
        self.path = path
        self._file: IO[bytes] | None = None
        self._checked_at = 0
        self._working: asyncio.Future[None] | None = None
        """The last work in a thread, which continues if its caller is cancelled."""

    async def __aenter__(self) -> Self:
        """Begin the file.

        Raises:
            StorageFullError: the disk is full, or nearly so.
            OutOfDescriptorsError: no more files can be opened.
        """
        await self._folder.check_room()
        await self._run(self._open)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._working:
            await asyncio.wait([self._working])
        if self._file:
            await asyncio.to_thread(self._discard)

    async def write(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            StorageFullError: the disk is full, or nearly so.
        """
        assert self._file
        if self.size - self._checked_at >= CHECK_BYTES:
            self._checked_at = self.size
            await self._folder.check_room()
        await self._run(self._write, data)
        self.size += len(data)

    def finish(self) -> None:
        """Do nothing: `save` completes the file. For code that writes into spools."""

    async def save(self, id: str) -> None:
        """Bring the file to the disk, and give it its place.

        Raises:
            StorageFullError: the disk is full.
        """
        await self._run(self._save, id)

    async def _run(self, work: Callable[..., None], *arguments: object) -> None:
        """Run `work` in a thread.

        Raises:
            StorageFullError: the disk is full.
            OutOfDescriptorsError: no more files can be opened.
        """
        self._working = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        self._working.add_done_callback(drop_error)  # the caller may have been cancelled
        try:
            await asyncio.shield(self._working)
        except OSError as error:
            raise build_shortage_error(error, "for files of jobs", setting="jobs.dir") or error from error

    def _open(self) -> None:
        self._file = self.path.open("xb", 0)

    def _write(self, data: bytes) -> None:
        assert self._file
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def _discard(self) -> None:
        assert self._file
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _save(self, id: str) -> None:
        assert self._file
        os.fsync(self._file.fileno())
        self._folder.store(self.path, id)
        self._file.close()
        self._file = None
