"""Notifies subscribers that models, the active profile or the running requests changed.

A notification names the topic only; the subscriber looks up the state itself, so nothing piles up for a slow one.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Self


class ChangeTopic(StrEnum):
    """The topics of notifications."""

    MODELS = "models"
    """A model's state changed, or the set of models."""
    PROFILE = "profile"
    """Another profile is active."""
    REQUESTS = "requests"
    """A request began or ended."""


class ChangeFeed:
    """Passes notifications to subscribers. Runs on the event loop."""

    def __init__(self) -> None:
        self._subscribers: set[ChangeSubscriber] = set()
        self.versions = dict.fromkeys(ChangeTopic, 0)
        """The number of notifications of each topic: what is built for one subscriber serves the others until it changes."""
        self.ended = asyncio.Event()
        """Set when the server shuts down."""

    def publish(self, topic: ChangeTopic) -> None:
        """Notify every subscriber of the topic."""
        self.versions[topic] += 1
        for subscriber in self._subscribers:
            subscriber.notify(topic)

    def subscribe(self, *topics: ChangeTopic) -> ChangeSubscriber:
        """Create a subscriber to these topics: a context manager and an iterator, which ends at once after `close`."""
        return ChangeSubscriber(self._subscribers, topics, closed=self.ended.is_set())

    def close(self) -> None:
        """End all subscribers, now and later."""
        self.ended.set()
        for subscriber in self._subscribers:
            subscriber.close()


class ChangeSubscriber:
    """Iterates over the sets of topics that changed since the previous step. A slow reader gets one merged set."""

    def __init__(self, subscribers: set[ChangeSubscriber], topics: tuple[ChangeTopic, ...], *, closed: bool):
        self._subscribers = subscribers
        self._topics = topics
        self._closed = closed
        self._changed: set[ChangeTopic] = set()
        self._wakeup = asyncio.Event()

    def __enter__(self) -> Self:
        self._subscribers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._subscribers.discard(self)

    def notify(self, topic: ChangeTopic) -> None:
        """Record that a topic changed."""
        if topic in self._topics:
            self._changed.add(topic)
            self._wakeup.set()

    def close(self) -> None:
        """End the iteration."""
        self._closed = True
        self._wakeup.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> set[ChangeTopic]:
        while not self._changed and not self._closed:
            self._wakeup.clear()
            await self._wakeup.wait()
        if not self._changed:
            raise StopAsyncIteration
        changed, self._changed = self._changed, set()
        return changed
