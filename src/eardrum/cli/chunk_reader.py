"""Reads chunks of a file, pipe or program in a thread: an event loop cannot wait for all of these."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Semaphore, Thread
from typing import Self

CHUNK_BYTES = 32 << 10
MAX_QUEUED = 32
"""Pieces that may wait to be taken."""


class ChunkReader:
    """An iterator over what can be read from a file descriptor, or from a path, until its end or until `stop`.

    To open a pipe takes as long as nobody writes to it: that is why it is done in the thread.
    """

    def __init__(self, source: int | Path):
        self._source = source
        self.error: OSError | None = None
        """Why reading ended before the end, once it has."""
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._free_slots = Semaphore(MAX_QUEUED)
        self._stopped = asyncio.Event()
        # A thread that is in the middle of a read cannot be ended; a daemon is not waited for.
        Thread(target=self._run_thread, daemon=True, name="pieces").start()

    def stop(self) -> None:
        """What comes from now on is not wanted."""
        self._stopped.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = asyncio.ensure_future(self._queue.get())
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({piece, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not piece.done() or not piece.result():
                raise StopAsyncIteration
            self._free_slots.release()
            return piece.result()
        finally:
            piece.cancel()
            stopped.cancel()

    def _run_thread(self) -> None:
        for piece in self._read_chunks():
            self._free_slots.acquire()
            try:
                self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)
            except RuntimeError:
                return  # the event loop is over

    def _read_chunks(self) -> Iterator[bytes]:
        """What can be read, and last nothing."""
        try:
            if isinstance(self._source, int):
                yield from _read_all(self._source)
            else:
                with self._source.open("rb", buffering=0) as file:
                    yield from _read_all(file.fileno())
        except OSError as error:  # of a device that is gone, say: nothing more comes
            self.error = error
        yield b""


def _read_all(fd: int) -> Iterator[bytes]:
    while piece := os.read(fd, CHUNK_BYTES):
        yield piece
