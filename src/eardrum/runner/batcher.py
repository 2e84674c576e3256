"""Decodes the windows of all requests: batches form from what is waiting, and a thread for each replica feeds the engine."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from threading import Condition, Thread, get_ident

from eardrum.engines.base import Engine, Hearing, Window
from eardrum.errors import EardrumError
from eardrum.runner.queue import Class, FairQueue, Queue, class_of
from eardrum.types import Request

log = logging.getLogger(__name__)


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
    cost: float
    """Seconds of audio that decoding it is worth."""
    key: Hashable = None
    """What windows of one batch must share."""
    future: Future[Heard] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)


class Batcher:
    """Owns the engine. Any thread submits windows; nothing waits on a timer to fill a batch."""

    def __init__(self, engine: Engine, *, batch: int, queue: Queue[Job] | None = None):
        self.batch = batch
        self.decoded = 0
        """Windows decoded to the end so far."""
        self.live = 0
        """Sessions of live speech that are open."""
        self._engine = engine
        self._queue = queue if queue is not None else FairQueue[Job]()
        self._changed = Condition()
        self._closed = False
        self._in_hand: set[Job] = set()
        self._begun: dict[int, float] = {}
        """When each thread's batch in hand was begun."""
        self._ids = itertools.count()
        self._threads = [Thread(target=self._run, name=f"engine-{n}", daemon=True) for n in range(engine.parallel)]
        for thread in self._threads:
            thread.start()

    @property
    def sequential(self) -> bool:
        """Whether a request's windows must be submitted one at a time, each when the one before it is done."""
        return self._engine.sequential

    @property
    def knows_words(self) -> bool:
        """Whether it is certain before decoding that the engine tells word times, if it says so."""
        return not self._engine.remote

    @property
    def batch_s(self) -> float:
        """Seconds that the oldest batch in hand takes already. An engine that asks a server elsewhere has timeouts of its own."""
        begun = [] if self._engine.remote else list(self._begun.values())
        return time.monotonic() - min(begun) if begun else 0.0

    def refusal(self, request: Request) -> EardrumError | None:
        """Why the engine cannot do what is asked."""
        return self._engine.refusal(request)

    def request(self) -> int:
        """A number for a new request, under which its windows are submitted."""
        return next(self._ids)

    def submit(self, request_id: int, window: Window, rank: Class | None = None) -> Future[Heard]:
        """Queue a window, in the class of its request unless told otherwise; the future fails with whatever the engine raises."""
        can = self._engine.capabilities
        cost = can.max_window_s if can.fixed_window else window.seconds
        rank = class_of(window.request.priority, window.start) if rank is None else rank
        job = Job(request_id, window, rank, cost, key=self._engine.batch_key(window))
        with self._changed:
            self._queue.push(job)
            self._changed.notify()
        return job.future

    def hand_over(self, request_id: int, to: int) -> None:
        """Make the windows of one request those of another one, and those that wait windows of live speech: partials have
        turned out to be final."""
        with self._changed:
            waiting = self._queue.drop(request_id)
            for job in (*waiting, *self._in_hand):
                if job.request_id == request_id:
                    job.request_id = to
            for job in waiting:
                job.rank = Class.LIVE
                self._queue.push(job)

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
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        while jobs := self._queue.take(self.batch):
            for job in jobs:
                job.future.cancel()
        self._engine.close()

    def _run(self) -> None:
        while jobs := self._wait():
            try:
                self._decode(jobs)
            except Exception as error:
                if isinstance(error, EardrumError):
                    log.warning("A batch of %d failed: %s", len(jobs), error.message)
                else:
                    log.exception("The engine failed on a batch of %d", len(jobs))
                for job in jobs:
                    _settle(job.future, error)
            finally:
                with self._changed:
                    self._in_hand.difference_update(jobs)

    def _wait(self) -> list[Job]:
        with self._changed:
            while not self._closed:
                if jobs := self._queue.take(self.batch, live=self.live > 0):
                    self._in_hand.update(jobs)
                    return jobs
                self._changed.wait()
        return []

    def _decode(self, jobs: Sequence[Job]) -> None:
        self._begun[get_ident()] = started = time.monotonic()
        try:
            hearings = self._engine.transcribe([job.window for job in jobs])
        finally:
            del self._begun[get_ident()]
        share = (time.monotonic() - started) / len(jobs)
        with self._changed:
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
