"""Detects NVIDIA GPUs, and explains why one cannot be used."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from eardrum.errors import DeviceError

SIGNS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia")
DRIVER = "libcuda.so.1"

REMEDIES = {
    r"out of memory": "free some of its memory, or choose a smaller model or compute_type",
    r"driver version is insufficient|too old": "install or update the NVIDIA driver",
    r"lib(cu|nv)\w*\.so|cannot open shared object|cudnn|cublas": "install the CUDA libraries that it asks for, "
    "and let LD_LIBRARY_PATH lead to them",
    r"no kernel image": "install a build of it that knows this GPU",
    r"no CUDA-capable device|no CUDA GPUs|no NVIDIA driver": "see that the GPU is visible here (in a container: `--gpus all`)",
}
"""Words in an error, and the remedy for each."""
OTHERWISE = "see with `nvidia-smi` whether the driver works"

ASKED = "device is cuda"

LONGEST_CAUSE = 300
"""Characters."""


def is_gpu_present() -> bool:
    """Whether there is a GPU or its driver, and nobody has hidden it. No engine's library is asked."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if any(Path(sign).exists() for sign in SIGNS):
        return True
    from ctypes import CDLL  # here, since the gateway rarely comes this far

    with suppress(OSError):
        return bool(CDLL(DRIVER))
    return False


def build_device_error(library: str, cause: object, remedy: str = "") -> DeviceError:
    """The sentence about a GPU that a library cannot use."""
    why = to_one_line(cause)
    return DeviceError(f"{library} cannot use an NVIDIA GPU here ({why}): {remedy or find_remedy(why)}.")


def find_remedy(cause: str) -> str:
    """The remedy for a cause, as part of a sentence."""
    return next((helps for said, helps in REMEDIES.items() if re.search(said, cause, re.IGNORECASE)), OTHERWISE)


def explain_requested_device(error: DeviceError) -> DeviceError:
    """The error about a GPU, for whoever has asked for one."""
    if error.message.startswith(ASKED):
        return error
    sentence = re.sub(r"^The ", "the ", error.message.rstrip("."))
    return DeviceError(f"{ASKED}, but {sentence}, or set device to cpu.")


def to_one_line(cause: object) -> str:
    """The first sentence of what a library says, without a full stop at its end."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    first = re.split(r"\.\s", lines[0])[0] if lines else type(cause).__name__
    return first[:LONGEST_CAUSE].rstrip(".: ")
