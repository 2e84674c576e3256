"""uvicorn's server without its ten wake-ups a second: it sleeps until a client or a signal arrives."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from types import FrameType

import uvicorn

DATE_INTERVAL_S = 1.0
"""How old the time in the header `date` may be."""


class IdleServer(uvicorn.Server):
    """Ends after a signal or `request_exit`. Until then it wakes for clients, and every `DATE_INTERVAL_S`, so that cores can
    idle."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._exit_event = asyncio.Event()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Its event loop, once it has begun."""
        return self._loop

    def request_exit(self) -> None:
        """End soon. May be called from any thread."""
        self.should_exit = True
        if self._loop:  # if not, it has not begun, and looks before it waits
            with suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._exit_event.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came; uvicorn decides what it means."""
        super().handle_exit(sig, frame)
        self.request_exit()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the sockets."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        """Wait for the end."""
        while not await self.on_tick(0):  # the date is renewed in every tenth tick, which this one then is
            with suppress(TimeoutError):
                async with asyncio.timeout(DATE_INTERVAL_S):
                    await self._exit_event.wait()
