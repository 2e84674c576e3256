"""How a CPU's cores are shared out between batches decoded side by side, found out by timing.

A decoder's steps are short, and at the end of each part of one all threads wait for each other: seen on two virtual cores,
a text took three times as long with two threads as with one. The encoder's products are large and gain from every thread. Which
weighs more depends on the model and the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from eardrum.engines.whisper.rules import Special

SLOWER = 1.4
"""How much longer than with the best number of threads a lone window may take for the sake of decoding several at once."""

PART = 4
"""A quarter of a window is enough to time the encoder on."""

LONG_S = 10.0
"""A window that takes so long is timed once: chance has less to say in it."""

STEPS, TEXT = 8, 80
"""Tokens decoded to time the decoder, and those of half a minute of speech."""


def numbers(cores: int) -> Iterator[int]:
    """Numbers of threads worth trying, the largest first."""
    yield cores
    yield from (2**power for power in reversed(range(cores.bit_length())) if 2**power < cores)


def fewest(cores: int, seconds: Callable[[int], float]) -> int:
    """The fewest threads with which a lone window takes not much longer than with the best number of them."""
    best, chosen = float("inf"), cores
    for threads in numbers(cores):
        taken = seconds(threads)
        best = min(best, taken)
        if taken > SLOWER * best:
            break
        chosen = threads
    return chosen


def window_seconds(library: Any, model: Any, special: Special, frames: int, beam_size: int) -> float:
    """About how long `model` takes for a window of `frames` frames."""
    beginning = [special.start]
    silence = np.zeros((1, model.n_mels, frames // PART), np.float32)

    def timed() -> float:
        started = time.perf_counter()
        encoded = model.encode(library.StorageView.from_array(silence))
        between = time.perf_counter()
        # CTranslate2 keeps half of the length for what is said before.
        model.generate(encoded, [beginning], beam_size=beam_size, max_length=2 * STEPS, suppress_tokens=[special.end])
        return (between - started) * PART + (time.perf_counter() - between) * TEXT / STEPS

    first = timed()  # which also allocates
    return first if first > LONG_S else min(timed(), timed())
