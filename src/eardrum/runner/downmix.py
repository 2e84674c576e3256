"""Any number of channels to one, without losing what only some of them hold.

The mix is FFmpeg's where the layout says what each channel is for, and the mean where it does not. That loses speech which
cancels itself (a balanced line recorded as stereo) or which is on few of many channels (one microphone each, or a layout that
is not true). So the mix and its channels are measured beside each other, and where the mix is far quieter than a channel, the
channels share the gain by their energy, as in an automatic microphone mixer, with their signs aligned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Self, cast

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane

from eardrum.engines.base import Audio

Channels = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""Samples in -1..1, shape [channels, n]."""

Products = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
"""Average power of the channels, and of each with each, shape [blocks, channels, channels] or without blocks."""

Weights = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
"""What each channel counts for, shape [channels]."""

Blocks = np.ndarray[tuple[int, int, int], np.dtype[np.float32]]
"""Samples of several blocks, shape [blocks, channels, n]."""

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

STEPS = round(MEASURED_HZ * BLOCK_S)
"""Samples at that rate in a block."""

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
        products = self._measured(self._slowed(samples))
        if self._weights is self._plain and not self._cancels(products).any():
            return cast(Audio, self._plain.astype(np.float32) @ samples)
        mixed = np.empty(samples.shape[1], np.float32)
        for number, start in enumerate(range(0, len(mixed), STEPS * self._every)):
            block, before = samples[:, start : start + STEPS * self._every], self._weights
            self._weights = self._next(products[min(number, len(products) - 1)])
            mixed[start : start + block.shape[1]] = self._weights.astype(np.float32) @ block
            if self._weights is not before:
                fade = block[:, : int(self._rate * FADE_S)]
                mixed[start : start + fade.shape[1]] += (before - self._weights) @ fade * np.linspace(1, 0, fade.shape[1])
        return mixed

    def _slowed(self, samples: Channels) -> Channels:
        """The samples at about `MEASURED_HZ`, by means of a few: what is above the voice, hiss above all, counts for less."""
        whole = samples.shape[1] - samples.shape[1] % self._every
        few = samples[:, :whole].reshape(len(samples), whole // self._every, self._every)
        return cast(Channels, few @ np.full(self._every, 1 / self._every, np.float32))

    def _measured(self, slow: Channels) -> Products:
        """The averages after each block, all blocks at once: most recordings need no other weights, and cost nothing more."""
        whole = slow.shape[1] // STEPS
        blocks = slow[:, : whole * STEPS].reshape(len(slow), whole, STEPS).transpose(1, 0, 2)
        averages = _averaged(self._products, blocks)
        rest = slow[None, :, whole * STEPS :]
        if rest.shape[2] > 1 or not whole:
            averages = np.concatenate([averages, _averaged(averages[-1] if whole else self._products, rest)])
        self._products = averages[-1]
        return averages

    def _cancels(self, products: Products) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """In which blocks the mix by the layout is far quieter than a channel."""
        loudest = (products.diagonal(axis1=1, axis2=2) * self._trust).max(axis=1)
        mix = np.einsum("c,bcd,d->b", self._plain, products, self._plain)
        return cast("np.ndarray[tuple[int], np.dtype[np.bool_]]", loudest > np.maximum(mix * BEGIN, FLOOR))

    def _next(self, products: Products) -> Weights:
        """The weights for a block with these averages, shape [channels, channels]."""
        if not self._cancels(products[None])[0]:
            return self._plain
        powers = products.diagonal() * self._trust
        loudest = int(powers.argmax())
        missing = 10 * math.log10(powers[loudest] / max(float(self._plain @ products @ self._plain), FLOOR))
        share = min((missing - BEGIN_DB) / (FULL_DB - BEGIN_DB), 1.0)
        aligned = np.sign(products[loudest]) * powers / powers.sum()
        if aligned @ products @ self._weights < 0:
            aligned = -aligned  # another channel is the loudest now: that must not turn the voice around
        return cast(Weights, (1 - share) * self._plain + share * aligned)


def _averaged(products: Products, blocks: Blocks) -> Products:
    """The averages, shape [channels, channels], as they are after each of the blocks."""
    changes = np.diff(blocks, axis=2)  # which leaves out what is below the voice
    count, steps = len(blocks), changes.shape[2]
    if not steps:
        return np.repeat(products[None], count, axis=0)
    new = (np.einsum("bci,bdi->bcd", changes, changes) / steps).reshape(count, products.size)
    keep, shares = _shares(count, (steps + 1) / MEASURED_HZ)
    return cast(Products, (shares @ new + keep[:, None] * products.reshape(-1)).reshape(count, *products.shape))


@lru_cache
def _shares(count: int, block_s: float) -> tuple[Weights, Weights]:
    """The shares that the average before them and each of the blocks have in the averages after each, shapes [count] and
    [count, count]: an average that is followed block by block, at once."""
    keep = math.exp(-block_s / MEMORY_S)
    ages = np.subtract.outer(np.arange(count), np.arange(count))
    shares = np.where(ages >= 0, (1 - keep) * keep ** np.maximum(ages, 0), 0.0)
    return keep ** np.arange(1.0, count + 1), cast(Weights, shares)


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
    floats = samples.astype(np.float32, order="C", copy=False)
    if kind.kind == "f" and not np.isfinite(floats).all():
        floats = np.nan_to_num(floats, posinf=1.0, neginf=-1.0)
    if kind.kind == "u":
        floats = floats - np.float32(128)
    return floats if kind.kind == "f" else floats * np.float32(2.0 ** (1 - 8 * kind.itemsize))
