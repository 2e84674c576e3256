"""Measures the fastest settings on this machine for a loaded engine: the size of its batches, and its own options."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np
import psutil
from msgspec import Struct

from eardrum.engines.base import ClaimIdleTime, Engine, Window
from eardrum.runner.byte_pipe import BytePipe
from eardrum.runner.decoder import AudioDecoder
from eardrum.transcription import SAMPLE_RATE, TranscriptionRequest

PROBE_S = 3
"""Seconds of the sample recording on which batch sizes are timed."""

MIN_GAIN, MIN_FURTHER_GAIN = 1.15, 1.25
"""Speed-up per window that makes batching worth its wait, and each doubling after that: a short clip that comes in waits for
the running batch, so twice the batch is twice the wait."""

ENGINES_OWN = 4.0
"""How much longer than a window an engine's own measurement of batch sizes takes."""

BATCH_SIZES = (4, 8, 16)
ROUNDS = 3
"""Comparisons of two sizes, in turn, so that other work on the machine slows both. The best of each counts."""

MAX_TUNING_S = 30.0
"""Longest time spent on finding the batch size, which is remembered."""

LONG_BATCH_S = 2.0
"""Batches that take this long are compared once: noise matters less."""


FIRST_BATCH, FIRST_BATCH_GPU = 4, 8
"""Windows decoded together until a runner was idle for long enough to measure what is best."""


def choose_first_batch(engine: Engine) -> int:
    """Choose a batch size before anything is measured."""
    return min(FIRST_BATCH_GPU if engine.device == "cuda" else FIRST_BATCH, engine.capabilities.max_batch)


def measure_batch_size(engine: Engine, probe: Window, claim: ClaimIdleTime) -> int:
    """Measure the batch size worth using, by timing the engine on copies of `probe`.

    Sizes grow while a window becomes cheaper by enough. If batching gains nothing (such as an int8 Whisper on a CPU), or
    measuring would take too long, the result is 1.
    """
    until = time.perf_counter() + MAX_TUNING_S
    claim(0.0, 0)
    window_s = _time_batch(engine, probe, 1).seconds  # the first call also allocates
    best = 1
    for size in BATCH_SIZES:
        if size > engine.capabilities.max_batch or time.perf_counter() + window_s * (best + size) > until:
            break
        window_s, gain = _compare_sizes(engine, probe, best, size, partial(claim, window_s * size, 0))
        if gain < (MIN_GAIN if best == 1 else MIN_FURTHER_GAIN):
            break
        best = size
    return best


class BatchTiming(Struct, frozen=True):
    """How long the engine took for a batch."""

    seconds: float
    cost: float
    """The seconds by which sizes are compared: of CPU time if `is_timed_by_cpu`, else by the clock."""


def is_timed_by_cpu(engine: Engine) -> bool:
    """Whether batch sizes are compared by the CPU time of this process, which other processes hardly change."""
    return engine.device == "cpu"


def _compare_sizes(engine: Engine, probe: Window, small: int, large: int, claim: Callable[[], None]) -> tuple[float, float]:
    """Compare batches of two sizes: seconds per window in the small one, and how many times cheaper a window is in the large."""
    rounds: list[tuple[BatchTiming, BatchTiming]] = []
    gain = 0.0
    # One comparison without any gain may be other work during the larger batch; after two of them, a third would find none.
    while len(rounds) < 2 or (len(rounds) < ROUNDS and gain >= 1.0):
        claim()
        rounds.append((_time_batch(engine, probe, small), _time_batch(engine, probe, large)))
        gain = min(one.cost for one, _ in rounds) / small / (min(other.cost for _, other in rounds) / large)
        if rounds[-1][1].seconds > LONG_BATCH_S:
            break
    return min(one.seconds for one, _ in rounds) / small, gain


def _time_batch(engine: Engine, probe: Window, size: int) -> BatchTiming:
    started, cpu_started = time.perf_counter(), time.process_time()
    engine.transcribe([probe] * size)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    return BatchTiming(seconds, cpu_s if is_timed_by_cpu(engine) else seconds)


MAX_FOREIGN_SHARE = 0.1
"""Share of the cores' time that other processes may take while something is timed by the clock."""

