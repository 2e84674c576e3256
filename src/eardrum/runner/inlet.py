"""The way of the bytes from the event loop into a decoding thread: a bounded pipe."""

from __future__ import annotations

import asyncio
from collections import deque
from threading import Condition
from typing import Self

CAPACITY = 1 << 20
"""Bytes held before the sender has to wait."""


class CancelledInletError(Exception):
    """The request is over; whoever still reads should stop."""


class Inlet:
    """One request's audio. `feed`, `finish` and `cancel` belong to the event loop, `read` to one thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._changed = Condition()
        self._chunks: deque[memoryview] = deque()
        self._size = 0
        self._finished = False
        self._cancelled = False

    @classmethod
    def holding(cls, data: bytes) -> Self:
        """A finished inlet with all its bytes, for audio that is already here."""
        inlet = cls()
        inlet._put(data)
        inlet._finished = True
        return inlet

    async def feed(self, chunk: bytes) -> None:
        """Hand over the next bytes; waits while the reader is more than `CAPACITY` behind."""
        self._loop = asyncio.get_running_loop()
        with self._changed:
            if self._cancelled:
                return
            self._put(chunk)
            if self._size >= CAPACITY:
                self._room.clear()
            self._changed.notify()
        await self._room.wait()

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
        self._room.set()

    @property
    def complete(self) -> bool:
        """Whether every byte that will come is here, or was read already."""
        return self._finished

    def read(self, size: int) -> bytes:
        """Block until there are bytes; at most `size` of them, b"" at the end. Called by PyAV.

        Raises:
            CancelledInletError: the request was cancelled.
        """
        with self._changed:
            while not (self._chunks or self._finished or self._cancelled):
                self._changed.wait()
            if self._cancelled:
                raise CancelledInletError
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if len(chunk) > size:
                self._chunks.appendleft(chunk[size:])
                chunk = chunk[:size]
            self._size -= len(chunk)
            if self._size < CAPACITY and self._loop and not self._room.is_set():
                self._loop.call_soon_threadsafe(self._room.set)
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

    def _put(self, chunk: bytes) -> None:
        if chunk:  # an empty one would read as the end
            self._chunks.append(memoryview(chunk))  # a view: taking slices off a large chunk must not copy the rest
            self._size += len(chunk)
