"""How many windows are worth decoding at once on this machine, found out by timing the engine."""

from __future__ import annotations

import time

from eardrum.engines.base import Engine, Window

GAIN, FURTHER_GAIN = 1.15, 1.25
"""Speed-up per window that makes batching worth its wait, and each doubling after that: a short clip that comes in waits for
the batch in hand, so twice the batch is twice the wait."""

SIZES = (4, 8, 16)
ROUNDS = 3
"""How often two sizes are compared, turn by turn: other work on the machine then slows both, and the best of each counts."""

PATIENCE_S = 30.0
"""Longest time spent on finding the batch size, which is remembered."""

LONG_S = 2.0
"""Batches that take so long are compared once: chance has less to say in them."""


def measured_batch(engine: Engine, probe: Window) -> int:
    """The batch size worth using, by timing the engine on copies of `probe`.

    Sizes grow while a window becomes enough cheaper; where batching gains nothing (an int8 Whisper on a CPU,
    for one) the answer is 1. So it is where finding out would take too long.
    """
    until = time.perf_counter() + PATIENCE_S
    cost = _timed(engine, probe, 1)  # the first call also allocates
    best = 1
    for size in SIZES:
        if size > engine.capabilities.max_batch or time.perf_counter() + cost * (best + size) > until:
            break
        cost, batched = _compared(engine, probe, best, size)
        if cost / batched < (GAIN if best == 1 else FURTHER_GAIN):
            break
        best = size
    return best


def _compared(engine: Engine, probe: Window, small: int, large: int) -> tuple[float, float]:
    """Seconds per window in batches of two sizes."""
    timings = []
    for _ in range(ROUNDS):
        timings.append((_timed(engine, probe, small), _timed(engine, probe, large)))
        one, other = timings[-1]
        if other > LONG_S or one / small < other / large:  # no gain at all: chance will not make it one
            break
    return min(t for t, _ in timings) / small, min(t for _, t in timings) / large


def _timed(engine: Engine, probe: Window, size: int) -> float:
    started = time.perf_counter()
    engine.transcribe([probe] * size)
    return time.perf_counter() - started
