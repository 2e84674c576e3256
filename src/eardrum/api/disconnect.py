"""Cancels the work for clients that disconnect."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from eardrum.api.asgi import ClientGoneError, Receive, Scope


class CancelScope:
    """Cancels the work of one task when the client disconnects, and turns that cancellation into a `ClientGoneError`.

    Every transport uses it: HTTP by `DisconnectWatcher`, WebSockets by `ServerWebSocket`.
    """

    is_cancelled = False

    def enter(self) -> None:
        """Begin the work, which belongs to the current task."""
        task = asyncio.current_task()
        assert task
        self._task: asyncio.Task[object] = task

    def cancel(self) -> None:
        """Cancel the work."""
        self.is_cancelled = True
        self._task.cancel()

    def exit(self, error: BaseException | None, reason: str = "") -> None:
        """End the work, which raised `error`.

        Raises:
            ClientGoneError: the work was cancelled, for this reason.
        """
        if self.is_cancelled:
            self._task.uncancel()
            raise ClientGoneError(reason) from error


DISCONNECTS = ("http.disconnect", "websocket.disconnect")


class DisconnectWatcher:
    """Cancels the work inside the block when the client disconnects: from HTTP, or from a WebSocket that is not accepted yet.

    Our own HTTP server calls back on a disconnect (`eardrum.when_gone`), which costs nothing. Otherwise a task waits for the
    message; it starts after `after` is set, because until then the work itself receives the request's body.

    Raises:
        ClientGoneError: the client disconnected.
    """

    def __init__(self, scope: Scope, receive: Receive, *, after: asyncio.Event | None = None):
        self._when_gone = scope.get("extensions", {}).get("eardrum.when_gone")
        self._receive = receive
        self._after = after
        self._work = CancelScope()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._work.enter()
        if self._when_gone:
            self._when_gone["call"](self._work.cancel)
        else:
            self._watching = asyncio.create_task(self._wait_for_disconnect())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._when_gone:
            self._when_gone["call"](None)
        elif self._watching:
            self._watching.cancel()
        if self._work.is_cancelled:
            self._work.exit(error)

    async def _wait_for_disconnect(self) -> None:
        if self._after:
            await self._after.wait()
        while (await self._receive())["type"] not in DISCONNECTS:
            pass
        self._work.cancel()
