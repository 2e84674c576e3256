"""Stops work for clients that hang up, and gives up on clients that stall in the middle of an upload."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from eardrum.api.asgi import ClientGoneError, Message, Receive, Scope
from eardrum.errors import ClientStalledError, EardrumError


class DisconnectWatcher:
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
            self._when_gone["call"](self._cancel_work)
        else:
            self._watching = asyncio.create_task(self._wait_for_disconnect())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._when_gone:
            self._when_gone["call"](None)
        elif self._watching:
            self._watching.cancel()
        if self._gone:
            self._working.uncancel()
            raise ClientGoneError from error

    def _cancel_work(self) -> None:
        self._gone = True
        self._working.cancel()

    async def _wait_for_disconnect(self) -> None:
        if self._after:
            await self._after.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel_work()


STALL_TIMEOUTS_KEY = "eardrum.waiting"
"""Where a scope has the one of its server."""


class StallTimeouts:
    """Waits for clients' messages, until the server has no more time for that."""

    def __init__(self) -> None:
        self._timers: set[asyncio.Timeout] = set()
        self.shutdown_error: EardrumError | None = None
        """Why nobody is waited for any more."""

    async def receive_message(self, receive: Receive, within_s: float) -> Message:
        """What a client sends next.

        Raises:
            StalledError: nothing came in time.
            EardrumError: that of `end`.
        """
        if self.shutdown_error:
            raise self.shutdown_error
        try:
            async with asyncio.timeout(within_s) as timer:
                self._timers.add(timer)
                try:
                    return await receive()
                finally:
                    self._timers.discard(timer)
        except TimeoutError:
            raise self.shutdown_error or ClientStalledError(
                f"Nothing arrived for {within_s:g} s in the middle of the upload."
            ) from None

    def stop_waiting(self, error: EardrumError) -> None:
        """Wait for nobody any more: who has not sent everything gets this error."""
        self.shutdown_error = error
        for timer in self._timers:
            timer.reschedule(asyncio.get_running_loop().time())
