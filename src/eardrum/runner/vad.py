"""Voice activity detection: the probability of speech for every 32 ms of a stream, with bounded memory.

The model is Silero VAD v6 (MIT), split into two graphs (scripts/vad_graph.py writes them): an encoder that takes all frames of a
block at once, and a recurrent memory. The memory is carried from block to block and reset in silence: after minutes
without speech it would miss the words that follow (snakers4/silero-vad#725). The resets do not depend on the division into
blocks.

`AutoGain` and `amplify_quiet` raise very quiet audio, so that it is detected and recognised like any other speech; nothing
louder is touched. The model begins to lose words below -60 dBFS and detects nothing at -75; engines lose some earlier. Amplified
noise does not become speech: its probabilities are low at any level.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort

from eardrum.engines.base import Audio
from eardrum.errors import ModelLoadError
from eardrum.transcription import SAMPLE_RATE

FRAME_SAMPLES = 512
"""Samples per probability: 32 ms at 16 kHz."""

CONTEXT_SAMPLES = 64
"""Samples of the previous frame that the model sees before each frame."""

FEATURE_COUNT = 128
"""Features of a frame that enter the recurrent layer, and the size of each half of its state."""

STRIDE_FRAMES = 32
"""Frames from one moment at which the memory may begin again to the next, and of quiet before it: a second."""

PAST_FRAMES = 160
"""Frames without speech before all but these are forgotten: five seconds, whole strides. With fewer, chords are taken for
syllables; with more, words after noise are missed."""

SPEECH_PROBABILITY = 0.25
"""Below this, there is no speech."""

QUIET_DB, STEADY_RANGE_DB, FLOOR_DB = -48.0, 6.0, -80.0
"""Quiet frames are no louder than that, and none is that much louder than another; below the last all are nothing at all."""

ENCODER_PATH = Path(__file__).with_name("vad.onnx")
MEMORY_PATH = Path(__file__).with_name("vad_memory.onnx")

SpeechProbabilities = np.ndarray[tuple[int], np.dtype[np.float32]]
"""Speech probability per frame, shape [n], in 0..1."""

FrameRows = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""One row per frame: its samples, [n, 512], or what it sounds like, [n, 128]."""


class VadModel:
    """The loaded model; safe to share between threads, each stream keeps its own state."""

    def __init__(self, path: Path = ENCODER_PATH, memory: Path = MEMORY_PATH) -> None:
        self._encoder, self._memory = _load_graph(path), _load_graph(memory)

    def open_stream(self) -> VadStream:
        """A fresh state for one recording."""
        return VadStream(self._encoder, self._memory)


def _load_graph(path: Path) -> Any:
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
        self._clear_memory()
        self._context = np.zeros(CONTEXT_SAMPLES, np.float32)
        self._past_features: FrameRows = np.empty((0, FEATURE_COUNT), np.float32)  # the last frames
        self._past_frames: FrameRows = np.empty((0, FRAME_SAMPLES), np.float32)  # the same, as sound: a stride of them
        self._frame_count = 0
        self._silent_frames = 0  # frames since the last one of speech

    def __call__(self, samples: Audio) -> SpeechProbabilities:
        """Probabilities of the next frames; `samples` must hold a whole number of frames."""
        frames = samples.reshape(-1, FRAME_SAMPLES)
        before = len(self._past_features), len(self._past_frames)
        past = np.concatenate([self._past_features, self._encode(frames)])
        found: list[SpeechProbabilities] = []
        done = 0
        while done < len(frames):
            features = before[0] + done
            if self._frame_count % STRIDE_FRAMES == 0 and self._silent_frames >= STRIDE_FRAMES:
                recent = frames[max(done - STRIDE_FRAMES, 0) : done]
                if done < STRIDE_FRAMES:
                    recent = np.concatenate([self._past_frames[before[1] + done - STRIDE_FRAMES :], recent])
                self._reset_memory(past[max(features - PAST_FRAMES, 0) : features], _measure_loudness(recent))
            count = min(STRIDE_FRAMES - self._frame_count % STRIDE_FRAMES, len(frames) - done)
            found.append(self._run_memory(past[features : features + count]))
            self._count_frames(found[-1])
            done += count
        self._past_features = past[-PAST_FRAMES:].copy()
        self._past_frames = np.concatenate([self._past_frames, frames[-STRIDE_FRAMES:]])[-STRIDE_FRAMES:].copy()
        return np.concatenate(found)

    def _encode(self, frames: FrameRows) -> FrameRows:
        """The features of each frame, less its mean: an offset, or rumble below the voice, hides weak words."""
        inputs = np.empty((len(frames), CONTEXT_SAMPLES + FRAME_SAMPLES), np.float32)
        inputs[:, CONTEXT_SAMPLES:] = frames
        inputs[0, :CONTEXT_SAMPLES] = self._context
        inputs[1:, :CONTEXT_SAMPLES] = frames[:-1, -CONTEXT_SAMPLES:]
        self._context = frames[-1, -CONTEXT_SAMPLES:].copy()
        inputs -= inputs.mean(axis=1, keepdims=True)
        return cast(FrameRows, self._encoder.run(None, {"input": inputs})[0])

    def _reset_memory(self, past: FrameRows, levels: Audio) -> None:
        """Forget what lies too far behind once nobody has spoken for a stride. Of quiet there is nothing to remember; other
        sounds, music above all, are distinguished from speech by the frames before."""
        if levels.max() <= QUIET_DB and np.ptp(levels) <= STEADY_RANGE_DB:
            self._clear_memory()
        elif self._silent_frames >= PAST_FRAMES and self._frame_count % PAST_FRAMES == 0:
            self._clear_memory()
            self._run_memory(past)

    def _clear_memory(self) -> None:
        self._h = np.zeros((1, 1, FEATURE_COUNT), np.float32)
        self._c = np.zeros((1, 1, FEATURE_COUNT), np.float32)

    def _run_memory(self, features: FrameRows) -> SpeechProbabilities:
        output, self._h, self._c = self._memory.run(None, {"features": features, "h": self._h, "c": self._c})
        return cast(SpeechProbabilities, output)

    def _count_frames(self, probs: SpeechProbabilities) -> None:
        self._frame_count += len(probs)
        speech = np.flatnonzero(probs >= SPEECH_PROBABILITY)
        self._silent_frames = len(probs) - 1 - int(speech[-1]) if len(speech) else self._silent_frames + len(probs)


