"""The live sessions there are: how many a model has, and their common end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eardrum.errors import BusyError, ShuttingDownError

RETRY_AFTER_S = 5.0
"""What one too many is told."""


class Sessions:
    """Everybody who opens one is listed here until it is over, its last events told."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._stops: set[Callable[[], None]] = set()
        self._none = asyncio.Event()
        self._none.set()
        self._down = False

    @contextmanager
    def one_more(self, model: str, most: int, stop: Callable[[], None]) -> Iterator[None]:
        """List one for the duration of the block. `stop` tells it that the server goes down.

        Raises:
            BusyError: the model has as many as it may.
            ShuttingDownError: the server goes down.
        """
        if self._down:
            raise going_down()
        if self._count[model] >= most:
            message = f"{model} already has {most} live sessions (live.sessions); try again soon."
            raise BusyError(message, retry_after=RETRY_AFTER_S)
        self._count[model] += 1
        self._stops.add(stop)
        self._none.clear()
        try:
            yield
        finally:
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
