"""Whether this process still works: asked by the gateway on stdin, answered from a thread that does nothing else."""

from __future__ import annotations

import asyncio
import time

from eardrum.runner.batcher import Batcher


class Liveness:
    """Sees an engine that does not come back from a batch, and an event loop that does not come back from a callback."""

    def __init__(self, batcher: Batcher):
        self._batcher = batcher
        self._asked_at: float | None = None  # when the event loop was asked for a sign that it has not given

    def report(self, loop: asyncio.AbstractEventLoop | None) -> dict[str, float]:
        """Seconds that the batch in hand, and that the event loop, take already. Waits for no lock."""
        now = time.monotonic()
        silent = now - self._asked_at if self._asked_at is not None else 0.0
        if loop and self._asked_at is None:
            self._asked_at = now
            try:
                loop.call_soon_threadsafe(self._seen)
            except RuntimeError:  # it is closed: the process is about to end
                self._asked_at = None
        return {"batch_s": self._batcher.batch_s, "loop_s": silent}

    def _seen(self) -> None:
        self._asked_at = None
