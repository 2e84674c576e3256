"""Where a model runs and in which numbers, as its options say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from eardrum.engines.base import EngineOptions
from eardrum.errors import ModelLoadError


def device(options: EngineOptions, torch: Any) -> str:
    """The device to run on.

    Raises:
        ModelLoadError: a GPU is asked for and PyTorch sees none.
    """
    cuda = torch.cuda.is_available()
    if options.device == "cuda" and not cuda:
        why = "no GPU is visible" if torch.version.cuda else f"PyTorch {torch.__version__} is built without CUDA"
        raise ModelLoadError(f"device is cuda, but {why}: set device to cpu, or install PyTorch for your CUDA.")
    return "cuda" if cuda and options.device != "cpu" else "cpu"


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
