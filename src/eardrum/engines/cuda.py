"""Detects NVIDIA GPUs, finds the CUDA libraries that pip installed, and explains why a GPU cannot be used."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from eardrum.errors import DeviceError

SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia")
DRIVER = "libcuda.so.1"

REMEDIES = {
    r"out of memory": "free some of its memory, or choose a smaller model or compute_type",
    r"driver version is insufficient|too old": "install or update the NVIDIA driver",
    r"lib(cu|nv)\w*\.so|cannot open shared object|cudnn|cublas": "install the CUDA libraries with `pip install 'eardrum[cuda]'`",
    r"no kernel image": "install a build that supports this GPU",
    r"no CUDA-capable device|no CUDA GPUs|no NVIDIA driver": "make the GPU visible here (in a container: `--gpus all`)",
}
"""Patterns of error messages, and the remedy for each."""
OTHERWISE = "check with `nvidia-smi` that the driver works"

ASKED = "device is cuda"

LONGEST_CAUSE = 300
"""Longest cause in a message, in characters."""


def is_gpu_present() -> bool:
    """Whether the machine has a GPU or its driver, not hidden by CUDA_VISIBLE_DEVICES. Loads no engine's library."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if any(Path(sign).exists() for sign in SIGNS):
        return True
    from ctypes import CDLL  # imported here, because the gateway rarely needs it

    with suppress(OSError):
        return bool(CDLL(DRIVER))
    return False


CUBLAS_12 = ("libcublasLt.so.12", "libcublas.so.12")
"""The libraries that CTranslate2 loads by name when it first computes on a GPU. The second needs the first."""


def preload_libraries(names: Sequence[str]) -> None:
    """Load shared libraries, so that an engine's library finds them by name without LD_LIBRARY_PATH.

    The loader's own path is searched first, then the folders of NVIDIA's wheels. A library that is in neither is left out: the
    engine's library then fails with an error that names it.
    """
    from ctypes import CDLL, RTLD_GLOBAL

    for name in names:
        for place in (name, find_packaged_library(name)):
            with suppress(OSError):
                if place:
                    CDLL(str(place), mode=RTLD_GLOBAL)
                    break


def find_packaged_library(name: str) -> Path | None:
    """Find a shared library in the folders of NVIDIA's wheels: `nvidia/cublas/lib` for CUDA 12, `nvidia/cu13/lib` for 13."""
    found = (path for folder in sys.path for path in Path(folder, "nvidia").glob(f"*/lib/{name}"))
    return next(found, None)


def build_device_error(library: str, cause: object, remedy: str = "") -> DeviceError:
    """Build the error about a GPU that a library cannot use, with a remedy."""
    reason = to_one_line(cause)
    return DeviceError(f"{library} cannot use an NVIDIA GPU here ({reason}): {remedy or find_remedy(reason)}.")


def find_remedy(cause: str) -> str:
    """Return the remedy for a cause, as part of a sentence."""
    return next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, cause, re.IGNORECASE)), OTHERWISE)


def explain_requested_device(error: DeviceError) -> DeviceError:
    """Reword a GPU error for a config that requires a GPU."""
    if error.message.startswith(ASKED):
        return error
    sentence = re.sub(r"^The ", "the ", error.message.rstrip("."))
    return DeviceError(f"{ASKED}, but {sentence}, or set device to cpu.")


def to_one_line(cause: object) -> str:
    """Return the first sentence of a library's message, without the full stop."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    first = re.split(r"\.\s", lines[0])[0] if lines else type(cause).__name__
    return first[:LONGEST_CAUSE].rstrip(".: ")
