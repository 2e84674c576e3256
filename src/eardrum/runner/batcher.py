"""Decodes the windows of all requests: one thread feeds the engine, batches form from what is waiting."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from threading import Condition, Thread

from eardrum.engines.base import Engine, Hearing, Window
from eardrum.runner.queue import Class, FairQueue, Queue, class_of

log = logging.getLogger(__name__)

GAIN, FURTHER_GAIN = 1.15, 1.25
"""Speed-up per window that makes batching worth its wait, and each doubling after that: a short clip that comes in waits for
the batch in hand, so twice the batch is twice the wait."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A decoded window: what the engine heard, how long the window waited and its share of the decoding."""

    hearing: Hearing
    queue_s: float
    decode_s: float


@dataclass(slots=True, eq=False)
class Job:
    """A window in the queue."""

    request_id: int
    window: Window
    rank: Class
    future: Future[Heard] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)

    @property
    def cost(self) -> float:
        """Seconds of audio."""
        return self.window.seconds


class Batcher:
    """Owns the engine. Any thread submits windows; nothing waits on a timer to fill a batch."""

    def __init__(self, engine: Engine, *, batch: int, queue: Queue[Job] | None = None):
        self.batch = batch
        self.decoded = 0
        """Windows decoded to the end so far."""
        self._engine = engine
        self._queue = queue if queue is not None else FairQueue[Job]()
        self._changed = Condition()
        self._closed = False
        self._in_hand: list[Job] = []
        self._ids = itertools.count()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def request(self) -> int:
        """A number for a new request, under which its windows are submitted."""
        return next(self._ids)

    def submit(self, request_id: int, window: Window) -> Future[Heard]:
        """Queue a window; the future fails with whatever the engine raises."""
        job = Job(request_id, window, class_of(window.request.priority, window.start))
        with self._changed:
            self._queue.push(job)
            self._changed.notify()
        return job.future

    def cancel(self, request_id: int) -> None:
        """Drop a request's waiting windows, and have the engine give up those it is decoding, if it can."""
        with self._changed:
            dropped = self._queue.drop(request_id)
            for job in self._in_hand:
                job.window.cancelled |= job.request_id == request_id
        for job in dropped:
            job.future.cancel()

    def close(self) -> None:
        """Stop after the batch in hand, cancel what waits and release the engine."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        while jobs := self._queue.take(self.batch):
            for job in jobs:
                job.future.cancel()
        self._engine.close()

    def _run(self) -> None:
        while jobs := self._wait():
            try:
                self._decode(jobs)
            except Exception as error:
                log.exception("The engine failed on a batch of %d", len(jobs))
                for job in jobs:
                    _settle(job.future, error)

    def _wait(self) -> list[Job]:
        with self._changed:
            while not self._closed:
                if jobs := self._queue.take(self.batch):
                    self._in_hand = jobs
                    return jobs
                self._changed.wait()
        return []

    def _decode(self, jobs: Sequence[Job]) -> None:
        started = time.monotonic()
        hearings = self._engine.transcribe([job.window for job in jobs])
        share = (time.monotonic() - started) / len(jobs)
        self.decoded += sum(not job.window.cancelled for job in jobs)
        for job, hearing in zip(jobs, hearings, strict=True):
            _settle(job.future, Heard(hearing, started - job.queued_at, share))


def _settle(future: Future[Heard], outcome: Heard | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass  # cancelled while it was being decoded


def measured_batch(engine: Engine, probe: Window) -> int:
    """The batch size worth using on this machine, by timing the engine on copies of `probe`.

    Sizes grow while a window becomes enough cheaper; where batching gains nothing (an int8 Whisper on a CPU,
    for one) the answer is 1.
    """
    largest = engine.capabilities.max_batch
    engine.transcribe([probe])  # the first call allocates
    best, cost, enough = 1, _cost_per_window(engine, probe, 1), GAIN
    for size in (4, 8, 16):
        if size > largest:
            break
        batched = _cost_per_window(engine, probe, size)
        if cost / batched < enough:
            break
        best, cost, enough = size, batched, FURTHER_GAIN
    return best


def _cost_per_window(engine: Engine, probe: Window, size: int) -> float:
    timings = []
    for _ in range(2):
        started = time.perf_counter()
        engine.transcribe([probe] * size)
        timings.append(time.perf_counter() - started)
    return min(timings) / size
