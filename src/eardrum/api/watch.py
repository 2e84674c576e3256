"""Watches over a client while somebody works for it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from eardrum.api.asgi import ClientGoneError, Receive, Scope


class Watch:
    """Ends the work inside the block when the client hangs up. The request's body must have been received.

    Our own server tells of it (`eardrum.when_gone`), which costs nothing; of any other a task must ask, once `after` is set.

    Raises:
        ClientGoneError: it hung up.
    """

    def __init__(self, scope: Scope, receive: Receive, *, after: asyncio.Event | None = None):
        self._when_gone = scope.get("extensions", {}).get("eardrum.when_gone")
        self._receive = receive
        self._after = after
        self._gone = False
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        working = asyncio.current_task()
        assert working
        self._working: asyncio.Task[object] = working
        if self._when_gone:
            self._when_gone["call"](self._end)
        else:
            self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._when_gone:
            self._when_gone["call"](None)
        elif self._watching:
            self._watching.cancel()
        if self._gone:
            self._working.uncancel()
            raise ClientGoneError from error

    def _end(self) -> None:
        self._gone = True
        self._working.cancel()

    async def _watch(self) -> None:
        if self._after:
            await self._after.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._end()
