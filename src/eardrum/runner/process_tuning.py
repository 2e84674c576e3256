"""Sets up a runner's process for engines: priority, memory allocator, garbage collector, OpenMP's threads."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def limit_arenas() -> None:
    """Have all threads share one heap, so that each can use what another has freed (glibc only). Call it before threads start."""
    _set_allocator_options({M_ARENA_MAX: 1})


def keep_freed_memory() -> None:
    """Keep freed memory instead of returning it after each window (glibc only). Call this when the model is loaded.

    Before that, it would let the weights' conversion take half as much memory again.
    Engines allocate and free large tensors for every window. With glibc's defaults each of them is a fresh
    mapping whose pages fault in one by one: measured, 14 to 35 % of CTranslate2's encoder time.
    """
    _set_allocator_options({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def _set_allocator_options(options: dict[int, int]) -> None:
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            mallopt(option, value)


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
"""A third of the gateway's share of a core that both need."""

AUTOGROUP = Path("/proc/self/autogroup")
"""The priority of a session of processes. Where Linux has it, the niceness of a process has no effect on other sessions."""


def lower_priority() -> None:
    """Let the gateway run first where both need a core: it answers every client, and a model takes all cores it can get.

    The work takes as long as before while no other process needs the cores.
    """
    with suppress(OSError, AttributeError):  # Windows has no niceness
        os.nice(NICENESS)
        if os.getsid(0) == os.getpid():  # else the session has other processes: those of a terminal
            AUTOGROUP.write_text(str(NICENESS), encoding="ascii")
