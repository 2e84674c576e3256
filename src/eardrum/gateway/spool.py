"""An upload on its way in: a file without a name that is read while it is still being written.

Because the file has no name it is gone with the last process that holds it, whatever happens. Several readers
may follow it, each from the start: that is how a request is repeated after its runner died.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol, Self, TypeVar

from eardrum.errors import StorageFullError

CHUNK = 256 * 1024

T = TypeVar("T")


class Source(Protocol):
    """Audio that can be read from the start, and again should the first reader die."""

    def read(self) -> AsyncIterator[bytes]:
        """All bytes from the start, as they come."""


class StoredFile:
    """A file that is already here."""

    def __init__(self, path: Path):
        self._path = path

    async def read(self) -> AsyncIterator[bytes]:
        """All bytes from the start."""
        with await asyncio.to_thread(self._path.open, "rb") as file:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk


class Spool:
    """Append-only bytes with any number of readers that wait for more. Use as a context manager."""

    def __init__(self, directory: Path | None = None):
        self.size = 0
        self._file = tempfile.TemporaryFile(prefix="eardrum-", dir=directory, buffering=0)  # noqa: SIM115 -- this class is the context
        self._finished = False
        self._grown = asyncio.Event()
        self._at_work = 0
        self._left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._left = True
        self._close_if_idle()

    async def write(self, data: bytes) -> None:
        """Append `data` and wake the readers.

        Raises:
            StorageFullError: the disk is full.
        """
        try:
            await self._in_thread(_write_all, data)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise StorageFullError("There is no room left for uploads: free some, or set spool_dir.") from error
        self.size += len(data)
        self._wake()

    def finish(self) -> None:
        """All bytes are here."""
        self._finished = True
        self._wake()

    async def read(self) -> AsyncIterator[bytes]:
        """All bytes from the start, as they come."""
        at = 0
        while True:
            if at < self.size:
                data = await self._in_thread(os.pread, CHUNK, at)
                at += len(data)
                yield data
            elif self._finished:
                return
            else:
                await self._grown.wait()

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Do it with the file's number and these arguments.

        A thread goes on when nobody waits for it any more. The file stays open until then, because its number could be
        another client's connection by the time it is written to.
        """
        working = asyncio.get_running_loop().run_in_executor(None, work, self._file.fileno(), *arguments)
        self._at_work += 1
        working.add_done_callback(self._has_worked)
        return await asyncio.shield(working)

    def _has_worked(self, work: asyncio.Future[T]) -> None:
        if not work.cancelled():
            work.exception()  # who asked for it may have gone: asyncio would complain that nobody looked
        self._at_work -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._left and not self._at_work:
            self._file.close()

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