FOREIGN_SLACK_S = 0.05
"""Seconds more that they may take: the system counts the time of a core in steps of 10 ms."""


class CoreWatch:
    """Notices other processes that were busy on the cores of this one during the steps of a measurement by the clock."""

    def __init__(self, claim: ClaimIdleTime):
        self._claim = claim
        self._started: tuple[float, float] | None = None
        self.is_disturbed = False
        """Whether they were, in a step that has ended."""

    def claim_step(self, seconds: float, memory: int = 0) -> None:
        """End the step in progress, then claim the next one and begin it."""
        self.end_step()
        self._claim(seconds, memory)
        self._started = _read_core_times()

    def end_step(self) -> None:
        """End the step in progress, if there is one."""
        if self._started:
            all_s, foreign_s = (now - before for now, before in zip(_read_core_times(), self._started, strict=True))
            self.is_disturbed |= foreign_s > MAX_FOREIGN_SHARE * all_s + FOREIGN_SLACK_S
            self._started = None


def _read_core_times() -> tuple[float, float]:
    """Seconds that the cores of this process have had so far, and those in which they were busy with others."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    all_s = idle_s = 0.0
    with suppress(OSError):  # a sandbox may hide the cores' times; then nothing is noticed
        for number, core in enumerate(psutil.cpu_times(percpu=True)):
            if number in usable:
                spent = core._asdict()
                all_s += sum(seconds for name, seconds in spent.items() if not name.startswith("guest"))  # they are in `user`
                idle_s += spent["idle"] + spent.get("iowait", 0.0)
    return all_s, all_s - idle_s - time.process_time()


class EngineTuner:
    """Measures a loaded engine."""

    def __init__(self, engine: Engine, batch: int):
        self._engine = engine
        self.batch = batch
        """The best size of batches, as far as it was measured; 0 if it was not."""
        self._knows_batch = bool(batch)
        self._knows_options = False
        self._has_given_up = False
        self.result: dict[str, Any] = {}
        """What was measured undisturbed: `batch` and `options`, for later loads."""

    @property
    def pending(self) -> bool:
        """Whether there is something to measure."""
        return not self._has_given_up and (not self._knows_batch or self._can_tune_options)

    @property
    def _can_tune_options(self) -> bool:
        return self._engine.can_be_tuned and not self._knows_options

    def tune(self, claim: ClaimIdleTime) -> None:
        """Measure what is still to be measured. A result that other processes disturbed is used, but stays `pending`.

        Raises:
            TuningPostponed: by `claim`, which is called before each step with its seconds and bytes.
        """
        if not self._knows_batch:
            watch = CoreWatch(claim)
            self.batch = self._find_batch_size(watch.claim_step)
            watch.end_step()
            self._knows_batch = is_timed_by_cpu(self._engine) or not watch.is_disturbed
            if self._knows_batch:
                self.result = {"batch": self.batch, "options": self.result.get("options", {})}
        if self._can_tune_options:
            watch = CoreWatch(claim)
            self._engine.tune(watch.claim_step)
            watch.end_step()
            self._knows_options = not watch.is_disturbed
            if self._knows_options:
                self.result = {"batch": self.batch if self._knows_batch else 0, "options": dict(self._engine.measured)}

    def _find_batch_size(self, claim: ClaimIdleTime) -> int:
        if self._engine.capabilities.max_batch == 1:
            return 1
        probe = load_sample_window()
        claim(0.0, 0)
        window_s = _time_batch(self._engine, probe, 1).seconds
        claim(ENGINES_OWN * window_s, 0)
        return self._engine.measure_batch_size() or measure_batch_size(self._engine, probe, claim)

    def give_up(self) -> None:
        """Measure nothing more."""
        self._has_given_up = True


def load_sample_window() -> Window:
    """Load the beginning of the sample recording that ships with the package."""
    sample = (files("eardrum") / "sample.ogg").read_bytes()
    pieces = list(AudioDecoder(BytePipe.from_bytes(sample), raw_pcm=False, max_seconds=60))
    audio = np.concatenate(pieces)[: PROBE_S * SAMPLE_RATE]
    return Window(audio, 0.0, 1.0, (0.0, PROBE_S), TranscriptionRequest())
