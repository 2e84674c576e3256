"""Carries audio bytes from the event loop to the decoder.

`BytePipe` is a bounded pipe between the event loop and a decoding thread. `ReplayableStream` passes bytes on and keeps them, so
that FFmpeg can read them again as a file where it must seek. `ScratchFile` stores bytes in memory, and on disk once they are
many.
"""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from collections import deque
from os import SEEK_END, SEEK_SET
from threading import Condition
from typing import IO, Protocol, Self

from eardrum.errors import EardrumError, build_shortage_error

MAX_BUFFERED_BYTES = 1 << 20
"""Bytes held before the sender has to wait."""


class PipeCancelledError(Exception):
    """The request is over: reading must stop."""


class BytePipe:
    """One request's audio. `feed`, `finish` and `cancel` belong to the event loop, `read` to one thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._changed = Condition()
        self._chunks: deque[memoryview] = deque()
        self._size = 0
        self._finished = False
        self._cancelled = False

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Create a finished pipe that holds all bytes of a recording."""
        pipe = cls()
        pipe._append(data)
        pipe._finished = True
        return pipe

    async def feed(self, chunk: bytes) -> None:
        """Write the next bytes; wait while the reader is more than `MAX_BUFFERED_BYTES` behind."""
        self._loop = asyncio.get_running_loop()
        with self._changed:
            if self._cancelled:
                return
            self._append(chunk)
            if self._size >= MAX_BUFFERED_BYTES:
                self._has_room.clear()
            self._changed.notify()
        await self._has_room.wait()

    def finish(self) -> None:
        """No more bytes will come."""
        with self._changed:
            self._finished = True
            self._changed.notify()

    def cancel(self) -> None:
        """Forget everything and make the reader stop."""
        with self._changed:
            self._cancelled = True
            self._chunks.clear()
            self._changed.notify()
        self._has_room.set()

    @property
    def is_complete(self) -> bool:
        """Whether every byte that will come is here, or was read already."""
        return self._finished

    def read(self, size: int) -> bytes:
        """Block until there are bytes; at most `size` of them, b"" at the end. Called by PyAV.

        Raises:
            PipeCancelledError: the request was cancelled.
        """
        with self._changed:
            while not (self._chunks or self._finished or self._cancelled):
                self._changed.wait()
            if self._cancelled:
                raise PipeCancelledError
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if len(chunk) > size:
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            self._size -= len(chunk)
            if self._size < MAX_BUFFERED_BYTES and self._loop and not self._has_room.is_set():
                self._loop.call_soon_threadsafe(self._has_room.set)
            return bytes(chunk)

    def peek(self, size: int) -> bytes:
        """Block until `size` bytes are there or the end is reached, and leave them in place."""
        head = b""
        while len(head) < size and (chunk := self.read(size - len(head))):
            head += chunk
        with self._changed:
            if head:
                self._chunks.appendleft(memoryview(head))
                self._size += len(head)
        return head

    def _append(self, chunk: bytes) -> None:
        if chunk:  # an empty one would read as the end
            self._chunks.append(memoryview(chunk))  # a view: taking slices off a large chunk must not copy the rest
            self._size += len(chunk)


MEMORY_BYTES = 1 << 20
"""Bytes kept before they go to the disk: most containers show their first samples before that."""

CHUNK_BYTES = 1 << 20


class ByteSource(Protocol):
    """A source of bytes."""

    def read(self, size: int) -> bytes:
        """Block until there are bytes; at most `size` of them, b"" at the end."""


class ReplayableStream:
    """Passes bytes on, and keeps those read until the reader declares that it will not return to them.

    FFmpeg takes it for a pipe, as it has no `seek`. Close it in the end.
    """

    def __init__(self, source: ByteSource):
        self._source = source
        self._copy: ScratchFile | None = ScratchFile(MEMORY_BYTES, "for a recording that must be put aside while it is decoded")
        self.failure: EardrumError | None = None
        """Why bytes could not be kept: FFmpeg may take that for the end of the file."""
        self.size = 0
        """Bytes read so far."""
        self.is_at_end = False
        """Whether the last byte was read."""

    def read(self, size: int) -> bytes:
        """The next bytes, b"" at the end. Called by PyAV.

        Raises:
            StorageFullError, OutOfDescriptorsError: there is no room to keep them.
        """
        chunk = self._source.read(size)
        self.size += len(chunk)
        self.is_at_end = not chunk
        if self._copy:
            try:
                self._copy.write(chunk)
            except EardrumError as error:
                self.failure = error
                raise
        return chunk

    def read_head(self, size: int) -> bytes:
        """The first bytes, as far as they were read and are kept."""
        if not self._copy:
            return b""
        self._copy.seek(0)
        head = self._copy.read(size)
        self._copy.seek(0, SEEK_END)
        return head

    def discard(self) -> None:
        """Stop keeping bytes that were read."""
        if self._copy:
            self._copy.close()
            self._copy = None

    def to_file(self) -> ScratchFile:
        """Wait for all bytes and give them as a file that can seek, from the start. It is closed with the stream."""
        assert self._copy
        while self.read(CHUNK_BYTES):
            pass
        self._copy.seek(0)
        return self._copy

    def drain(self, size: int) -> None:
        """Read on to the end, or until so many bytes were read, and drop them."""
        self.discard()
        while self.size < size and self.read(CHUNK_BYTES):
            pass

    close = discard


class ScratchFile:
    """A file that can be written, sought in and read. On the disk it has no name: it disappears with the process.

    It lies where `TMPDIR` says and nowhere else: Python would continue to other folders if that one is full, and to the working
    directory in the end. Nothing is buffered, so that a full disk is met where it is written to.
    """

    def __init__(self, in_memory: int, what: str):
        """`what` is what it is for, in the words of an error."""
        self._in_memory = in_memory
        self._what = what
        self._file: IO[bytes] = io.BytesIO()
        self._on_disk = False

    def write(self, data: bytes) -> None:
        """Put bytes at the current place.

        Raises:
            StorageFullError: there is no room.
            OutOfDescriptorsError: no more files can be opened.
        """
        try:
            if not self._on_disk and self._file.tell() + len(data) > self._in_memory:
                self._move_to_disk()
            _write_all(self._file, data)
        except OSError as error:
            if known := build_shortage_error(error, self._what):
                raise known from error
            raise

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        return self._file.read(size)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to another place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The current place."""
        return self._file.tell()

    def close(self) -> None:
        """Forget everything."""
        self._file.close()

    def _move_to_disk(self) -> None:
        held, at = self._file, self._file.tell()
        assert isinstance(held, io.BytesIO)
        file = tempfile.TemporaryFile(prefix="eardrum-", dir=os.environ.get("TMPDIR"), buffering=0)  # noqa: SIM115
        try:
            _write_all(file, held.getvalue())
            file.seek(at)
        except BaseException:
            file.close()
            raise
        held.close()
        self._file, self._on_disk = file, True


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
