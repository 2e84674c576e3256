"""Notifies subscribers that models, the active profile or the running requests changed.

A notification names the topic only; the subscriber looks up the state itself, so nothing piles up for a slow one.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Self


class ChangeTopic(StrEnum):
    """What can change."""

    MODELS = "models"
    """The state of a model, or which models there are."""
    PROFILE = "profile"
    """Which profile is active."""
    REQUESTS = "requests"
    """Which requests are in progress."""


class ChangeFeed:
    """Where changes are told. Everything happens on the event loop."""

    def __init__(self) -> None:
        self._subscribers: set[ChangeSubscriber] = set()
        self.ended = asyncio.Event()
        """Set when the server is about to end."""

    def publish(self, topic: ChangeTopic) -> None:
        """Tell every follower of the topic."""
        for follower in self._subscribers:
            follower.notify(topic)

    def subscribe(self, *topics: ChangeTopic) -> ChangeSubscriber:
        """A context within which changes of these topics are told; who joins after `close` hears that it is over."""
        return ChangeSubscriber(self._subscribers, topics, closed=self.ended.is_set())

    def close(self) -> None:
        """End every follower, for good."""
        self.ended.set()
        for follower in self._subscribers:
            follower.close()


class ChangeSubscriber:
    """An iterator over the sets of topics that changed since it was last asked. However slow it is asked, it holds no more."""

    def __init__(self, followers: set[ChangeSubscriber], topics: tuple[ChangeTopic, ...], *, closed: bool):
        self._subscribers = followers
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
        """Something changed."""
        if topic in self._topics:
            self._changed.add(topic)
            self._wakeup.set()

    def close(self) -> None:
        """Nothing will change any more."""
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
