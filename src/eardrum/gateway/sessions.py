"""The live sessions there are: how many a model has, and their common end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from eardrum.errors import BusyError, ShuttingDownError
from eardrum.gateway.senders import Senders

RETRY_AFTER_S = 5.0
"""What one too many is told."""


class Sessions:
    """Everybody who opens one is listed here until it is over, its last events told."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._stops: set[Callable[[], None]] = set()
        self._senders = Senders()
        self._none = asyncio.Event()
        self._none.set()
        self._down = False

    @asynccontextmanager
    async def one_more(self, model: str, most: int, stop: Callable[[], None]) -> AsyncIterator[None]:
        """List one for the duration of the block. `stop` tells it that the server goes down. One with a slow client may have
        to go for it.

        Raises:
            BusyError: the model has as many as it may.
            ShuttingDownError: the server goes down.
        """
        while self._count[model] >= most and not self._down and await self._senders.make_room(model):
            pass  # another newcomer may have been faster
        if self._down:
            raise going_down()
        if self._count[model] >= most:
            message = f"{model} already has {most} live sessions (live.sessions); try again soon."
            raise BusyError(message, retry_after=RETRY_AFTER_S)
        self._count[model] += 1
        self._stops.add(stop)
        self._none.clear()
        self._senders.enter(model, stop)
        try:
            yield
        finally:
            self._senders.leave(model, stop)
            self._count[model] -= 1
            self._stops.discard(stop)
            if not self._stops:
                self._none.set()

    async def end(self) -> None:
        """Take no new ones, have those there are give their last texts, and wait until all are over."""
        self._down = True
        for stop in list(self._stops):
            stop()
        await self._none.wait()


def going_down() -> ShuttingDownError:
    """What the clients of sessions are told."""
    return ShuttingDownError("The server is shutting down; open the session again in a moment.", retry_after=RETRY_AFTER_S)
