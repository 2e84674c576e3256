"""Tells waiting clients that a job has changed."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import suppress

SHARED_POLL_S = 1.0
"""Longest wait for a change where another server may have made it."""


class JobFeed:
    """The changes of jobs that this server makes."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        """Set when the server shuts down: nobody waits any longer."""
        self.polls = False
        """Whether other servers may change jobs, so that waiting must end now and then."""
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    def publish(self, job: str) -> None:
        """Wake those who wait for this job."""
        for event in self._waiting.get(job, ()):
            event.set()

    def close(self) -> None:
        """Wake everybody, for good."""
        self.closed.set()
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def wait(self, job: str, event: asyncio.Event, seconds: float) -> None:
        """Wait for a change after `event` was cleared, or for so many seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), min(seconds, SHARED_POLL_S) if self.polls else seconds)

    def subscribe(self, job: str) -> JobSubscription:
        """Follow a job, as a context."""
        return JobSubscription(self, job, self._waiting)


class JobSubscription:
    """One follower of a job."""

    def __init__(self, feed: JobFeed, job: str, waiting: dict[str, set[asyncio.Event]]):
        self._feed = feed
        self._job = job
        self._all = waiting
        self._event = asyncio.Event()

    def __enter__(self) -> JobSubscription:
        self._all[self._job].add(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        self._all[self._job].discard(self._event)
        if not self._all[self._job]:
            del self._all[self._job]

    def clear(self) -> None:
        """Forget the changes so far: call it before the job is read."""
        if not self._feed.closed.is_set():
            self._event.clear()

    async def wait(self, seconds: float) -> None:
        """Wait until the job has changed since `clear`, or for so many seconds."""
        await self._feed.wait(self._job, self._event, seconds)
