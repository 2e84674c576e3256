"""Runs coroutines side by side, passes items between them, and names the threads that work for them.

`asyncio.TaskGroup` waits for all its tasks and raises an `ExceptionGroup`. A connection needs less: it is over as soon as one
side is, and the error of that side is the error of the connection. `asyncio.Queue` counts items and has no end in Python 3.11;
`Channel` counts bytes, too, and ends from either side.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")

POOL_NAME = "eardrum-pool"
"""The name of the threads of `asyncio.to_thread` in the system's lists of threads, as `top -H` shows them."""

MAX_POOL_THREADS = min(32, (os.cpu_count() or 1) + 4)
"""Threads of the pool: as many as asyncio's own has. They are started as they are needed, and stay."""


def install_thread_pool() -> None:
    """Give the running event loop a pool of threads that the system knows by name; in Python before 3.14 it knows none."""
    pool = concurrent.futures.ThreadPoolExecutor(MAX_POOL_THREADS, POOL_NAME, _name_thread, (POOL_NAME,))
    asyncio.get_running_loop().set_default_executor(pool)


def _name_thread(name: str) -> None:
    with suppress(OSError):  # elsewhere than on Linux
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name, "ascii")


async def run_until_first(*work: Awaitable[object]) -> None:
    """Run all until one ends or fails, then cancel the others and wait for their cleanup.

    A task that was cancelled elsewhere counts as ended. Where several end at once, the error of the first argument wins.

    Raises:
        Exception: the error of the one that failed.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.result()
    finally:
        await cancel_and_wait(*tasks)


async def run_alongside(main: Awaitable[object], *background: Awaitable[object]) -> None:
    """Run `main` to its end, and the others meanwhile. The others may end earlier; if one fails before
    `main` has ended, all are cancelled.

    Raises:
        Exception: the error of the one that failed.
    """
    main_task = asyncio.ensure_future(main)
    tasks = {main_task, *map(asyncio.ensure_future, background)}
    try:
        pending = tasks
        while not main_task.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in [main_task] if main_task.done() else done:
                task.result()
    finally:
        await cancel_and_wait(*tasks)


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks that are not done, and wait for their cleanup. Their errors are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        drop_error(task)


def drop_error(task: asyncio.Future[Any]) -> None:
    """Mark the error of a finished task as retrieved: asyncio would log it as never retrieved."""
    if not task.cancelled():
        task.exception()


def to_exception(error: BaseException) -> Exception:
    """Return what a future may raise in the event loop: the error itself, or a description of one that would end the loop."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


@asynccontextmanager
async def run_in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` for the duration of the block, and cancel it at the end.

    Raises:
        Exception: at the end of the block, the error of `work`.
    """
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


class Channel(Generic[T]):
    """Passes items from one task to another. `async for item in channel` receives them until the channel is closed.

    The sender waits while more than `max_size` is queued: an item is always accepted, and the wait comes after it. `measure`
    returns the size of an item; by default every item has the size 1.
    """

    def __init__(self, max_size: int, measure: Callable[[T], int] = lambda _: 1):
        self.closed = False
        """Whether further items are dropped."""
        self._max_size = max_size
        self._measure = measure
        self._items: deque[T] = deque()
        self._size = 0
        self._has_items = asyncio.Event()
        """Also set when the channel is closed."""
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def send(self, item: T) -> None:
        """Queue an item, and wait until there is room for the next one. A closed channel drops it."""
        self.send_nowait(item)
        await self.wait_for_room()

    @property
    def is_full(self) -> bool:
        """Whether more than the maximum is queued."""
        return not self._has_room.is_set()

    async def wait_for_room(self) -> None:
        """Wait until there is room for another item, or the channel is closed."""
        await self._has_room.wait()

    def send_nowait(self, item: T) -> None:
        """Queue an item, however much is queued. A closed channel drops it."""
        if self.closed:
            return
        self._items.append(item)
        self._size += self._measure(item)
        self._has_items.set()
        if self._size > self._max_size:
            self._has_room.clear()

    async def receive_all(self) -> list[T]:
        """Wait for items and return all that are queued; an empty list once the channel is closed and empty."""
        await self._wait_for_items()
        items = list(self._items)
        self._items.clear()
        self._size = 0
        self._has_room.set()
        return items

    def close(self) -> None:
        """Accept no more items. The queued ones can still be received, and a waiting sender continues."""
        self.closed = True
        self._has_items.set()
        self._has_room.set()

    def discard(self) -> None:
        """Close the channel and drop the queued items."""
        self._items.clear()
        self._size = 0
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        await self._wait_for_items()
        if not self._items:
            raise StopAsyncIteration
        item = self._items.popleft()
        self._size -= self._measure(item)
        if self._size <= self._max_size:
            self._has_room.set()
        return item

    async def _wait_for_items(self) -> None:
        while not self._items and not self.closed:
            self._has_items.clear()
            await self._has_items.wait()
