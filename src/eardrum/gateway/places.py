"""Places of requests and live sessions at models. The request of a slow client loses its place to a new one.

A client could hold a place by sending a few bytes now and then. So a model without a free place ends a request whose client
sends less than audio has. No request loses its place while others are free.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from eardrum.errors import BusyError, ShuttingDownError

log = logging.getLogger(__name__)

MIN_BYTES_PER_S = 500
"""Bytes a second. Speech over a mobile connection of 16 kbit/s has four times as many."""

WINDOW_S = 10.0
"""Shortest time over which the rate is measured; the oldest bytes that count are at most twice as old."""

LEAVE_TIMEOUT_S = 5.0
"""Longest wait for a place that a slow client gives up."""


class SendRateMeter:
    """Measures a client's sending rate. Only time spent waiting for the client counts.

    `slow_rate`: bytes a second below which the client is too slow to keep a place that others need.
    """

    def __init__(self, slow_rate: float = MIN_BYTES_PER_S):
        self.slow_rate = slow_rate
        self._since: float | None = None
        self._waited, self._size = 0.0, 0
        self._before = (0.0, 0)

    def start_waiting(self) -> None:
        """Start counting the time: the server waits for the client."""
        self._since = time.monotonic()

    def record_bytes(self, size: int) -> None:
        """Count bytes that arrived, and stop counting the time."""
        if self._since is not None:
            self._waited += time.monotonic() - self._since
            self._since = None
        self._size += size
        if self._waited >= WINDOW_S:
            self._before = self._waited, self._size
            self._waited, self._size = 0.0, 0

    @property
    def is_slow(self) -> bool:
        """Whether the client is too slow."""
        waiting = time.monotonic() - self._since if self._since is not None else 0.0
        waited = self._before[0] + self._waited + waiting
        return waited >= WINDOW_S and self._before[1] + self._size < self.slow_rate * waited


class SendingClient(Protocol):
    """A client that sends a body or audio."""

    @property
    def is_slow(self) -> bool:
        """Whether it sends less than audio has while the server waits for it."""

    def give_up_place(self) -> None:
        """End its request, because another one gets the place."""


SENDING_CLIENT: ContextVar[SendingClient | None] = ContextVar("sender", default=None)
"""The client of the current task."""


@dataclass(slots=True)
class HeldPlace:
    """A place and the client that holds it."""

    sender: SendingClient
    leaving: bool = False
    released: asyncio.Event | None = None
    """Set when the place is free; exists only while another request waits for the place."""


class PlaceRegistry:
    """The places that sending clients hold at models: for requests, or for live sessions."""

    def __init__(self) -> None:
        self._places: dict[str, dict[object, HeldPlace]] = {}

    def add_place(self, model: str, holder: object) -> None:
        """Record that a request has or needs a place, unless its client has already sent everything."""
        if sender := SENDING_CLIENT.get():
            self._places.setdefault(model, {})[holder] = HeldPlace(sender)

    def remove_place(self, model: str, holder: object) -> None:
        """Record that the request has left."""
        held = self._places.get(model, {}).pop(holder, None)
        if held and held.released:
            held.released.set()

    async def make_room(self, model: str) -> bool:
        """Let a slow client give up its place. Return False if there is none, or if it does not leave in time."""
        newcomer = SENDING_CLIENT.get()
        if newcomer and newcomer.is_slow:
            return False
        held = next((held for held in self._places.get(model, {}).values() if not held.leaving and held.sender.is_slow), None)
        if not held:
            return False
        held.leaving, held.released = True, asyncio.Event()
        held.sender.give_up_place()
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                await held.released.wait()
        except TimeoutError:
            log.warning("A slow client lost its place at %s and has not disconnected.", model)
            return False
        return True


SESSION_RETRY_AFTER_S = 5.0
"""`retry-after` for a client that found no place for a session."""


class LiveSessionRegistry:
    """Limits the live sessions per model, and ends all of them when the server shuts down."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._stops: set[Callable[[], None]] = set()
        self._places = PlaceRegistry()
        self._all_ended = asyncio.Event()
        self._all_ended.set()
        self._shutting_down = False

    @asynccontextmanager
    async def register_session(self, model: str, max_sessions: int, stop: Callable[[], None]) -> AsyncIterator[None]:
        """Register a session for the duration of the block. `stop` ends it early: when the server shuts down, or when its
        client is slow and another session needs the place.

        Raises:
            BusyError: the model has the maximum of sessions.
            ShuttingDownError: the server shuts down.
        """
        while self._count[model] >= max_sessions and not self._shutting_down and await self._places.make_room(model):
            pass  # another newcomer may have been faster
        if self._shutting_down:
            raise make_session_shutdown_error()
        if self._count[model] >= max_sessions:
            message = f"{model} already has {max_sessions} live sessions (live.max_sessions); try again soon."
            raise BusyError(message, retry_after=SESSION_RETRY_AFTER_S)
        self._count[model] += 1
        self._stops.add(stop)
        self._all_ended.clear()
        self._places.add_place(model, stop)
        try:
            yield
        finally:
            self._places.remove_place(model, stop)
            self._count[model] -= 1
            self._stops.discard(stop)
            if not self._stops:
                self._all_ended.set()

    def count_sessions(self, model: str) -> int:
        """Return the number of the model's open sessions."""
        return self._count[model]

    async def end_all(self) -> None:
        """Refuse new sessions, let the open ones send their last texts, and wait until all have ended."""
        self._shutting_down = True
        for stop in list(self._stops):
            stop()
        await self._all_ended.wait()


def make_session_shutdown_error() -> ShuttingDownError:
    """Make the error that clients of live sessions get when the server shuts down."""
    return ShuttingDownError(
        "The server is shutting down; open the session again in a moment.", retry_after=SESSION_RETRY_AFTER_S
    )
