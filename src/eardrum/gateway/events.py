"""Who wants to know that something changed is told so, and looks for itself: what is kept for a follower never grows."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Self


class Topic(StrEnum):
    """What can change."""

    MODELS = "models"
    """The state of a model, or which models there are."""
    PROFILE = "profile"
    """Which profile is active."""
    REQUESTS = "requests"
    """Which requests are in progress."""


class Events:
    """Where changes are told. Everything happens on the event loop."""

    def __init__(self) -> None:
        self._followers: set[Follower] = set()
        self.over = asyncio.Event()
        """Set when the server is about to end."""

    def changed(self, topic: Topic) -> None:
        """Tell every follower of the topic."""
        for follower in self._followers:
            follower.tell(topic)

    def follow(self, *topics: Topic) -> Follower:
        """A context within which changes of these topics are told; who joins after `close` hears that it is over."""
        return Follower(self._followers, topics, closed=self.over.is_set())

    def close(self) -> None:
        """End every follower, for good."""
        self.over.set()
        for follower in self._followers:
            follower.close()


class Follower:
    """An iterator over the sets of topics that changed since it was last asked. However slow it is asked, it holds no more."""

    def __init__(self, followers: set[Follower], topics: tuple[Topic, ...], *, closed: bool):
        self._followers = followers
        self._topics = topics
        self._closed = closed
        self._changed: set[Topic] = set()
        self._news = asyncio.Event()

    def __enter__(self) -> Self:
        self._followers.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._followers.discard(self)

    def tell(self, topic: Topic) -> None:
        """Something changed."""
        if topic in self._topics:
            self._changed.add(topic)
            self._news.set()

    def close(self) -> None:
        """Nothing will change any more."""
        self._closed = True
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> set[Topic]:
        while not self._changed and not self._closed:
            self._news.clear()
            await self._news.wait()
        if not self._changed:
            raise StopAsyncIteration
        changed, self._changed = self._changed, set()
        return changed
