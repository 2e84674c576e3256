"""Watches over a client while somebody works for it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from eardrum.api.asgi import ClientGoneError, Receive


class Watch:
    """Ends the work inside the block when the client hangs up. The request's body must have been received.

    Raises:
        ClientGoneError: it hung up.
    """

    def __init__(self, receive: Receive, *, after: asyncio.Event | None = None):
        self._receive = receive
        self._after = after
        self._gone = False

    async def __aenter__(self) -> Self:
        working = asyncio.current_task()
        assert working
        self._working: asyncio.Task[object] = working
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._watching.cancel()
        if self._gone:
            self._working.uncancel()
            raise ClientGoneError from error

    async def _watch(self) -> None:
        if self._after:
            await self._after.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._working.cancel()
