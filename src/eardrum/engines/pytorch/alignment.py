"""Whisper's features filled up, and when each token is said: from the attention of the heads that follow the speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eardrum.engines.whisper.rounds import Features

FRAME_S = 0.02
"""Seconds per column of Whisper's attention."""
SMOOTHING = 7
"""Frames over which the attention is smoothed, by their median."""

FRAMES = 3000
DYNAMIC_RANGE, QUIETEST = 2.0, -1.5
"""Of log-mel features: nothing lies further below the loudest, nor lower at all."""

Weights = np.ndarray[Any, np.dtype[np.float32]]


def filled(features: Sequence[Features]) -> Weights:
    """Rows of log-mel [bands, frames] as a batch [b, bands, 3000], filled up with silence."""
    batch = np.empty((len(features), len(features[0]), FRAMES), np.float32)
    for row, part in zip(batch, features, strict=True):
        row[:, : part.shape[1]] = part
        row[:, part.shape[1] :] = max(float(part.max()) - DYNAMIC_RANGE, QUIETEST)
    return batch


def token_starts(weights: Weights, before: int) -> list[float]:
    """The second at which each text token begins, and the end.

    `weights` are attention probabilities, shape [heads, tokens, frames], of all tokens: `before` that precede the row which
    leads to the first text token, and the end token, after which nothing comes.
    """
    # However little a frame is attended to, which token attends to it most tells: so no small number is added to the spread.
    spread = weights.std(-2, keepdims=True)
    weights = np.divide(weights - weights.mean(-2, keepdims=True), spread, out=np.zeros_like(weights), where=spread > 0)
    firsts = cheapest_path(-_smoothed(weights).mean(0)[before:-1])
    return [float(first * FRAME_S) for first in firsts]


def cheapest_path(cost: Weights) -> list[int]:
    """The column at which the cheapest way through `cost` [rows, columns] enters each row.

    The way leads from the first cell to the last, a cell right, down or both at a time. Cells on one diagonal do not depend
    on each other, so each is computed at once.
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    steps = np.zeros((rows + 1, columns + 1), np.int8)
    for diagonal in range(2, rows + columns + 1):
        i = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        j = diagonal - i
        before = np.stack([total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]])
        steps[i, j] = best = before.argmin(0)
        total[i, j] = cost[i - 1, j - 1] + before[best, np.arange(len(i))]
    entered = [0] * rows
    row, column = rows, columns
    while row:
        entered[row - 1] = column - 1
        step = steps[row, column]
        row -= step != 2
        column -= step != 1
    return entered


def _smoothed(weights: Weights) -> Weights:
    half = SMOOTHING // 2
    if weights.shape[-1] <= half:
        return weights
    padded = np.pad(weights, ((0, 0), (0, 0), (half, half)), mode="reflect")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING, axis=-1), axis=-1))
