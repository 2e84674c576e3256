"""Chooses a device for PyTorch, and aligns tokens with audio by attention weights, in numpy."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from eardrum.engines import cuda
from eardrum.engines.base import Device, EngineOptions
from eardrum.engines.shared.whisper_rules import Features
from eardrum.errors import DeviceError, ModelLoadError


def find_torch_device(options: EngineOptions, torch: Any) -> Device:
    """Find the device: a GPU if PyTorch can use one and the options do not exclude it.

    Raises:
        DeviceError: the options require a GPU, and PyTorch cannot use one.
    """
    if options.device == "cpu":
        return Device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the error below names the driver's problem
        if torch.cuda.is_available():
            return Device("cuda")
    error = _build_device_error(torch)
    if options.device == "cuda":
        raise error
    return Device("cpu", error.message if torch.version.cuda and cuda.is_gpu_present() else "")


def _build_device_error(torch: Any) -> DeviceError:
    if not torch.version.cuda:
        return cuda.build_device_error(
            f"PyTorch {torch.__version__}", "it is built without CUDA", "install PyTorch for your CUDA in its place"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError, OSError) as cause:
        return cuda.build_device_error("PyTorch", cause)
    return cuda.build_device_error("PyTorch", "it sees none")


def choose_compute_type(options: EngineOptions, known: tuple[str, ...], auto: str) -> str:
    """Choose the number format of the weights.

    Raises:
        ModelLoadError: one that the engine does not have; the message lists those it has.
    """
    if options.compute_type == "auto":
        return auto
    if options.compute_type not in known:
        raise ModelLoadError(f"compute_type {options.compute_type!r} is not available here. Known: auto, {', '.join(known)}.")
    return options.compute_type


def use_threads(count: int, torch: Any) -> None:
    """Let PyTorch use so many threads in this process; 0 leaves it to PyTorch."""
    if count:
        torch.set_num_threads(count)


@contextmanager
def disable_compiler_cache() -> Iterator[None]:
    """Leave no folder behind: PyTorch's compiler, which nothing here uses, makes one for its cache when it is imported."""
    with TemporaryDirectory(prefix="eardrum-compiler-") as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        yield


FRAME_S = 0.02
"""Seconds per column of Whisper's attention."""
SMOOTHING = 7
"""Frames over which the attention is smoothed, by their median."""

FRAMES = 3000
DYNAMIC_RANGE, QUIETEST = 2.0, -1.5
"""Of log-mel features: nothing lies further below the loudest, nor lower at all."""

Weights = np.ndarray[Any, np.dtype[np.float32]]


def pad_features(features: Sequence[Features]) -> Weights:
    """Rows of log-mel [bands, frames] as a batch [b, bands, 3000], filled up with silence."""
    batch = np.empty((len(features), len(features[0]), FRAMES), np.float32)
    for row, part in zip(batch, features, strict=True):
        row[:, : part.shape[1]] = part
        row[:, part.shape[1] :] = max(float(part.max()) - DYNAMIC_RANGE, QUIETEST)
    return batch


def find_token_starts(weights: Weights, before: int) -> list[float]:
    """The second at which each text token begins, and the end.

    `weights` are attention probabilities, shape [heads, tokens, frames], of all tokens: `before` that precede the row which
    leads to the first text token, and the end token, after which nothing comes.
    """
    # Even for a frame with little attention, the token that attends most matters: so no epsilon is added to the spread.
    spread = weights.std(-2, keepdims=True)
    weights = np.divide(weights - weights.mean(-2, keepdims=True), spread, out=np.zeros_like(weights), where=spread > 0)
    firsts = find_cheapest_path(-_smooth_weights(weights).mean(0)[before:-1])
    return [float(first * FRAME_S) for first in firsts]


def find_cheapest_path(cost: Weights) -> list[int]:
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


def _smooth_weights(weights: Weights) -> Weights:
    half = SMOOTHING // 2
    if weights.shape[-1] <= half:
        return weights
    padded = np.pad(weights, ((0, 0), (0, 0), (half, half)), mode="reflect")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTHING, axis=-1), axis=-1))
