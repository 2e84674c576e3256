"""Spools an upload: it is read while it is still being written, in memory first and in a file once it is long.

The file has no name, so it disappears with the last process that has it open. Several readers may follow an
upload, each from the start: that is how a request is repeated after its runner died.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol, Self, TypeVar

from eardrum.concurrency import drop_error
from eardrum.errors import ConfigError, build_shortage_error

CHUNK_BYTES = 256 * 1024
MEMORY_BYTES = 1 << 20
"""Bytes of an upload that are kept in memory. Most uploads are smaller and need neither a file nor a thread."""

CLOSED_ASIDE = 8 << 20
"""Size from which a thread closes the file: the system then frees its pages, which takes 5 to 30 ms for 100 MB."""

START_BYTES = 2 << 10
"""Bytes that must have arrived before an upload takes a place at a model: half a second of speech."""

T = TypeVar("T")


def check_spool_folder(folder: Path | None) -> None:
    """Check that uploads can be stored in the folder.

    Raises:
        ConfigError: the folder does not exist or cannot be written to.
    """
    if folder and not (os.path.isdir(folder) and os.access(folder, os.W_OK)):  # noqa: PTH112 -- Path's raises for long names
        raise ConfigError(f"spool_dir {folder} is not a folder that can be written to.")


class AudioSource(Protocol):
    """Audio that can be read from the start any number of times."""

    def read(self) -> AsyncIterator[bytes]:
        """Yield all bytes from the start, as they arrive."""


class ByteSink(Protocol):
    """A place to which a recording is written."""

    size: int
    """Bytes so far."""

    async def write(self, data: bytes) -> None:
        """Append bytes."""

    def finish(self) -> None:
        """Mark the end."""


class StoredFile:
    """A complete file on disk."""

    def __init__(self, path: Path):
        self._path = path

    async def read(self) -> AsyncIterator[bytes]:
        """Yield all bytes from the start."""
        with self._path.open("rb") as file:  # not in a thread: there it would stay open if the reader were cancelled meanwhile
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk


class Spool:
    """Append-only bytes with any number of readers, which wait for more. Use it as a context manager."""

    def __init__(self, directory: Path | None = None):
        self.size = 0
        self._directory = directory
        self._beginning = bytearray()
        self._file: IO[bytes] | None = None
        self._finished = False
        self._grown = asyncio.Event()
        self._pending_work = 0
        self._closing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._close_if_idle()

    async def write(self, data: bytes) -> None:
        """Append `data` and wake the readers.

        Raises:
            StorageFullError: the disk is full.
            OutOfDescriptorsError: no more files can be opened.
        """
        room = MEMORY_BYTES - len(self._beginning)
        if rest := data[room:]:
            try:
                await self._run_in_thread(_write_all, rest)
            except OSError as error:
                if known := build_shortage_error(error, "for uploads"):
                    raise known from error
                raise
        self._beginning += data[:room]
        self.size += len(data)
        self._wake_readers()

    async def wait_for_start(self) -> None:
        """Wait until enough has arrived to take a place at a model."""
        while self.size < START_BYTES and not self._finished:
            await self._grown.wait()

    def finish(self) -> None:
        """Mark the end: all bytes have been written."""
        self._finished = True
        self._wake_readers()

    async def read(self) -> AsyncIterator[bytes]:
        """Yield all bytes from the start, as they arrive."""
        at = 0
        while True:
            if at < self.size:
                data = await self._read_from(at)
                at += len(data)
                yield data
            elif self._finished:
                return
            else:
                await self._grown.wait()

    async def _read_from(self, at: int) -> bytes:
        """Read some bytes from this position."""
        if at < len(self._beginning):
            return bytes(memoryview(self._beginning)[at : at + CHUNK_BYTES])
        return await self._run_in_thread(os.pread, CHUNK_BYTES, at - len(self._beginning))

    def _open_file(self) -> IO[bytes]:
        if not self._file:
            if self._closing:
                raise ValueError("The upload is over.")
            self._file = tempfile.TemporaryFile(prefix="eardrum-", dir=self._directory, buffering=0)  # noqa: SIM115 -- closed with the spool
        return self._file

    async def _run_in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run `work` in a thread with the file descriptor and these arguments.

        The thread continues after its caller was cancelled. The file stays open until then, because its descriptor could
        otherwise belong to another client's connection by the time it is written to.
        """
        working = asyncio.get_running_loop().run_in_executor(None, work, self._open_file().fileno(), *arguments)
        self._pending_work += 1
        working.add_done_callback(self._on_work_done)
        return await asyncio.shield(working)

    def _on_work_done(self, work: asyncio.Future[T]) -> None:
        drop_error(work)  # the caller may have been cancelled
        self._pending_work -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._closing and not self._pending_work and self._file:
            file, self._file = self._file, None
            _close(file, self.size)

    def _wake_readers(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


def _close(file: IO[bytes], size: int) -> None:
    if size >= CLOSED_ASIDE:
        with suppress(RuntimeError):  # no event loop or thread is left, so nothing waits
            asyncio.get_running_loop().run_in_executor(None, file.close)
            return
    file.close()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
