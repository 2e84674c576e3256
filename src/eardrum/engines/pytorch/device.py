"""Where a model runs and in which numbers, as its options say."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from eardrum.engines import cuda
from eardrum.engines.base import Device, EngineOptions
from eardrum.errors import DeviceError, ModelLoadError


def found_device(options: EngineOptions, torch: Any) -> Device:
    """The device to run on: a GPU if PyTorch can use one, and nothing else was said.

    Raises:
        DeviceError: a GPU is asked for and PyTorch cannot use one.
    """
    if options.device == "cpu":
        return Device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong with the driver is said below
        if torch.cuda.is_available():
            return Device("cuda")
    error = _unusable(torch)
    if options.device == "cuda":
        raise error
    return Device("cpu", error.message if torch.version.cuda and cuda.seems_present() else "")


def _unusable(torch: Any) -> DeviceError:
    if not torch.version.cuda:
        return cuda.unusable(
            f"PyTorch {torch.__version__}", "it is built without CUDA", "install PyTorch for your CUDA in its place"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError, OSError) as cause:
        return cuda.unusable("PyTorch", cause)
    return cuda.unusable("PyTorch", "it sees none")


def compute_type(options: EngineOptions, known: tuple[str, ...], auto: str) -> str:
    """The number format of the weights, `auto` where nothing was said.

    Raises:
        ModelLoadError: one that the engine does not have; the message lists those it has.
    """
    if options.compute_type == "auto":
        return auto
    if options.compute_type not in known:
        raise ModelLoadError(f"compute_type {options.compute_type!r} cannot be had here. Known: auto, {', '.join(known)}.")
    return options.compute_type


def use_threads(count: int, torch: Any) -> None:
    """Let PyTorch use so many threads in this process; 0 leaves it to PyTorch."""
    if count:
        torch.set_num_threads(count)


@contextmanager
def without_compiler_cache() -> Iterator[None]:
    """Leave no folder behind: PyTorch's compiler, which nothing here uses, makes one for its cache when it is imported."""
    with TemporaryDirectory(prefix="eardrum-compiler-") as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        yield
