"""Reports an engine or an event loop that hangs. A separate thread answers the gateway's requests on stdin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

from eardrum.engines.base import ModelEngine


class EngineCalls:
    """The running calls of an engine, at most one in each of its threads."""

    def __init__(self, engine: ModelEngine):
        self._engine = engine
        self._started_at: dict[int, float] = {}

    @contextmanager
    def measure(self) -> Iterator[float]:
        """Count the block as a call; yields the time of its start, by `time.monotonic`."""
        self._started_at[get_ident()] = started = time.monotonic()
        try:
            yield started
        finally:
            del self._started_at[get_ident()]

    @property
    def age_s(self) -> float:
        """Seconds since the oldest running call started; 0 for an engine that calls a server, which has its own timeouts."""
        started = [] if self._engine.remote else list(self._started_at.values())
        return time.monotonic() - min(started) if started else 0.0


class LivenessProbe:
    """Measures how long the engine's running call, and the event loop's running callback, have taken."""

    def __init__(self, calls: EngineCalls):
        self._calls = calls
        self._asked_at: float | None = None  # when a callback was scheduled that has not run yet

    def get_batch_age(self) -> float:
        """Return the seconds since the running call started; 0 without one."""
        return self._calls.age_s

    def report(self, loop: asyncio.AbstractEventLoop | None) -> dict[str, float]:
        """Return the seconds since the running call started and since the event loop last ran. Takes no lock."""
        now = time.monotonic()
        silent = now - self._asked_at if self._asked_at is not None else 0.0
        if loop and self._asked_at is None:
            self._asked_at = now
            try:
                loop.call_soon_threadsafe(self._confirm_loop)
            except RuntimeError:  # the loop is closed: the process is about to end
                self._asked_at = None
        return {"batch_s": self.get_batch_age(), "loop_s": silent}

    def _confirm_loop(self) -> None:
        self._asked_at = None
