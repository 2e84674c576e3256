"""Ports for programs that tests start.

The system gives out none of them by itself, and no other run of tests on this machine is given the same: a port that was
found free a moment ago would be taken by somebody else once in a while.
"""

from __future__ import annotations

import atexit
import random
import socket
from contextlib import suppress
from functools import cache

FIRST, LAST, SIZE = 20_000, 30_000, 200
"""Below what systems use for outgoing connections and for port 0."""


class PortBlock:
    """Ports in a row that belong to this process, because it holds the first of them."""

    def __init__(self) -> None:
        self._mark = socket.socket()
        atexit.register(self._mark.close)
        firsts = range(FIRST, LAST, SIZE)
        for first in random.sample(firsts, len(firsts)):
            with suppress(OSError):
                self._mark.bind(("127.0.0.1", first))
                self._ports = range(first + 1, first + SIZE)
                self._next = 0
                return
        raise AssertionError("all ports for tests are taken")

    def take_ports(self, count: int) -> int:
        """The first of so many ports in a row on which nobody listens. The longest unused ones come first."""
        for _ in self._ports:
            if self._next + count > len(self._ports):
                self._next = 0
            first, self._next = self._ports[self._next], self._next + count
            if all(map(_is_free, range(first, first + count))):
                return first
        raise AssertionError("programs of tests hold all ports")


@cache
def _get_block() -> PortBlock:
    return PortBlock()


def find_free_port() -> int:
    """A port on which nobody listens."""
    return find_free_ports(1)


def find_free_ports(count: int) -> int:
    """The first of so many ports in a row on which nobody listens."""
    return _get_block().take_ports(count)


def is_in_use(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def _is_free(port: int) -> bool:
    with socket.socket() as trial, suppress(OSError):
        trial.bind(("127.0.0.1", port))
        return True
    return False
