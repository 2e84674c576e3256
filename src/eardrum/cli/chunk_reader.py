"""Reads chunks of a file, pipe or program in a thread: an event loop cannot wait for all of these."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Semaphore, Thread
from typing import Self

from eardrum.concurrency import Channel

CHUNK_BYTES = 32 << 10
MAX_QUEUED = 32
"""Chunks that are read ahead."""


class ChunkReader:
    """Iterates over the bytes of a file descriptor, or of a path, until their end or until `stop`.

    The thread also opens the path: opening a named pipe blocks until a program opens it for writing.
    """

    def __init__(self, source: int | Path):
        self._source = source
        self.error: OSError | None = None
        """The error that ended reading, if one did."""
        self._loop = asyncio.get_running_loop()
        self._pieces = Channel[bytes](MAX_QUEUED)
        self._free_slots = Semaphore(MAX_QUEUED)
        # A thread in the middle of a read cannot be stopped. As a daemon, it does not keep the program from ending.
        Thread(target=self._run_thread, daemon=True, name="pieces").start()

    def stop(self) -> None:
        """End the iteration. Chunks that are already queued can still be read."""
        self._pieces.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._pieces)
        self._free_slots.release()
        return piece

    def _run_thread(self) -> None:
        try:
            for piece in self._read_chunks():
                self._free_slots.acquire()
                self._loop.call_soon_threadsafe(self._pieces.send_nowait, piece)
            self._loop.call_soon_threadsafe(self._pieces.close)
        except RuntimeError:
            return  # the event loop is closed

    def _read_chunks(self) -> Iterator[bytes]:
        try:
            if isinstance(self._source, int):
                yield from _read_all(self._source)
            else:
                with self._source.open("rb", buffering=0) as file:
                    yield from _read_all(file.fileno())
        except OSError as error:  # for example, of a device that was unplugged
            self.error = error


def _read_all(fd: int) -> Iterator[bytes]:
    while piece := os.read(fd, CHUNK_BYTES):
        yield piece
