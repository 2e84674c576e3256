"""Any number of channels to one, without losing what only some of them hold.

The mix is FFmpeg's where the layout says what each channel is for, and the mean where it does not. That loses speech which
cancels itself (a balanced line recorded as stereo) or which is on few of many channels (one microphone each, or a layout that
is not true). So the mix and its channels are measured beside each other, and where the mix is far quieter than a channel, the
channels share the gain by their energy, as in an automatic microphone mixer, with their signs aligned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self, cast

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane

from eardrum.engines.base import Audio

Channels = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""Samples in -1..1, shape [channels, n]."""

Weights = np.ndarray[tuple[int], np.dtype[np.float64]]
"""What each channel counts for, shape [channels]."""

WEIGHTS = {"FC": 1.0, "FL": 0.5**0.5, "FR": 0.5**0.5, "LFE": 0.0, "LFE2": 0.0, "AMBI0": 1.0}
"""Weights of FFmpeg's own mono mix, before they are scaled; ambisonic sound is taken from its omnidirectional channel."""

OTHERS = 0.5
"""Weight of the channels beside and behind the listener."""

BLOCK_S = 0.05
"""The levels are measured and the weights set so often."""

FADE_S = 0.005
"""The beginning of a block, in which the weights pass from those of the block before to its own."""

MEMORY_S = 0.15
"""Levels are averaged over about this long, so that the weights do not follow single periods of a voice."""

MEASURED_HZ = 8_000
"""Rate at which levels are measured."""

BEGIN_DB, FULL_DB = 6.0, 12.0
"""How far the mix must be below the loudest channel for the other weights to begin to count, and to be all that counts.
Somebody who speaks into one channel of two is 6 dB down in their mean, which is no loss."""
BEGIN = 10 ** (BEGIN_DB / 10)

NO_LAYOUT = "NONE"
"""Name of a channel that nobody named."""

SAMPLES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
"""FFmpeg's formats of samples as numpy's; its own array of a frame knows no s64."""

SUBWOOFER = 0.01
"""Share of the power of a channel for low sounds that counts: it may be far louder than a voice, and is no voice."""

FLOOR = 1e-14
"""Power below which there is no sound at all."""


class Downmix:
    """The mix of one stream of channels at `rate` Hz, by FFmpeg's names of them. Samples go in piece by piece."""

    def __init__(self, names: Sequence[str], rate: int):
        self._rate = rate
        self._every = max(round(rate / MEASURED_HZ), 1)
        self._plain = _plain(names)
        self._trust = np.array([SUBWOOFER if name.startswith("LFE") else 1.0 for name in names])
        self._products = np.zeros((len(names), len(names)))  # recent power of the channels, and of each with each
        self._weights = self._plain  # those of the last block

    @classmethod
    def of(cls, frame: AudioFrame) -> Self:
        """For frames like this one."""
        return cls([channel.name for channel in frame.layout.channels], frame.sample_rate)

    def frame(self, frame: AudioFrame) -> AudioFrame:
        """The frame in mono at the same rate."""
        if len(self._plain) == 1:
            return frame
        mixed = AudioFrame.from_ndarray(self.samples(frame)[None], format="flt", layout="mono")
        mixed.sample_rate = frame.sample_rate
        return mixed

    def samples(self, frame: AudioFrame) -> Audio:
        """The frame's samples in mono, shape [n]."""
        channels = _channels(frame, len(self._plain))
        return channels[0] if len(self._plain) == 1 else self.mix(channels)

    def mix(self, samples: Channels) -> Audio:
        """The samples in mono, shape [n]."""
        mixed = np.empty(samples.shape[1], np.float32)
        slow = self._slowed(samples)
        steps = round(MEASURED_HZ * BLOCK_S)
        for number, start in enumerate(range(0, len(mixed), steps * self._every)):
            end = start + steps * self._every
            block, before = samples[:, start:end], self._weights
            self._weights = self._next(slow[:, number * steps : (number + 1) * steps])
            np.einsum("c,cn->n", self._weights.astype(np.float32), block, out=mixed[start:end])
            if self._weights is not before:
                fade = block[:, : int(self._rate * FADE_S)]
                mixed[start : start + fade.shape[1]] += (before - self._weights) @ fade * np.linspace(1, 0, fade.shape[1])
        return mixed

    def _slowed(self, samples: Channels) -> Channels:
        """The samples at about `MEASURED_HZ`, by means of a few: what is above the voice, hiss above all, counts for less."""
        whole = samples.shape[1] - samples.shape[1] % self._every
        means = samples[:, 0 : whole : self._every].copy()
        for at in range(1, self._every):
            means += samples[:, at : whole : self._every]
        return means * np.float32(1 / self._every)

    def _next(self, slow: Channels) -> Weights:
        """The weights for the next block."""
        changes = np.diff(slow, axis=1)  # which leaves out what is below the voice
        if changes.size:
            keep = math.exp(-slow.shape[1] / MEASURED_HZ / MEMORY_S)
            self._products = keep * self._products + (1 - keep) / changes.shape[1] * (changes @ changes.T)
        powers = self._products.diagonal() * self._trust
        loudest = int(powers.argmax())
        mix = float(self._plain @ self._products @ self._plain)
        if powers[loudest] > max(mix * BEGIN, FLOOR):
            missing = 10 * math.log10(powers[loudest] / max(mix, FLOOR))
            share = min((missing - BEGIN_DB) / (FULL_DB - BEGIN_DB), 1.0)
            aligned = np.sign(self._products[loudest]) * powers / powers.sum()
            if aligned @ self._products @ self._weights < 0:
                aligned = -aligned  # another channel is the loudest now: that must not turn the voice around
            return cast(Weights, (1 - share) * self._plain + share * aligned)
        return self._plain


def _plain(names: Sequence[str]) -> Weights:
    """The weights by the layout. Voices in front keep their level, without them the sum of all does."""
    if any(name in (NO_LAYOUT, "UNK", "UNSD") or name.startswith("USR") for name in names):
        return np.full(len(names), 1 / len(names))
    others = 0.0 if names[0].startswith("AMBI") else OTHERS
    weights = np.array([WEIGHTS.get(name, others) for name in names])
    return weights if "FC" in names else cast(Weights, weights / weights.sum())


def _channels(frame: AudioFrame, count: int) -> Channels:
    kind = np.dtype(SAMPLES[frame.format.packed.name])
    # `frame.planes`, and so `to_ndarray`, read beyond the pointers of a frame with eight planes or more.
    planes = [AudioPlane(frame, at) for at in range(count if frame.format.is_planar else 1)]
    samples = np.stack([np.frombuffer(memoryview(plane), kind, frame.samples * count // len(planes)) for plane in planes])
    if not frame.format.is_planar:
        samples = samples.reshape(-1, count).T
    floats = samples.astype(np.float32, order="C")
    if kind.kind == "f" and not np.isfinite(floats).all():
        floats = np.nan_to_num(floats, posinf=1.0, neginf=-1.0)
    if kind.kind == "u":
        floats -= 128
    return floats if kind.kind == "f" else floats * np.float32(2.0 ** (1 - 8 * kind.itemsize))
