"""Raises what is very quiet, so that it is noticed and understood like any other speech. Nothing louder is touched.

The voice activity model begins to lose words below -60 dBFS and hears nothing at -75; engines lose some earlier. Noise does not
become speech by being louder: the model's probabilities of it are low at any level.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from eardrum.engines.base import Audio
from eardrum.runner.vad import FRAME
from eardrum.types import SAMPLE_RATE

ENOUGH_DB = -36.0
"""Level in dBFS of the loudest frames of speech that need not be raised: speech whose mean is about 8 dB lower."""

MOST_DB = 40.0
"""Largest gain. What needs more is lost in the steps of 16-bit samples."""

RELEASE_DB = 3.0 * FRAME / SAMPLE_RATE
"""What was loud counts for less with every frame: 3 dB a second."""

LIVE_FIRST_DB = 10.0
"""Largest gain that a live stream begins with: its first block is a fraction of a second of mostly room."""


class Gain:
    """Gain for the voice activity model, from block to block of one stream: down at once, up slowly.

    It begins with what the first block needs, but not with more than `first_db`: a short block tells little.
    """

    def __init__(self, first_db: float = MOST_DB) -> None:
        self._first_level = ENOUGH_DB - first_db
        self._level: float | None = None

    def __call__(self, samples: Audio) -> Audio:
        """The samples, raised where the stream has been quiet for a while; a whole number of frames."""
        frames = samples.reshape(-1, FRAME)
        if not len(frames):
            return samples
        levels = _levels(frames)
        before = max(self._first_level, float(levels.max())) if self._level is None else self._level
        falling = RELEASE_DB * np.arange(1, len(frames) + 1)
        levels = np.maximum.accumulate(np.maximum(levels + falling, before)) - falling
        self._level = float(levels[-1])
        gains = _missing(np.concatenate([[before], levels]))
        if not gains.any():
            return samples
        begin, end = _factor(np.minimum(gains[:-1], gains[1:]))[:, None], _factor(gains[1:])[:, None]
        return (frames * (begin + (end - begin) * RAMP)).reshape(-1)


RAMP = np.linspace(0, 1, FRAME, dtype=np.float32)[None]
"""The way of a gain that rises through a frame."""


def raised(audio: Audio) -> Audio:
    """A window of any length for an engine, all of it by the same gain, so that nothing in it changes but its level."""
    if not audio.any():
        return audio
    frames = audio[: len(audio) - len(audio) % FRAME].reshape(-1, FRAME) if len(audio) >= FRAME else audio[None]
    gain = _missing(_levels(frames).max(keepdims=True))
    return audio * _factor(gain) if gain[0] else audio


Decibels = np.ndarray[tuple[int], np.dtype[np.float64]]


def _levels(frames: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Decibels:
    """Of each frame; what does not alternate is no sound."""
    return cast(Decibels, 10 * np.log10(np.maximum(frames.var(axis=1, dtype=np.float64), 1e-20)))


def _missing(levels: Decibels) -> Decibels:
    """The gains that these levels need."""
    return cast(Decibels, np.clip(ENOUGH_DB - levels, 0.0, MOST_DB))


def _factor(gains: Decibels) -> Audio:
    return (10 ** (gains / 20)).astype(np.float32)
