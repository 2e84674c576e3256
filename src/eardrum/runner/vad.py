"""Voice activity: the probability of speech for every 32 ms of a stream, with bounded memory.

Silero VAD v6 (MIT), as a graph that computes all frames of a block at once (scripts/vad_graph.py writes it). Its
recurrent state is carried from block to block, so the probabilities equal those of one pass over the whole recording.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from eardrum.engines.base import Audio
from eardrum.errors import ModelLoadError

FRAME = 512
"""Samples per probability: 32 ms at 16 kHz."""

CONTEXT = 64
"""Samples of the previous frame that the model sees before each frame."""

MODEL = Path(__file__).with_name("vad.onnx")

Probabilities = np.ndarray[tuple[int], np.dtype[np.float32]]
"""Speech probability per frame, shape [n], in 0..1."""


class Vad:
    """The loaded model; safe to share between threads, each stream keeps its own state."""

    def __init__(self, path: Path = MODEL) -> None:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.inter_op_num_threads = 1
        settings.enable_cpu_mem_arena = False
        settings.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelLoadError(
                f"The voice activity model {path.name} is missing or damaged: install eardrum again. ({error})"
            ) from error

    def stream(self) -> VadStream:
        """A fresh state for one recording."""
        return VadStream(self._session)


class VadStream:
    """Carries the model's state through one recording."""

    def __init__(self, session: Any):
        self._session = session
        self._h = np.zeros((1, 1, 128), np.float32)
        self._c = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)

    def __call__(self, samples: Audio) -> Probabilities:
        """Probabilities of the next frames; `samples` must hold a whole number of frames."""
        frames = samples.reshape(-1, FRAME)
        inputs = np.empty((len(frames), CONTEXT + FRAME), np.float32)
        inputs[:, CONTEXT:] = frames
        inputs[0, :CONTEXT] = self._context
        inputs[1:, :CONTEXT] = frames[:-1, -CONTEXT:]
        self._context = frames[-1, -CONTEXT:].copy()
        output, self._h, self._c = self._session.run(None, {"input": inputs, "h": self._h, "c": self._c})
        return cast(Probabilities, output.reshape(-1))
