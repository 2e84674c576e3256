"""Decodes the windows of all requests: waiting windows form batches, which one thread for each worker of the engine decodes."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from threading import Condition, Thread, local

from msgspec import Struct

from eardrum.concurrency import to_exception
from eardrum.engines.base import Engine, EngineResult, TuningPostponed, Window
from eardrum.errors import EardrumError
from eardrum.request_ids import get_request_id
from eardrum.runner.fair_queue import FairQueue, ServiceClass, WindowQueue, classify_window
from eardrum.runner.liveness import EngineCalls
from eardrum.transcription import TranscriptionRequest

log = logging.getLogger(__name__)

FIXED_SHARE = 0.25
"""Where the engine pads all windows to one length: the part of the cost of a full window that an empty one has, as the encoder
takes as long for it. The rest grows with the text."""

BRIEF_S = 15.0
"""Windows of clips up to this length are decoded beside files at once, by a reserved call. A longer one would slow them for as
long as one of their own."""

LEAST_AHEAD = 8
"""Windows a request may have waiting or in decoding, at least: few enough to bound its memory."""


class DecodedWindow(Struct, frozen=True):
    """A decoded window: the engine's result, the time it waited, and its share of the batch's decoding time."""

    result: EngineResult
    queue_s: float
    decode_s: float
    batch_share: float = 1.0
    """One part in so many as the batch had windows."""
    started_at: float = 0.0
    """When its batch began, by `time.monotonic`."""


@dataclass(slots=True, eq=False)
class DecodeJob:
    """A window in the queue."""

    request_id: int
    window: Window
    rank: ServiceClass
    cost: float
    """Seconds of audio that decoding it is worth."""
    padded_s: float
    """Seconds of audio with the engine's padding."""
    key: Hashable = None
    """The properties that all windows of one batch share."""
    future: Future[DecodedWindow] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    request_name: str = field(default_factory=get_request_id)
    """The request's id in logs."""


