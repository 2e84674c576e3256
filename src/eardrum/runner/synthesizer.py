"""Synthesizes the sentences of all requests, one thread for each worker of the engine. Requests take turns by sentences."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread

from msgspec import Struct

from eardrum.concurrency import to_exception
from eardrum.engines.base import Audio, VoiceEngine
from eardrum.errors import EardrumError
from eardrum.request_ids import get_request_id
from eardrum.runner.fair_queue import FairQueue, ServiceClass
from eardrum.runner.liveness import EngineCalls

log = logging.getLogger(__name__)

CHARACTERS_PER_S = 15.0
"""Characters of text that make a second of speech, about."""


class SynthesizedSentence(Struct, frozen=True):
    """A sentence's audio, the time it waited, and the time that the engine took."""

    audio: Audio
    queue_s: float
    synthesis_s: float


@dataclass(slots=True, eq=False)
class SentenceJob:
    """A sentence in the queue."""

    request_id: int
    text: str
    voice: str
    speed: float
    rank: ServiceClass
    key: Hashable = None
    future: Future[SynthesizedSentence] = field(default_factory=Future)
    queued_at: float = field(default_factory=time.monotonic)
    request_name: str = field(default_factory=get_request_id)
    """The request's id in logs."""

    @property
    def cost(self) -> float:
        """Seconds of speech that the sentence makes, about."""
        return len(self.text) / CHARACTERS_PER_S / self.speed

    @property
    def padded_s(self) -> float:
        """The same: nothing is padded, as sentences are synthesized one by one."""
        return self.cost


class SpeechSynthesizer:
    """Owns a voice engine and the queue of sentences. Used on the event loop.

    The first sentence of a request is to go before others' later ones, so that every client gets audio soon.
    """

    def __init__(self, engine: VoiceEngine):
        self.engine = engine
        self.calls = EngineCalls(engine)
        self._queue = FairQueue[SentenceJob]()
        self._changed = Condition()
        self._closed = False
        self._ids = itertools.count()
        self._threads = [
            Thread(target=self._run, name=f"engine-{number}", daemon=True) for number in range(max(engine.parallel, 1))
        ]
        for thread in self._threads:
            thread.start()

    def allocate_request_id(self) -> int:
        """Return a new number, under which a request submits its sentences."""
        return next(self._ids)

    def submit(self, request_id: int, text: str, voice: str, speed: float, rank: ServiceClass) -> Future[SynthesizedSentence]:
        """Queue a sentence. The future fails with the engine's error."""
        job = SentenceJob(request_id, text, voice, speed, rank)
        with self._changed:
            self._queue.push(job)
            self._changed.notify()
        return job.future

    def cancel(self, request_id: int) -> None:
        """Drop a request's waiting sentences. One that is in synthesis is finished, and its audio dropped."""
        with self._changed:
            dropped = self._queue.drop(request_id)
        for job in dropped:
            job.future.cancel()

    def close(self) -> None:
        """Stop after the sentences in synthesis, cancel those that wait, and close the engine."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        while jobs := self._queue.take(1):
            jobs[0].future.cancel()
        self.engine.close()

    def _run(self) -> None:
        while job := self._take_job():
            try:
                self._synthesize(job)
            except BaseException as error:  # as in `WindowBatcher`
                if isinstance(error, EardrumError):
                    log.warning("A sentence failed: %s", error.message, extra={"request": job.request_name})
                else:
                    log.exception("The engine failed on a sentence.", extra={"request": job.request_name})
                job.future.set_exception(to_exception(error))

    def _take_job(self) -> SentenceJob | None:
        """Wait for the next sentence; None once everything ends."""
        with self._changed:
            while not self._closed:
                if jobs := self._queue.take(1):
                    return jobs[0]
                self._changed.wait()
        return None

    def _synthesize(self, job: SentenceJob) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        with self.calls.measure() as began:
            audio = self.engine.speak(job.text, job.voice, job.speed)
        job.future.set_result(SynthesizedSentence(audio, began - job.queued_at, time.monotonic() - began))
