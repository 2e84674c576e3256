"""Voice activity: the probability of speech for every 32 ms of a stream, with bounded memory.

Silero VAD v6 (MIT), as two graphs (scripts/vad_graph.py writes them): one hears all frames of a block at once, the other
remembers. Its memory is carried from block to block, and begun anew where nobody speaks: what it keeps of minutes without speech
makes it deaf to the words that follow (snakers4/silero-vad#725). Where that happens does not depend on the division into blocks.
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

FEATURES = 128
"""Numbers by which the memory knows a frame, and numbers of each half of its state."""

STRIDE = 32
"""Frames from one moment at which the memory may begin anew to the next, and of quiet before it: a second."""

PAST = 160
"""Frames without speech before all but these are forgotten: five seconds, whole strides. With fewer, chords are taken for
syllables; with more, words after noise are missed."""

SPEECH = 0.25
"""Below, nobody speaks."""

QUIET_DB, STEADY_DB, NOTHING_DB = -48.0, 6.0, -80.0
"""Quiet frames are no louder than that, and none is that much louder than another; below the last all are nothing at all."""

MODEL = Path(__file__).with_name("vad.onnx")
MEMORY = Path(__file__).with_name("vad_memory.onnx")

Probabilities = np.ndarray[tuple[int], np.dtype[np.float32]]
"""Speech probability per frame, shape [n], in 0..1."""

Rows = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""One row per frame: its samples, [n, 512], or what it sounds like, [n, 128]."""


class Vad:
    """The loaded model; safe to share between threads, each stream keeps its own state."""

    def __init__(self, path: Path = MODEL, memory: Path = MEMORY) -> None:
        self._encoder, self._memory = _loaded(path), _loaded(memory)

    def stream(self) -> VadStream:
        """A fresh state for one recording."""
        return VadStream(self._encoder, self._memory)


def _loaded(path: Path) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = False
    settings.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ModelLoadError(
            f"The voice activity model {path.name} is missing or damaged: install eardrum again. ({error})"
        ) from error


class VadStream:
    """Carries the model's state through one recording."""

    def __init__(self, encoder: Any, memory: Any):
        self._encoder = encoder
        self._memory = memory
        self._forget()
        self._context = np.zeros(CONTEXT, np.float32)
        self._past: Rows = np.empty((0, FEATURES), np.float32)  # the last frames
        self._heard: Rows = np.empty((0, FRAME), np.float32)  # the same, as sound: a stride of them
        self._frames = 0
        self._without = 0  # frames since the last one of speech

    def __call__(self, samples: Audio) -> Probabilities:
        """Probabilities of the next frames; `samples` must hold a whole number of frames."""
        frames = samples.reshape(-1, FRAME)
        before = len(self._past), len(self._heard)
        past = np.concatenate([self._past, self._encode(frames)])
        found: list[Probabilities] = []
        done = 0
        while done < len(frames):
            features = before[0] + done
            if self._frames % STRIDE == 0 and self._without >= STRIDE:
                heard = frames[max(done - STRIDE, 0) : done]
                if done < STRIDE:
                    heard = np.concatenate([self._heard[before[1] + done - STRIDE :], heard])
                self._begin_anew(past[max(features - PAST, 0) : features], _levels(heard))
            count = min(STRIDE - self._frames % STRIDE, len(frames) - done)
            found.append(self._remember(past[features : features + count]))
            self._follow(found[-1])
            done += count
        self._past = past[-PAST:].copy()
        self._heard = np.concatenate([self._heard, frames[-STRIDE:]])[-STRIDE:].copy()
        return np.concatenate(found)

    def _encode(self, frames: Rows) -> Rows:
        """What each frame sounds like, less its mean: an offset, or what rumbles below the voice, hides weak words."""
        inputs = np.empty((len(frames), CONTEXT + FRAME), np.float32)
        inputs[:, CONTEXT:] = frames
        inputs[0, :CONTEXT] = self._context
        inputs[1:, :CONTEXT] = frames[:-1, -CONTEXT:]
        self._context = frames[-1, -CONTEXT:].copy()
        inputs -= inputs.mean(axis=1, keepdims=True)
        return cast(Rows, self._encoder.run(None, {"input": inputs})[0])

    def _begin_anew(self, past: Rows, levels: Audio) -> None:
        """Forget what lies too far behind once nobody has spoken for a stride. Of quiet there is nothing to remember; other
        sounds, music above all, are told from speech by what came before."""
        if levels.max() <= QUIET_DB and np.ptp(levels) <= STEADY_DB:
            self._forget()
        elif self._without >= PAST and self._frames % PAST == 0:
            self._forget()
            self._remember(past)

    def _forget(self) -> None:
        self._h = np.zeros((1, 1, FEATURES), np.float32)
        self._c = np.zeros((1, 1, FEATURES), np.float32)

    def _remember(self, features: Rows) -> Probabilities:
        output, self._h, self._c = self._memory.run(None, {"features": features, "h": self._h, "c": self._c})
        return cast(Probabilities, output)

    def _follow(self, probs: Probabilities) -> None:
        self._frames += len(probs)
        speech = np.flatnonzero(probs >= SPEECH)
        self._without = len(probs) - 1 - int(speech[-1]) if len(speech) else self._without + len(probs)


def _levels(frames: Rows) -> Audio:
    """How loud each frame is, in dB of full scale. A constant is nothing."""
    return cast(Audio, 10 * np.log10(np.maximum(frames.var(axis=1), np.float32(10 ** (NOTHING_DB / 10)))))
