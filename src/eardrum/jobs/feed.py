"""Notifies waiting clients that a job has changed."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

SHARED_WAIT_S = 1.0
"""Longest wait for a change where another server may have made it."""


class JobFeed:
    """Passes on the changes of jobs that this server makes. `shared`: other servers may change them, too."""

    def __init__(self, *, shared: bool):
        self.closed = False
        """Whether the server shuts down: waiting requests are answered."""
        self.max_wait_s = SHARED_WAIT_S if shared else math.inf
        self._subscriptions: dict[str, set[JobSubscription]] = defaultdict(set)

    def publish(self, job: str) -> None:
        """Wake the subscribers of this job."""
        for subscription in self._subscriptions.get(job, ()):
            subscription.changed.set()

    def close(self) -> None:
        """Wake all subscribers, now and later."""
        self.closed = True
        for job in self._subscriptions:
            self.publish(job)

    @contextmanager
    def subscribe(self, job: str) -> Iterator[JobSubscription]:
        """Subscribe to the changes of a job for the block."""
        subscription = JobSubscription(self)
        self._subscriptions[job].add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions[job].discard(subscription)
            if not self._subscriptions[job]:
                del self._subscriptions[job]


class JobSubscription:
    """Waits for the changes of a job."""

    def __init__(self, feed: JobFeed):
        self.changed = asyncio.Event()
        self._feed = feed

    def clear(self) -> None:
        """Forget the changes so far: call it before the job is read."""
        if not self._feed.closed:
            self.changed.clear()

    async def wait(self, seconds: float) -> None:
        """Wait until the job may have changed since `clear`, but no longer than so many seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.changed.wait(), min(seconds, self._feed.max_wait_s))
