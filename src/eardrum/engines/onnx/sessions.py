"""How engines set up onnxruntime; the library is passed in, because only a model that loads imports it."""

from __future__ import annotations

from typing import Any

from eardrum.errors import ModelLoadError


def session_options(onnxruntime: Any, threads: int) -> Any:
    """Settings of a session that decodes with `threads` threads; 0 uses every core."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    # Spinning threads would burn a core between windows for a gain that decoding cannot see.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return settings


def providers(onnxruntime: Any, device: str) -> list[str]:
    """Where to run: a GPU when asked for, or when this build of onnxruntime can and nothing was said.

    Raises:
        ModelLoadError: `device` is cuda, but this onnxruntime has no CUDA.
    """
    have = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in have:
        raise ModelLoadError("device is cuda, but this onnxruntime has no CUDA: install onnxruntime-gpu in its place.")
    cuda = ["CUDAExecutionProvider"] if device != "cpu" and "CUDAExecutionProvider" in have else []
    return [*cuda, "CPUExecutionProvider"]