def _measure_loudness(frames: FrameRows) -> Audio:
    """How loud each frame is, in dB of full scale. A constant is nothing."""
    return cast(Audio, 10 * np.log10(np.maximum(frames.var(axis=1), np.float32(10 ** (FLOOR_DB / 10)))))


TARGET_DB = -36.0
"""Level in dBFS of the loudest frames of speech that need not be raised: speech whose mean is about 8 dB lower."""

MAX_GAIN_DB = 40.0
"""Largest gain. What needs more is lost in the steps of 16-bit samples."""

RELEASE_DB_PER_FRAME = 3.0 * FRAME_SAMPLES / SAMPLE_RATE
"""The loudness peak decays by this much with every frame: 3 dB a second."""

MAX_LIVE_START_DB = 10.0
"""Largest gain that a live stream begins with: its first block is a fraction of a second of mostly room."""


class AutoGain:
    """Gain for the voice activity model, from block to block of one stream: down at once, up slowly.

    It begins with what the first block needs, but not with more than `first_db`: a short block tells little.
    """

    def __init__(self, first_db: float = MAX_GAIN_DB) -> None:
        self._first_level = TARGET_DB - first_db
        self._level: float | None = None

    def __call__(self, samples: Audio) -> Audio:
        """The samples, raised where the stream has been quiet for a while; a whole number of frames."""
        frames = samples.reshape(-1, FRAME_SAMPLES)
        if not len(frames):
            return samples
        levels = _measure_levels(frames)
        before = max(self._first_level, float(levels.max())) if self._level is None else self._level
        falling = RELEASE_DB_PER_FRAME * np.arange(1, len(frames) + 1)
        levels = np.maximum.accumulate(np.maximum(levels + falling, before)) - falling
        self._level = float(levels[-1])
        gains = _compute_gains(np.concatenate([[before], levels]))
        if not gains.any():
            return samples
        begin, end = _to_factors(np.minimum(gains[:-1], gains[1:]))[:, None], _to_factors(gains[1:])[:, None]
        return (frames * (begin + (end - begin) * GAIN_RAMP)).reshape(-1)


GAIN_RAMP = np.linspace(0, 1, FRAME_SAMPLES, dtype=np.float32)[None]
"""The way of a gain that rises through a frame."""


def amplify_quiet(audio: Audio) -> Audio:
    """A window of any length for an engine, all of it by the same gain, so that nothing in it changes but its level."""
    if not audio.any():
        return audio
    frames = (
        audio[: len(audio) - len(audio) % FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
        if len(audio) >= FRAME_SAMPLES
        else audio[None]
    )
    gain = _compute_gains(_measure_levels(frames).max(keepdims=True))
    return audio * _to_factors(gain) if gain[0] else audio


DecibelLevels = np.ndarray[tuple[int], np.dtype[np.float64]]


def _measure_levels(frames: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> DecibelLevels:
    """Of each frame; what does not alternate is no sound."""
    return cast(DecibelLevels, 10 * np.log10(np.maximum(frames.var(axis=1, dtype=np.float64), 1e-20)))


def _compute_gains(levels: DecibelLevels) -> DecibelLevels:
    """The gains that these levels need."""
    return cast(DecibelLevels, np.clip(TARGET_DB - levels, 0.0, MAX_GAIN_DB))


def _to_factors(gains: DecibelLevels) -> Audio:
    return (10 ** (gains / 20)).astype(np.float32)
