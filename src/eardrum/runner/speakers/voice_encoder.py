"""Computes voice prints: vectors of 192 numbers, with nearly the same direction for all speech of one person.

The model is CAM++ of 3D-Speaker (Apache-2.0, see `voices.LICENSE`), trained on Chinese and English voices;
`scripts/voice_graph.py` writes its graph. Its input are Kaldi's filter banks, less their mean: what a microphone or a telephone
line adds is constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from eardrum.engines.base import Audio, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.onnx import build_session_options
from eardrum.errors import ModelLoadError
from eardrum.transcription import SAMPLE_RATE, Capabilities

WINDOW_S = 1.5
"""Seconds of speech in a voice print. Shorter ones are repeated to this length: the graph takes no other."""

WINDOW_SAMPLES = int(WINDOW_S * SAMPLE_RATE)
FRAME_SAMPLES, HOP_SAMPLES, FFT_SAMPLES, BANDS = 400, 160, 512, 80
LOWEST_HZ = 20.0
PREEMPHASIS = 0.97
SMALLEST_POWER = float(np.finfo(np.float32).eps)

GRAPH_PATH = Path(__file__).with_name("voices.onnx")

FeatureRows = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""Log powers of the bands of each frame, shape [frames, 80]."""


class VoiceEncoder(Engine):
    """The loaded model. Its results hold a voice print for each window, and no text."""

    capabilities = Capabilities(max_window_s=WINDOW_S, max_batch=16)

    def __init__(self, session: Any):
        self._session = session
        self.device, self.compute_type = "cpu", "float32"

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Load the graph at `source`."""
        import onnxruntime  # noqa: PLC0415 -- as every engine's library

        settings = build_session_options(onnxruntime, 0)
        try:
            return cls(onnxruntime.InferenceSession(str(source), settings, providers=["CPUExecutionProvider"]))
        except Exception as error:
            message = f"The model of voices {source.name} is missing or damaged: install eardrum again. ({error})"
            raise ModelLoadError(message) from error

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Compute the voice prints of windows of at most `WINDOW_S` seconds, each of length 1."""
        features = np.stack([compute_features(np.resize(window.audio, WINDOW_SAMPLES)) for window in windows])
        voices = self._session.run(None, {"features": features})[0]
        voices /= np.linalg.norm(voices, axis=1, keepdims=True)
        return [EngineResult(voice=voice) for voice in voices]

    def measure_batch_size(self) -> int:
        """A CPU gains nothing from more."""
        return 8


def compute_features(samples: Audio) -> FeatureRows:
    """Compute Kaldi's log mel filter banks of samples [n], one row for each 10 ms, less the mean of each band."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME_SAMPLES)[::HOP_SAMPLES]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    spectrum = np.fft.rfft((frames - PREEMPHASIS * before) * _build_window(), FFT_SAMPLES)
    powers = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
    features = np.log(np.maximum(powers @ _build_filters(), SMALLEST_POWER))
    return cast(FeatureRows, features - features.mean(axis=0))


@cache
def _build_window() -> Audio:
    """Povey's window: like Hamming's, but zero at its ends."""
    return cast(Audio, (np.hanning(FRAME_SAMPLES) ** 0.85).astype(np.float32))


@cache
def _build_filters() -> FeatureRows:
    """Triangles on the mel scale, shape [257, 80]."""
    bins = _to_mel(np.arange(FFT_SAMPLES // 2 + 1) * SAMPLE_RATE / FFT_SAMPLES)
    marks = np.linspace(_to_mel(LOWEST_HZ), _to_mel(SAMPLE_RATE / 2), BANDS + 2)
    rising = (bins[:, None] - marks[:-2]) / (marks[1:-1] - marks[:-2])
    falling = (marks[2:] - bins[:, None]) / (marks[2:] - marks[1:-1])
    return cast(FeatureRows, np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32))


def _to_mel(hertz: Any) -> Any:
    return 1127.0 * np.log(1.0 + hertz / 700.0)