class WindowBatcher:
    """Owns the engine and forms batches. Any thread may submit windows; no batch waits for more windows."""

    def __init__(self, engine: Engine, *, batch: int, queue: WindowQueue[DecodeJob] | None = None):
        self.batch = batch
        self.decoded_windows = 0
        """Windows decoded to the end so far."""
        self.live_sessions = 0
        """Sessions of live speech that are open."""
        self.calls = EngineCalls(engine)
        self._engine = engine
        self._queue = queue if queue is not None else FairQueue[DecodeJob]()
        self._changed = Condition()
        self._closed = False
        self._paused = False
        self._decoding: set[DecodeJob] = set()
        self._waiting = 0
        """Windows in the queue."""
        self._busy = 0
        """Threads with a batch, without the reserved ones."""
        self._interruptions = local()
        """In each thread: `seconds` that its batch has waited for more urgent windows."""
        self._ids = itertools.count()
        self._threads: list[Thread] = []
        engine.before_step = self._decode_urgent_windows
        self._start_threads()

    @property
    def is_sequential(self) -> bool:
        """Whether a request's windows must be submitted one at a time, each when the one before it is done."""
        return self._engine.sequential

    @property
    def windows_ahead(self) -> int:
        """Windows a request may have waiting or in decoding: a full batch for each worker of the engine, and one that waits."""
        return 1 if self.is_sequential else max(LEAST_AHEAD, self.batch * (self._engine.parallel + 1))

    @property
    def is_word_support_certain(self) -> bool:
        """Whether the engine's capabilities tell for certain that it gives word times."""
        return not self._engine.remote

    def find_refusal(self, request: TranscriptionRequest) -> EardrumError | None:
        """Return the reason why the engine cannot serve the request, if it cannot."""
        return self._engine.refusal(request)

    def allocate_request_id(self) -> int:
        """Return a new number, under which a request submits its windows."""
        return next(self._ids)

    def submit(self, request_id: int, window: Window, rank: ServiceClass | None = None) -> Future[DecodedWindow]:
        """Queue a window in class `rank`, else in that of its request. The future fails with the engine's error."""
        can = self._engine.capabilities
        padded_s = can.max_window_s if can.fixed_window else window.seconds
        rank = classify_window(window.request.priority, window.start + window.seconds) if rank is None else rank
        job = DecodeJob(request_id, window, rank, self._compute_cost(window.seconds), padded_s, self._engine.batch_key(window))
        with self._changed:
            self._queue.push(job)
            self._waiting += 1
            self._changed.notify_all()  # the thread that one call would wake may be a reserved one
        return job.future

    def reassign(self, request_id: int, to: int) -> None:
        """Move a request's windows to another request, and waiting ones to class LIVE: partials turned out to be final."""
        with self._changed:
            waiting = self._queue.drop(request_id)  # they stay in the queue, so their number does not change
            for job in (*waiting, *self._decoding):
                if job.request_id == request_id:
                    job.request_id = to
            for job in waiting:
                job.rank = ServiceClass.LIVE
                self._queue.push(job)

    def cancel(self, request_id: int) -> None:
        """Drop a request's waiting windows, and mark the windows in decoding as cancelled."""
        with self._changed:
            dropped = self._queue.drop(request_id)
            self._waiting -= len(dropped)
            for job in self._decoding:
                job.window.cancelled |= job.request_id == request_id
        for job in dropped:
            job.future.cancel()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Have the engine decode nothing while its caller measures it.

        Raises:
            TuningPostponed: there are windows.
        """
        with self._changed:
            if self._decoding:
                raise TuningPostponed(None)
            self._paused = True
        try:
            with self.calls.measure():  # if a measurement hangs, so does the model
                yield
        finally:
            with self._changed:
                self._paused = False
                self._changed.notify_all()

    def apply_tuning(self, batch: int) -> None:
        """Form batches of another size from now on, and use as many threads as the engine now has workers."""
        self.batch = batch
        with self._changed:
            self._start_threads()
            self._changed.notify_all()

    @property
    def _thread_count(self) -> int:
        """One for each call that the engine takes at a time. The last ones are reserved for clips and live speech."""
        return self._engine.parallel + self._engine.reserved_calls

    def _start_threads(self) -> None:
        """Start the threads that are missing. Those that are too many end by themselves."""
        self._threads = self._threads[: self._thread_count]
        for number in range(len(self._threads), self._thread_count):
            self._threads.append(Thread(target=self._run, args=(number,), name=f"engine-{number}", daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """Stop after the running batch, cancel waiting windows and close the engine."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        while jobs := self._queue.take(self.batch):
            for job in jobs:
                job.future.cancel()
        self._engine.close()

    def _run(self, number: int) -> None:
        while taken := self._take_batch(number):
            jobs, is_reserved = taken
            with self.calls.measure():
                self._decode_batch(jobs)
            with self._changed:
                self._busy -= not is_reserved

    def _take_batch(self, number: int) -> tuple[list[DecodeJob], bool] | None:
        """Wait for the next batch for this thread, and return whether it is one for a reserved call; None if it is to end."""
        with self._changed:
            while not self._closed and number < self._thread_count:
                is_reserved = number >= self._engine.parallel
                if not self._paused and (jobs := self._take_urgent() if is_reserved else self._take_jobs()):
                    self._decoding.update(jobs)
                    self._waiting -= len(jobs)
                    self._busy += not is_reserved
                    if self._engine.reserved_calls and not _is_brief(jobs[0]):
                        self._changed.notify_all()  # a clip may wait that a reserved call decodes beside this batch
                    return jobs, is_reserved
                self._changed.wait()
        return None

    def _take_jobs(self) -> list[DecodeJob]:
        """Take the next batch. Where batches save little, idle workers share the waiting windows, and clips go one by one."""
        live = self.live_sessions > 0 and not self._engine.reserved_calls
        if self._engine.batches_clips:
            return self._queue.take(self.batch, live=live)
        share = ceil(self._waiting / max(self._engine.parallel - self._busy, 1))  # fewer may be left after a tuning
        return self._queue.take(min(self.batch, max(share, 1)), live=live, clips_alone=True)

    def _take_urgent(self) -> list[DecodeJob]:
        """Take a brief window of a clip, or one of live speech, that would wait for a file: for its beginning, too."""
        if self._busy < self._engine.parallel or all(map(_is_brief, self._decoding)):
            return []
        return self._queue.take_urgent(self._compute_cost(BRIEF_S))

    def _compute_cost(self, seconds: float) -> float:
        can = self._engine.capabilities
        return FIXED_SHARE * can.max_window_s + (1 - FIXED_SHARE) * seconds if can.fixed_window else seconds

    def _decode_urgent_windows(self) -> None:
        """Decode waiting windows that are more urgent than everything in decoding. The engine calls it between two steps."""
        while jobs := self._take_more_urgent():
            before, started = self._interruptions.seconds, time.monotonic()
            self._decode_batch(jobs)
            self._interruptions.seconds = before + time.monotonic() - started

    def _take_more_urgent(self) -> list[DecodeJob]:
        with self._changed:
            if not self._decoding or self._closed:  # nothing of the queue is decoded: an engine is measured, or tried
                return []
            limit = self.batch if self._engine.batches_clips else 1
            jobs = self._queue.take_ahead_of(min(job.rank for job in self._decoding), limit)
            self._decoding.update(jobs)
            self._waiting -= len(jobs)
        return jobs

    def _decode_batch(self, jobs: Sequence[DecodeJob]) -> None:
        """Decode a batch and settle its futures: with results, or with the engine's error."""
        self._interruptions.seconds = 0.0
        started, share = time.monotonic(), 1 / len(jobs)
        try:
            results = self._engine.transcribe([job.window for job in jobs])
            seconds = time.monotonic() - started - self._interruptions.seconds
            with self._changed:
                self.decoded_windows += sum(not job.window.cancelled for job in jobs)
            for job, result in zip(jobs, results, strict=True):
                _settle_future(job.future, DecodedWindow(result, started - job.queued_at, seconds * share, share, started))
        except BaseException as error:  # a panic in a library in Rust is no `Exception`, and must not end the thread either
            names = {"request": ",".join(sorted({job.request_name for job in jobs} - {""}))}
            if isinstance(error, EardrumError):
                log.warning("A batch of %d windows failed: %s", len(jobs), error.message, extra=names)
            else:
                log.exception("The engine failed on a batch of %d windows.", len(jobs), extra=names)
            for job in jobs:
                _settle_future(job.future, to_exception(error))
        finally:
            with self._changed:
                self._decoding.difference_update(jobs)


def _is_brief(job: DecodeJob) -> bool:
    return job.rank < ServiceClass.CLIP or (job.rank is ServiceClass.CLIP and job.window.seconds <= BRIEF_S)


def _settle_future(future: Future[DecodedWindow], outcome: DecodedWindow | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass  # cancelled while it was being decoded
