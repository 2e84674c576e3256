"""The work of a runner without requests: it measures the fastest settings on this machine, and returns free memory to the system.

A request that comes in meanwhile waits for one step of measuring at most, and the longer a step takes, the longer the runner
must have been idle before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import psutil

from eardrum.engines.base import TuningPostponed
from eardrum.memory_trimming import return_free_memory
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.tuning import EngineTuner

T = TypeVar("T")

log = logging.getLogger(__name__)

TRIM_AFTER_S = 1.0
"""Seconds without requests after which free memory is returned. The next window takes its memory again, as every window does
with an allocator that keeps nothing."""

TUNE_AFTER_S = 5.0
"""Seconds without requests before anything is measured."""

IDLE_PER_STEP = 20.0
"""Seconds without requests for each second that a step of measuring takes."""

RETRY_S = 600.0
"""Seconds until something that other processes disturbed is measured again; twice as long after each further time."""

MEMORY_SHARE = 0.5
"""Most of the free memory that a step may take."""

CGROUP = Path("/sys/fs/cgroup")


class IdleWork:
    """Waits until a runner is idle, and then works. Used on the event loop, except for `report`."""

    def __init__(self, batcher: WindowBatcher | None = None, tuner: EngineTuner | None = None):
        """Wait for the windows of `batcher` to end before `tuner` measures. Without both there is only memory to return."""
        self._batcher = batcher
        self._tuner = tuner
        self._requests = 0
        self._idle_since = time.monotonic()
        self._retry_s = RETRY_S
        self._not_before = 0.0
        """When something may be measured again, on the monotonic clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to wait: the model is ready."""
        self._wait(TRIM_AFTER_S)

    def stop(self) -> None:
        """Begin nothing more, and end what continues after its step."""
        self._requests += 1
        if self._timer:
            self._timer.cancel()

    @contextmanager
    def hold_off(self) -> Iterator[None]:
        """Do nothing while a request is served."""
        self._requests += 1
        if self._timer:
            self._timer.cancel()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._idle_since = time.monotonic()
                self._wait(TRIM_AFTER_S)

    def report(self) -> dict[str, Any]:
        """The measurements, as part of a message to the parent; empty before."""
        return {"tuned": self._tuner.result} if self._tuner and self._tuner.result else {}

    def claim(self, seconds: float, memory: int = 0) -> None:
        """Allow a step of measuring that takes so many seconds and bytes. Called from its thread.

        Raises:
            TuningPostponed: there are requests, or not for long enough, or there is not enough memory.
        """
        idle_s = 0.0 if self._requests else time.monotonic() - self._idle_since
        if idle_s < (needed := max(TUNE_AFTER_S, seconds * IDLE_PER_STEP)):
            raise TuningPostponed(needed)
        if memory > MEMORY_SHARE * find_free_memory():
            raise TuningPostponed(None)

    def _wait(self, seconds: float) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._begin)

    def _begin(self) -> None:
        if not self._requests and (not self._task or self._task.done()):
            self._task = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        needed: float | None = (begin_s := max(TUNE_AFTER_S, self._not_before - self._idle_since))
        if self._has_work and time.monotonic() - self._idle_since >= begin_s:
            needed = await self._run_in_thread(self._tune)
        await self._run_in_thread(return_free_memory)
        if self._has_work and needed is not None and not self._requests:
            self._wait(max(needed - (time.monotonic() - self._idle_since), 0.0) + 0.01)

    @property
    def _has_work(self) -> bool:
        """Whether something is still to be measured."""
        return self._tuner is not None and self._tuner.pending

    async def _run_in_thread(self, work: Callable[[], T]) -> T:
        """Run it in its own thread, for which the process does not wait at its end."""
        loop, done = asyncio.get_running_loop(), asyncio.Future[T]()

        def run() -> None:
            result = work()
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(done.set_result, result)

        Thread(target=run, name="idle", daemon=True).start()
        return await done

    def _tune(self) -> float | None:
        """Measure what is still to be measured. Return after how many idle seconds to continue; None: after the next request."""
        assert self._batcher
        assert self._tuner
        try:
            with self._batcher.pause():
                self._tuner.tune(self.claim)
            if self._tuner.pending:
                return self._put_off()
            log.info("The fastest settings on this machine are: %s.", self._tuner.result)
        except TuningPostponed as postponed:
            return postponed.idle_s
        except Exception:  # the model serves all the same
            log.exception("The model could not be measured.")
            self._tuner.give_up()
        finally:
            self._batcher.apply_tuning(self._tuner.batch or self._batcher.batch)
        return None

    def _put_off(self) -> float:
        """Measure again much later. Return after how many idle seconds, if there is no request until then."""
        log.info("Other processes were busy while the model was measured: it is measured again in %g s.", self._retry_s)
        self._not_before = time.monotonic() + self._retry_s
        self._retry_s *= 2
        return self._not_before - self._idle_since


def find_free_memory() -> int:
    """Bytes that this process can still take: those of the machine, or of its control group (version 2)."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        free = min(free, int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    return free
