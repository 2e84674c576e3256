"""Transcriptions in the background, for TingWu's `/api/v1/trans/url` and `/api/v1/result`.

Tasks and their results are kept in memory, and end with the server.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from eardrum.errors import BusyError, EardrumError
from eardrum.gateway.key_usage import CURRENT_KEY, KeyUsage

log = logging.getLogger(__name__)

MAX_TASKS = 100
"""Most tasks that are kept, with or without a result."""

MAX_RUNNING = 3
"""Most tasks that run at a time; others wait."""

KEPT_S = 3600.0
"""Seconds after which a result that was not fetched may be dropped."""

RETRY_AFTER_S = 30.0


@dataclass(slots=True, eq=False)
class BackgroundTask:
    """A transcription that continues after its request was answered."""

    id: str
    owner: KeyUsage | None
    """The API key that submitted it."""
    has_begun: bool = False
    ended_at: float = 0.0
    """On the monotonic clock; 0 before the end."""
    work: asyncio.Task[dict[str, Any]] = field(init=False)

    def belongs_to(self, usage: KeyUsage | None) -> bool:
        """Whether this key, or this key with other limits after a reload, submitted it."""
        return (self.owner and self.owner.settings.digest) == (usage and usage.settings.digest)

    @property
    def error(self) -> str:
        """The message of a task that has failed; empty after a success. Only once it has ended."""
        if self.work.cancelled():
            return "The server is shutting down."
        error = self.work.exception()
        return error.message if isinstance(error, EardrumError) else "The server failed; its log has the cause." if error else ""


class BackgroundTaskStore:
    """Runs tasks, some at a time, and keeps them until their results are fetched."""

    def __init__(self) -> None:
        self._tasks: dict[str, BackgroundTask] = {}
        self._places = asyncio.Semaphore(MAX_RUNNING)

    def submit(self, work: Callable[[], Awaitable[dict[str, Any]]]) -> BackgroundTask:
        """Start a task for the client of the current request. It counts among the requests of its API key until its end.

        Raises:
            BusyError: there are too many tasks.
        """
        now = time.monotonic()
        self._tasks = {id: task for id, task in self._tasks.items() if not task.ended_at or task.ended_at + KEPT_S > now}
        if len(self._tasks) >= MAX_TASKS:
            raise BusyError(f"The server keeps {MAX_TASKS} tasks already: fetch their results.", retry_after=RETRY_AFTER_S)
        task = BackgroundTask(secrets.token_hex(16), CURRENT_KEY.get())
        task.work = asyncio.create_task(self._run(task, work))
        task.work.add_done_callback(lambda _: _record_end(task))
        self._tasks[task.id] = task
        return task

    def find(self, id: str) -> BackgroundTask | None:
        """Find a task of the current request's API key."""
        task = self._tasks.get(id)
        return task if task and task.belongs_to(CURRENT_KEY.get()) else None

    def forget(self, task: BackgroundTask) -> None:
        """Drop a task and its result."""
        self._tasks.pop(task.id, None)

    async def close(self) -> None:
        """End all tasks."""
        running = [task.work for task in self._tasks.values()]
        for work in running:
            work.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, task: BackgroundTask, work: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        if task.owner:
            task.owner.continue_request()
        try:
            async with self._places:
                task.has_begun = True
                return await work()
        finally:
            if task.owner:
                task.owner.end_request()


def _record_end(task: BackgroundTask) -> None:
    task.ended_at = time.monotonic()
    error = None if task.work.cancelled() else task.work.exception()
    if isinstance(error, EardrumError):
        log.info("The task %s of /api/v1/trans/url failed: %s", task.id, error.message)
    elif error:
        log.error("The task %s of /api/v1/trans/url failed.", task.id, exc_info=error)
