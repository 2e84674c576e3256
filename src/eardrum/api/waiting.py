"""Clients that are waited for in the middle of what they send, and the end of all patience with them."""

from __future__ import annotations

import asyncio

from eardrum.api.asgi import Message, Receive
from eardrum.errors import EardrumError, StalledError

KEY = "eardrum.waiting"
"""Where a scope has the one of its server."""


class Waiting:
    """Waits for clients' messages, until the server has no more time for that."""

    def __init__(self) -> None:
        self._timers: set[asyncio.Timeout] = set()
        self.over: EardrumError | None = None
        """Why nobody is waited for any more."""

    async def message(self, receive: Receive, within_s: float) -> Message:
        """What a client sends next.

        Raises:
            StalledError: nothing came in time.
            EardrumError: that of `end`.
        """
        if self.over:
            raise self.over
        try:
            async with asyncio.timeout(within_s) as timer:
                self._timers.add(timer)
                try:
                    return await receive()
                finally:
                    self._timers.discard(timer)
        except TimeoutError:
            raise self.over or StalledError(f"Nothing arrived for {within_s:g} s in the middle of the upload.") from None

    def end(self, error: EardrumError) -> None:
        """Wait for nobody any more: who has not sent everything gets this error."""
        self.over = error
        for timer in self._timers:
            timer.reschedule(asyncio.get_running_loop().time())
