"""Limits on client connections: clients that stop reading are disconnected, and file descriptors are kept in reserve."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import resource
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class StallTimer:
    """Hangs up on a client to which nothing more could be sent for `seconds`; 0 is no limit.

    `start` it when the connection's buffer is full and `stop` it when there is room again. One that is slow but takes something
    in continues: what counts is whether less is left to be read. `reason` says why it was disconnected, and is empty if it
    was not; `hung_up` is called then.
    """

    def __init__(self, transport: asyncio.Transport, hung_up: Callable[[], None]):
        self.seconds = 0.0
        self.reason = ""
        self._transport = transport
        self._on_stall = hung_up
        self._unacknowledged = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Something waits to be sent."""
        if self.seconds and not self._timer:
            self._unacknowledged = self._count_unacknowledged()
            self._timer = asyncio.get_running_loop().call_later(self.seconds, self._check_progress)

    def stop(self) -> None:
        """No data waits, or the client has disconnected."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _check_progress(self) -> None:
        self._timer = None
        if 0 < self._unacknowledged <= self._count_unacknowledged():
            self.reason = describe_stall(self.seconds)
            self._on_stall()
            self._transport.abort()
        else:
            self.start()

    def _count_unacknowledged(self) -> int:
        """Bytes that the client's system has not confirmed: those in our buffer and, where they can be known, in the system's.

        The system keeps megabytes for a connection. To a slow client they are minutes in which our own buffer does not move.
        """
        size = self._transport.get_write_buffer_size()
        if connection := self._transport.get_extra_info("socket"):
            with suppress(OSError, ValueError):  # it may be closed already
                size += struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
        return size


def describe_stall(seconds: float) -> str:
    """Why the client was disconnected; empty if it was not."""
    return f"The client read nothing for {seconds:g} s (limits.stall_timeout)."


TCP_CLOSED_STATES = (7, 8)
"""CLOSE and CLOSE_WAIT of Linux: the connection was reset, or the client has sent its end."""


def is_closed_by_peer(transport: asyncio.Transport) -> bool:
    """Whether a client has closed its TCP connection, also behind data that is not read yet. False where that is unknown."""
    connection = transport.get_extra_info("socket")
    if transport.is_closing() or not connection or not hasattr(socket, "TCP_INFO"):
        return transport.is_closing()
    try:
        state: int = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    except OSError:
        return False
    return state in TCP_CLOSED_STATES


log = logging.getLogger(__name__)

RESERVED_DESCRIPTORS = 256
"""At most. A request may need three beside its connection: a file, and a connection to its model and one more."""

WARNING_INTERVAL_S = 60.0
"""How often it is said that they are short."""


class DescriptorMonitor:
    """Tells whether few are left. They are counted only where many connections, or a high number of one, make it likely."""

    def __init__(self) -> None:
        self._warned_at = float("-inf")

    @property
    def soft_limit(self) -> int:
        """How many there can be; 0 if unknown."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return 0 if soft == resource.RLIM_INFINITY else soft

    def are_short(self, number: int, connections: int) -> bool:
        """Whether only the reserve is left, beside a new connection of this number and as many. Said in the log, now and then."""
        limit = self.soft_limit
        if not limit or (number < limit // 2 and connections < limit // 4):
            return False
        try:
            used = sum(1 for _ in Path("/dev/fd").iterdir())
        except OSError:  # to look takes one as well
            used = limit
        if used < limit - min(RESERVED_DESCRIPTORS, limit // 4):
            return False
        if (now := time.monotonic()) - self._warned_at > WARNING_INTERVAL_S:
            self._warned_at = now
            log.warning(
                "File descriptors are short: %d of %d are in use. Idle connections are closed, others refused: "
                "raise `ulimit -n` (LimitNOFILE of a service).",
                used,
                limit,
            )
        return True


descriptor_monitor = DescriptorMonitor()
"""Those of this process."""
