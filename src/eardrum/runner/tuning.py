"""Measures the fastest settings on this machine for a loaded engine: the size of its batches, and its own options."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np

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
"""Comparisons of two sizes, in turn, so that other work on the machine slows both. The best time of each counts."""

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
    cost = _time_batch(engine, probe, 1)  # the first call also allocates
    best = 1
    for size in BATCH_SIZES:
        if size > engine.capabilities.max_batch or time.perf_counter() + cost * (best + size) > until:
            break
        cost, batched = _compare_sizes(engine, probe, best, size, partial(claim, cost * size, 0))
        if cost / batched < (MIN_GAIN if best == 1 else MIN_FURTHER_GAIN):
            break
        best = size
    return best


def _compare_sizes(engine: Engine, probe: Window, small: int, large: int, claim: Callable[[], None]) -> tuple[float, float]:
    """Seconds per window in batches of two sizes."""
    timings = []
    for _ in range(ROUNDS):
        claim()
        timings.append((_time_batch(engine, probe, small), _time_batch(engine, probe, large)))
        one, other = timings[-1]
        if other > LONG_BATCH_S or one / small < other / large:  # no gain at all: more rounds will not find one
            break
    return min(t for t, _ in timings) / small, min(t for _, t in timings) / large


def _time_batch(engine: Engine, probe: Window, size: int) -> float:
    started = time.perf_counter()
    engine.transcribe([probe] * size)
    return time.perf_counter() - started


class EngineTuner:
    """Measures a loaded engine. `batch` is 0 if its batch size is not known yet."""

    def __init__(self, engine: Engine, batch: int):
        self._engine = engine
        self._batch = batch
        self.pending = not batch or engine.can_be_tuned
        """Whether there is something to measure."""
        self.result: dict[str, Any] = {}
        """What was measured: `batch` and `options`, for later loads."""

    def tune(self, claim: ClaimIdleTime) -> None:
        """Measure what is still to be measured.

        Raises:
            TuningPostponed: by `claim`, which is called before each step with its seconds and bytes.
        """
        if not self._batch:
            self._batch = self._find_batch_size(claim)
            self.result |= {"batch": self._batch, "options": dict(self._engine.measured)}
        if self._engine.can_be_tuned:
            self._engine.tune(claim)
            self.result |= {"batch": self._batch, "options": dict(self._engine.measured)}
        self.pending = False

    def _find_batch_size(self, claim: ClaimIdleTime) -> int:
        if self._engine.capabilities.max_batch == 1:
            return 1
        probe = load_sample_window()
        claim(0.0, 0)
        cost = _time_batch(self._engine, probe, 1)
        claim(ENGINES_OWN * cost, 0)
        return self._engine.measure_batch_size() or measure_batch_size(self._engine, probe, claim)

    def give_up(self) -> None:
        """Measure nothing more."""
        self.pending = False


def load_sample_window() -> Window:
    """Load the beginning of the sample recording that ships with the package."""
    sample = (files("eardrum") / "sample.ogg").read_bytes()
    pieces = list(AudioDecoder(BytePipe.from_bytes(sample), raw_pcm=False, max_seconds=60))
    audio = np.concatenate(pieces)[: PROBE_S * SAMPLE_RATE]
    return Window(audio, 0.0, 1.0, (0.0, PROBE_S), TranscriptionRequest())
