"""Events on their way to the edge."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from eardrum.live import Ended, LiveEvent, Partial

WAITING = 256
"""Events that wait for an edge; then the process is not read from."""


class Outlet:
    """Holds them until the edge takes them. A partial takes the place of the one before it if that was not taken."""

    def __init__(self) -> None:
        self._events: deque[LiveEvent] = deque()
        self._error: BaseException | None = None
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self.over = False

    def put(self, event: LiveEvent) -> None:
        """One more; none follows `Ended`."""
        if self.over:
            return
        if isinstance(event, Partial) and self._events and _outdated(self._events[-1], event):
            self._events[-1] = event
        else:
            self._events.append(event)
        self.over = isinstance(event, Ended)
        self._some.set()

    async def room(self) -> None:
        """Wait while too many wait."""
        while len(self._events) >= WAITING:
            self._room.clear()
            await self._room.wait()

    def end(self, error: BaseException) -> None:
        """No more comes, for this reason."""
        if not self.over:
            self.over, self._error = True, error
            self._some.set()

    async def events(self) -> AsyncGenerator[LiveEvent, None]:
        """All of them, up to `Ended`.

        Raises:
            BaseException: what they ended with instead.
        """
        while True:
            while self._events:
                event = self._events.popleft()
                self._room.set()
                yield event
                if isinstance(event, Ended):
                    return
            if self._error:
                raise self._error
            self._some.clear()
            await self._some.wait()


def _outdated(old: LiveEvent, new: Partial) -> bool:
    return isinstance(old, Partial) and old.utterance == new.utterance
