"""Measures how fast clients send, and ends the request of a slow one when a newcomer needs its place.

Holding a place costs a client nothing but bytes now and then. So a model that has no place left for a newcomer ends a request
whose client sends less than audio has, and nobody loses a place while there are others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger(__name__)

MIN_BYTES_PER_S = 500
"""Bytes a second. Speech over a mobile connection of 16 kbit/s has four times as many."""

WINDOW_S = 10.0
"""Shortest time over which that is measured, and the oldest that still counts is at most twice as long ago."""

LEAVE_TIMEOUT_S = 5.0
"""Longest time that a newcomer waits for one that gives up its place."""


class SendRateMeter:
    """How fast a client sends, in the time in which nothing but the client was waited for.

    `slow` is the number of bytes a second below which it is too slow to hold a place that others want.
    """

    def __init__(self, slow: float = MIN_BYTES_PER_S):
        self.slow_rate = slow
        self._since: float | None = None
        self._waited, self._size = 0.0, 0
        self._before = (0.0, 0)

    def start_waiting(self) -> None:
        """From now on it is waited for."""
        self._since = time.monotonic()

    def record_bytes(self, size: int) -> None:
        """So many bytes came, whether they were waited for or not."""
        if self._since is not None:
            self._waited += time.monotonic() - self._since
            self._since = None
        self._size += size
        if self._waited >= WINDOW_S:
            self._before = self._waited, self._size
            self._waited, self._size = 0.0, 0

    @property
    def is_slow(self) -> bool:
        """Whether it is too slow."""
        waiting = time.monotonic() - self._since if self._since is not None else 0.0
        waited = self._before[0] + self._waited + waiting
        return waited >= WINDOW_S and self._before[1] + self._size < self.slow_rate * waited


class SendingClient(Protocol):
    """A client that is sending."""

    @property
    def is_slow(self) -> bool:
        """Whether it sends less than audio has, and is waited for."""

    def give_up_place(self) -> None:
        """End its request: another one gets its place."""


SENDING_CLIENT: ContextVar[SendingClient | None] = ContextVar("sender", default=None)
"""The client for which everything is done here."""


@dataclass(slots=True)
class HeldPlace:
    """A place, and whose it is."""

    sender: SendingClient
    leaving: bool = False
    released: asyncio.Event | None = None
    """Set when it is free; there only once somebody waits for it."""


class PlaceRegistry:
    """Who holds which places. A place is one of those that `of` has: a model's requests, or its live sessions."""

    def __init__(self) -> None:
        self._places: dict[str, dict[object, HeldPlace]] = {}

    def add_place(self, of: str, who: object) -> None:
        """This request holds, or wants, a place. Nothing is noted where its client has sent everything before."""
        if sender := SENDING_CLIENT.get():
            self._places.setdefault(of, {})[who] = HeldPlace(sender)

    def remove_place(self, of: str, who: object) -> None:
        """It does no more."""
        held = self._places.get(of, {}).pop(who, None)
        if held and held.released:
            held.released.set()

    async def make_room(self, of: str) -> bool:
        """Have one whose client is slow give up its place; False if there is none, or it does not leave soon."""
        newcomer = SENDING_CLIENT.get()
        if newcomer and newcomer.is_slow:
            return False
        held = next((held for held in self._places.get(of, {}).values() if not held.leaving and held.sender.is_slow), None)
        if not held:
            return False
        held.leaving, held.released = True, asyncio.Event()
        held.sender.give_up_place()
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await held.released.wait()
        except TimeoutError:
            log.warning("A client that gives up its place at %s for being slow does not leave.", of)
            return False
        return True
