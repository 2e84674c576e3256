"""Sets up onnxruntime sessions. Callers pass the library in, because only a loading model imports it."""

from __future__ import annotations

from ctypes import CDLL, RTLD_GLOBAL
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from eardrum.engines import cuda
from eardrum.engines.base import Device

LIBRARY = "onnxruntime"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
INTEGER_OPERATORS = (b"MatMulInteger", b"DynamicQuantizeLinear", b"QLinearMatMul", b"DynamicQuantizeMatMul")


def build_session_options(onnxruntime: Any, threads: int) -> Any:
    """Settings of a session that decodes with `threads` threads; 0 uses every core."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    # Spinning threads would burn a core between windows for a gain that decoding cannot see.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def find_onnx_device(onnxruntime: Any, device: str) -> Device:
    """Where this build of onnxruntime can be asked to compute. Whether it does shows with the first session.

    Raises:
        DeviceError: `device` is cuda, but this onnxruntime has no CUDA.
    """
    if device == "cpu":
        return Device("cpu")
    if CUDA in onnxruntime.get_available_providers():
        return Device("cuda")
    if device == "cuda":
        raise cuda.build_device_error(LIBRARY, "it is built without CUDA", "install onnxruntime-gpu in its place")
    return Device("cpu")


def choose_providers(onnxruntime: Any, device: str) -> list[str]:
    """Where to run: a GPU when asked for, or when this build of onnxruntime can and nothing was said.

    Raises:
        DeviceError: `device` is cuda, but this onnxruntime has no CUDA.
    """
    return [CUDA, CPU] if find_onnx_device(onnxruntime, device).name == "cuda" else [CPU]


def check_device(onnxruntime: Any, session: Any, asked: str) -> str:
    """The device on which a session computes.

    Raises:
        DeviceError: it is not the one that was asked for: where CUDA does not work, onnxruntime takes the CPU without a word.
    """
    found = "cuda" if CUDA in session.get_providers() else "cpu"
    if asked == "cuda" and found == "cpu":
        raise cuda.build_device_error(LIBRARY, _find_cuda_error(onnxruntime))
    return found


def _find_cuda_error(onnxruntime: Any) -> str:
    """Why CUDA does not work: what the system has against loading the library that brings it."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=RTLD_GLOBAL)
        CDLL(str(folder / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return str(error)
    return "it does not say why"


def find_number_format(path: Path) -> str:
    """The format of the numbers in which a graph computes, as far as its operators tell."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as graph:
        return "int8" if any(graph.find(operator) >= 0 for operator in INTEGER_OPERATORS) else "float32"
