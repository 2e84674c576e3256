"""Tunes the runner's process to its machine: batch size, priority, memory allocator, garbage collector, OpenMP threads.

The batch size is measured by timing the engine. The allocator and OpenMP settings must be applied before the libraries load.
"""

from __future__ import annotations

import ctypes
import gc
import os
import time
from contextlib import suppress
from pathlib import Path

from eardrum.engines.base import Engine, Window

MIN_GAIN, MIN_FURTHER_GAIN = 1.15, 1.25
"""Speed-up per window that makes batching worth its wait, and each doubling after that: a short clip that comes in waits for
the batch in hand, so twice the batch is twice the wait."""

BATCH_SIZES = (4, 8, 16)
ROUNDS = 3
"""Comparisons of two sizes, in turn, so that other work on the machine slows both. The best time of each counts."""

MAX_TUNING_S = 30.0
"""Longest time spent on finding the batch size, which is remembered."""

LONG_BATCH_S = 2.0
"""Batches that take this long are compared once: noise matters less."""


def measure_batch_size(engine: Engine, probe: Window) -> int:
    """Measure the batch size worth using, by timing the engine on copies of `probe`.

    Sizes grow while a window becomes cheaper by enough. If batching gains nothing (such as an int8 Whisper on a CPU), or
    measuring would take too long, the result is 1.
    """
    until = time.perf_counter() + MAX_TUNING_S
    cost = _time_batch(engine, probe, 1)  # the first call also allocates
    best = 1
    for size in BATCH_SIZES:
        if size > engine.capabilities.max_batch or time.perf_counter() + cost * (best + size) > until:
            break
        cost, batched = _compare_sizes(engine, probe, best, size)
        if cost / batched < (MIN_GAIN if best == 1 else MIN_FURTHER_GAIN):
            break
        best = size
    return best


def _compare_sizes(engine: Engine, probe: Window, small: int, large: int) -> tuple[float, float]:
    """Seconds per window in batches of two sizes."""
    timings = []
    for _ in range(ROUNDS):
        timings.append((_time_batch(engine, probe, small), _time_batch(engine, probe, large)))
        one, other = timings[-1]
        if other > LONG_BATCH_S or one / small < other / large:  # no gain at all: more rounds will not find one
            break
    return min(t for t, _ in timings) / small, min(t for _, t in timings) / large


def _time_batch(engine: Engine, probe: Window, size: int) -> float:
    started = time.perf_counter()
    engine.transcribe([probe] * size)
    return time.perf_counter() - started


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def tune_allocator() -> None:
    """Keep freed memory instead of returning it after each window (glibc only).

    Engines allocate and free large tensors for every window. With glibc's defaults each of them is a fresh
    mapping whose pages fault in one by one: measured, 14 to 35 % of CTranslate2's encoder time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_ARENA_MAX, 1)


def freeze_garbage_collector() -> None:
    """Exempt all objects so far from garbage collection: a full collection then costs microseconds."""
    gc.collect()
    gc.freeze()


def set_passive_waiting() -> None:
    """Make OpenMP's threads sleep at barriers. Call this before the library is loaded.

    By default they spin for a while, which wastes CPU whenever another process has the core of the thread they wait for:
    measured, a tenth of CTranslate2's decoding on a busy machine, and nothing on an idle one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


NICENESS = 5
"""A third of the gateway's share of a core that both want."""

AUTOGROUP = Path("/proc/self/autogroup")
"""The priority of a session of processes. Where Linux has it, the niceness of a process has no effect on other sessions."""


def lower_priority() -> None:
    """Let the gateway run first where both want a core: it answers every client, and a model takes all cores it can get.

    The work takes as long as before while nobody else wants the cores.
    """
    with suppress(OSError, AttributeError):  # Windows has no niceness
        os.nice(NICENESS)
        if os.getsid(0) == os.getpid():  # else the session has other processes: those of a terminal
            AUTOGROUP.write_text(str(NICENESS), encoding="ascii")
