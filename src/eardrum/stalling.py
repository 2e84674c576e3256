"""Clients that do not take in what they asked for: nothing may wait for them without end."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable
from contextlib import suppress


class StallTimer:
    """Hangs up on a client to which nothing more could be sent for `seconds`; 0 is no limit.

    `start` it when the connection's buffer is full and `stop` it when there is room again. One that is slow but takes something
    in goes on: what counts is whether less is left to be taken in. `reason` says why it was hung up on, and is empty if it
    was not; `hung_up` is called then.
    """

    def __init__(self, transport: asyncio.Transport, hung_up: Callable[[], None]):
        self.seconds = 0.0
        self.reason = ""
        self._transport = transport
        self._hung_up = hung_up
        self._left = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Something waits to be sent."""
        if self.seconds and not self._timer:
            self._left = self._untaken()
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._look)

    def stop(self) -> None:
        """Nothing waits, or nobody is there any more."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if 0 < self._left <= self._untaken():
            self.reason = stalled(self.seconds)
            self._hung_up()
            self._transport.abort()
        else:
            self.start()

    def _untaken(self) -> int:
        """Bytes that the client's system has not confirmed: those in our buffer and, where they can be known, in the system's.

        The system keeps megabytes for a connection. To a slow client they are minutes in which our own buffer does not move.
        """
        size = self._transport.get_write_buffer_size()
        if connection := self._transport.get_extra_info("socket"):
            with suppress(OSError, ValueError):  # it may be closed already
                size += struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return size


def stalled(seconds: float) -> str:
    """Why a client was hung up on."""
    return f"The client took nothing in for {seconds:g} s (limits.stall_seconds)."
