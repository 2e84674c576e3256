"""Selects one of several audio tracks and mixes its channels down to mono.

`TrackSelector` takes the requested track, else the default one, else the first with sound. Recording programs mark the first
track as the default one, whether it has sound or not. So while the first candidate is silent, the others are decoded as well,
and their sound is held back until the choice is made.

`MonoDownmix` mixes like FFmpeg where the layout says what each channel is for, and takes the mean where it does not. That loses
speech which cancels itself (a balanced line recorded as stereo) or which is on few of many channels (one microphone each, or a
layout that is not true). So the mix and its channels are measured separately, and where the mix is far quieter than a
channel, the channels share the gain by their energy, as in an automatic microphone mixer, with their signs aligned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Self, cast

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.plane import AudioPlane
from av.audio.stream import AudioStream
from av.stream import Disposition

from eardrum.engines.base import Audio
from eardrum.errors import InvalidRequestError
from eardrum.runner.byte_pipe import ScratchFile

SILENT_PEAK = 5e-5
"""Peak of a track without sound, with the last bit of 16 for noise: -86 dBFS."""

MAX_HELD_S = 600.0
"""A track that is silent for so long while another has sound is passed over, even if it should have some later."""

MAX_LIVE_HELD_S = 3.0
"""The same in a live stream, where text is waited for."""

MEMORY_BYTES = 4 << 20
"""Bytes of sound held in memory; more goes to the disk."""

HOLD_PURPOSE = "to hold audio back until it is known which track has sound (name one with audio_track)"

MAX_JITTER_S = 0.01
"""Timestamps that are off by less count as none."""

SPECIAL_DISPOSITIONS = Disposition.comment | Disposition.hearing_impaired | Disposition.visual_impaired | Disposition.karaoke
"""Tracks for some, which are not meant by default."""


class TrackSelector:
    """The audio tracks of one container. Frames of all of them go in, and those of one come out."""

    def __init__(self, streams: Sequence[AudioStream], wanted: int | None, *, held_s: float = MAX_HELD_S):
        """Start with the requested track, counted from 1, if any.

        Raises:
            InvalidRequestError: there is no such track.
        """
        check_track(wanted, len(streams))
        self.count = len(streams)
        self._held_s = held_s
        tracks = [AudioTrack(number, stream) for number, stream in enumerate(streams, 1)]
        self._candidates = [tracks[wanted - 1]] if wanted else sorted(tracks, key=_rank_track)
        """Those in question; the first with sound is meant."""
        self._is_decided = len(self._candidates) == 1

    @property
    def number(self) -> int:
        """The selected track so far, counted from 1."""
        return self._candidates[0].number

    @property
    def stream(self) -> AudioStream:
        """The same, as FFmpeg has it."""
        return self._candidates[0].stream

    @property
    def streams(self) -> list[AudioStream]:
        """The streams to demultiplex."""
        return [track.stream for track in self._candidates]

    def has_stream(self, stream: AudioStream) -> bool:
        """Whether a track's packets are still decoded."""
        return stream is self._candidates[0].stream or any(track.stream is stream for track in self._candidates[1:])

    def select_frames(self, stream: AudioStream, frame: AudioFrame) -> Iterator[AudioFrame]:
        """The next frame of any track in, and out what is known to be meant.

        Raises:
            StorageFullError, OutOfDescriptorsError: there is no room to hold sound back.
        """
        if self._is_decided:
            if stream is self._candidates[0].stream:
                yield frame
            return
        at = next((at for at, track in enumerate(self._candidates) if track.stream is stream), None)
        if at is None:
            return
        track = self._candidates[at]
        if track.hold_frame(frame):
            for other in self._candidates[at + 1 :]:
                other.close()
            del self._candidates[at + 1 :]
            if at == 0 or track.held_s > self._held_s:
                yield from self._decide(track)

    def flush(self) -> Iterator[AudioFrame]:
        """The end of all tracks: what was held back of the one that is meant."""
        if not self._is_decided:
            sounding = (track for track in self._candidates if track.held_s)
            yield from self._decide(
                next(sounding, next((track for track in self._candidates if track.has_frames), self._candidates[0]))
            )

    def close(self) -> None:
        """Forget what is held back."""
        for track in self._candidates:
            track.close()

    def _decide(self, track: AudioTrack) -> Iterator[AudioFrame]:
        for other in self._candidates:
            if other is not track:
                other.close()
        self._candidates, self._is_decided = [track], True
        yield from track.release_frames()


def check_track(wanted: int | None, count: int) -> None:
    """Check that the requested track exists.

    Raises:
        InvalidRequestError: there is not.
    """
    if wanted and wanted > count:
        there = f"{count} audio tracks, numbered 1 to {count}" if count > 1 else "one audio track"
        raise InvalidRequestError(f"The file has {there}: audio_track {wanted} does not exist.", param="audio_track")


@dataclass(slots=True)
class HeldStretch:
    """Frames of one rate that follow each other, as they are held: so many samples, from `pts` on if they are timed."""

    pts: int | None
    time_base: Fraction | None
    rate: int
    sound: bool
    samples: int = 0

    def is_continued_by(self, frame: AudioFrame, *, sound: bool) -> bool:
        """Whether the frame begins where this ends."""
        if (self.rate, self.sound, self.pts is None) != (frame.sample_rate, sound, frame.pts is None):
            return False
        if self.pts is None or frame.pts is None or not self.time_base:
            return True
        return abs(float((frame.pts - self.pts) * self.time_base) - self.samples / self.rate) < MAX_JITTER_S

    def build_frame(self, at: int, samples: Audio) -> AudioFrame:
        """Those samples of it that begin `at` so many, as a frame."""
        frame = AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = self.rate
        if self.pts is not None and self.time_base:
            frame.pts, frame.time_base = self.pts + round(at / self.rate / self.time_base), self.time_base
        return frame


class AudioTrack:
    """One track. While it is not known which one is meant, its silence is counted and its sound held back in mono."""

    def __init__(self, number: int, stream: AudioStream):
        self.number = number
        self.stream = stream
        self.held_s = 0.0
        """Seconds since its first sound."""
        self._stretches: list[HeldStretch] = []
        self._sound: ScratchFile | None = None
        self._mix: MonoDownmix | None = None
        self._frame_format = ("", "", 0)

    @property
    def has_frames(self) -> bool:
        """Whether anything of it could be decoded."""
        return bool(self._stretches)

    def hold_frame(self, frame: AudioFrame) -> bool:
        """Hold a frame back. Returns whether the track has had sound.

        Raises:
            StorageFullError, OutOfDescriptorsError: there is no room.
        """
        samples = self._mix_to_mono(frame)
        if self.held_s or np.abs(samples).max(initial=0.0) > SILENT_PEAK:
            self.held_s += frame.samples / frame.sample_rate
            self._store_sound(samples.tobytes())
        sound = self.held_s > 0
        if not (self._stretches and self._stretches[-1].is_continued_by(frame, sound=sound)):
            self._stretches.append(HeldStretch(frame.pts, frame.time_base, frame.sample_rate, sound))
        self._stretches[-1].samples += frame.samples
        return sound

    def release_frames(self) -> Iterator[AudioFrame]:
        """All that was held, once."""
        if self._sound:
            self._sound.seek(0)
        for stretch in self._stretches:
            for at in range(0, stretch.samples, stretch.rate):
                count = min(stretch.rate, stretch.samples - at)
                if stretch.sound and self._sound:
                    yield stretch.build_frame(at, np.frombuffer(self._sound.read(4 * count), np.float32))
                else:
                    yield stretch.build_frame(at, np.zeros(count, np.float32))
        self.close()

    def close(self) -> None:
        """Forget what is held."""
        self._stretches = []
        if self._sound:
            self._sound.close()
            self._sound = None

    def _mix_to_mono(self, frame: AudioFrame) -> Audio:
        form = frame.format.name, frame.layout.name, frame.sample_rate
        if self._mix is None or form != self._frame_format:
            self._mix, self._frame_format = MonoDownmix.of(frame), form
        return self._mix.mix_samples(frame)

    def _store_sound(self, data: bytes) -> None:
        self._sound = self._sound or ScratchFile(MEMORY_BYTES, HOLD_PURPOSE)
        self._sound.write(data)


def _rank_track(track: AudioTrack) -> tuple[bool, bool, int]:
    disposition = track.stream.disposition
    return not disposition & Disposition.default, bool(disposition & SPECIAL_DISPOSITIONS), track.number


ChannelSamples = np.ndarray[tuple[int, int], np.dtype[np.float32]]
"""Samples in -1..1, shape [channels, n]."""

ChannelProducts = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
"""Average power of the channels, and of each with each, shape [blocks, channels, channels] or without blocks."""

ChannelWeights = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]
"""The weight of each channel, shape [channels]."""

ChannelBlocks = np.ndarray[tuple[int, int, int], np.dtype[np.float32]]
"""Samples of several blocks, shape [blocks, channels, n]."""

LAYOUT_WEIGHTS = {"FC": 1.0, "FL": 0.5**0.5, "FR": 0.5**0.5, "LFE": 0.0, "LFE2": 0.0, "AMBI0": 1.0}
"""Weights of FFmpeg's own mono mix, before they are scaled; ambisonic sound is taken from its omnidirectional channel."""

OTHER_WEIGHT = 0.5
"""Weight of the channels beside and behind the listener."""

BLOCK_S = 0.05
"""The levels are measured and the weights set so often."""

FADE_S = 0.005
"""The beginning of a block, in which the weights pass from those of the block before to its own."""

MEMORY_S = 0.15
"""Levels are averaged over about this long, so that the weights do not follow single periods of a voice."""

MEASURED_HZ = 8_000
"""Rate at which levels are measured."""

BLOCK_STEPS = round(MEASURED_HZ * BLOCK_S)
"""Samples at that rate in a block."""

BEGIN_DB, FULL_DB = 6.0, 12.0
"""How far the mix must be below the loudest channel for the other weights to begin to count, and to be all that counts.
A person who speaks into one channel of two is 6 dB down in their mean, which is no loss."""
BEGIN_RATIO = 10 ** (BEGIN_DB / 10)

NO_LAYOUT = "NONE"
"""Name of a channel without a name in the layout."""

SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
"""FFmpeg's formats of samples as numpy's; PyAV's conversion to an array does not support s64."""

SUBWOOFER_SHARE = 0.01
"""Share of the power of a channel for low sounds that counts: it may be far louder than a voice, and is no voice."""

POWER_FLOOR = 1e-14
"""Power below which there is no sound at all."""


class MonoDownmix:
    """The mix of one stream of channels at `rate` Hz, by FFmpeg's names of them. Samples go in piece by piece."""

    def __init__(self, names: Sequence[str], rate: int):
        self._rate = rate
        self._decimation = max(round(rate / MEASURED_HZ), 1)
        self._layout_weights = _compute_layout_weights(names)
        self._trust = np.array([SUBWOOFER_SHARE if name.startswith("LFE") else 1.0 for name in names])
        self._products = np.zeros((len(names), len(names)))  # recent power of the channels, and of each with each
        self._weights = self._layout_weights  # those of the last block

    @classmethod
    def of(cls, frame: AudioFrame) -> Self:
        """For frames like this one."""
        return cls([channel.name for channel in frame.layout.channels], frame.sample_rate)

    def mix_frame(self, frame: AudioFrame) -> AudioFrame:
        """The frame in mono at the same rate."""
        if len(self._layout_weights) == 1:
            return frame
        mixed = AudioFrame.from_ndarray(self.mix_samples(frame)[None], format="flt", layout="mono")
        mixed.sample_rate = frame.sample_rate
        return mixed

    def mix_samples(self, frame: AudioFrame) -> Audio:
        """The frame's samples in mono, shape [n]."""
        channels = _read_channels(frame, len(self._layout_weights))
        return channels[0] if len(self._layout_weights) == 1 else self.mix_channels(channels)

    def mix_channels(self, samples: ChannelSamples) -> Audio:
        """The samples in mono, shape [n]."""
        products = self._measure_products(self._decimate(samples))
        if self._weights is self._layout_weights and not self._find_cancellation(products).any():
            return cast(Audio, self._layout_weights.astype(np.float32) @ samples)
        mixed = np.empty(samples.shape[1], np.float32)
        for number, start in enumerate(range(0, len(mixed), BLOCK_STEPS * self._decimation)):
            block, before = samples[:, start : start + BLOCK_STEPS * self._decimation], self._weights
            self._weights = self._choose_weights(products[min(number, len(products) - 1)])
            mixed[start : start + block.shape[1]] = self._weights.astype(np.float32) @ block
            if self._weights is not before:
                fade = block[:, : int(self._rate * FADE_S)]
                mixed[start : start + fade.shape[1]] += (before - self._weights) @ fade * np.linspace(1, 0, fade.shape[1])
        return mixed

    def _decimate(self, samples: ChannelSamples) -> ChannelSamples:
        """The samples at about `MEASURED_HZ`, by means of a few: what is above the voice, hiss above all, counts for less."""
        whole = samples.shape[1] - samples.shape[1] % self._decimation
        few = samples[:, :whole].reshape(len(samples), whole // self._decimation, self._decimation)
        return cast(ChannelSamples, few @ np.full(self._decimation, 1 / self._decimation, np.float32))

    def _measure_products(self, slow: ChannelSamples) -> ChannelProducts:
        """The averages after each block, all blocks at once: most recordings need no other weights, and cost nothing more."""
        whole = slow.shape[1] // BLOCK_STEPS
        blocks = slow[:, : whole * BLOCK_STEPS].reshape(len(slow), whole, BLOCK_STEPS).transpose(1, 0, 2)
        averages = _average_products(self._products, blocks)
        rest = slow[None, :, whole * BLOCK_STEPS :]
        if rest.shape[2] > 1 or not whole:
            averages = np.concatenate([averages, _average_products(averages[-1] if whole else self._products, rest)])
        self._products = averages[-1]
        return averages

    def _find_cancellation(self, products: ChannelProducts) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """In which blocks the mix by the layout is far quieter than a channel."""
        loudest = (products.diagonal(axis1=1, axis2=2) * self._trust).max(axis=1)
        mix = np.einsum("c,bcd,d->b", self._layout_weights, products, self._layout_weights)
        return cast("np.ndarray[tuple[int], np.dtype[np.bool_]]", loudest > np.maximum(mix * BEGIN_RATIO, POWER_FLOOR))

    def _choose_weights(self, products: ChannelProducts) -> ChannelWeights:
        """The weights for a block with these averages, shape [channels, channels]."""
        if not self._find_cancellation(products[None])[0]:
            return self._layout_weights
        powers = products.diagonal() * self._trust
        loudest = int(powers.argmax())
        missing = 10 * math.log10(
            powers[loudest] / max(float(self._layout_weights @ products @ self._layout_weights), POWER_FLOOR)
        )
        share = min((missing - BEGIN_DB) / (FULL_DB - BEGIN_DB), 1.0)
        aligned = np.sign(products[loudest]) * powers / powers.sum()
        if aligned @ products @ self._weights < 0:
            aligned = -aligned  # another channel is the loudest now: that must not turn the voice around
        return cast(ChannelWeights, (1 - share) * self._layout_weights + share * aligned)


def _average_products(products: ChannelProducts, blocks: ChannelBlocks) -> ChannelProducts:
    """The averages, shape [channels, channels], as they are after each of the blocks."""
    changes = np.diff(blocks, axis=2)  # which leaves out what is below the voice
    count, steps = len(blocks), changes.shape[2]
    if not steps:
        return np.repeat(products[None], count, axis=0)
    new = (np.einsum("bci,bdi->bcd", changes, changes) / steps).reshape(count, products.size)
    keep, shares = _compute_shares(count, (steps + 1) / MEASURED_HZ)
    return cast(ChannelProducts, (shares @ new + keep[:, None] * products.reshape(-1)).reshape(count, *products.shape))


@lru_cache
def _compute_shares(count: int, block_s: float) -> tuple[ChannelWeights, ChannelWeights]:
    """The shares that the average before them and each of the blocks have in the averages after each, shapes [count] and
    [count, count]: an average that is followed block by block, at once."""
    keep = math.exp(-block_s / MEMORY_S)
    ages = np.subtract.outer(np.arange(count), np.arange(count))
    shares = np.where(ages >= 0, (1 - keep) * keep ** np.maximum(ages, 0), 0.0)
    return keep ** np.arange(1.0, count + 1), cast(ChannelWeights, shares)


def _compute_layout_weights(names: Sequence[str]) -> ChannelWeights:
    """The weights by the layout. Voices in front keep their level, without them the sum of all does."""
    if any(name in (NO_LAYOUT, "UNK", "UNSD") or name.startswith("USR") for name in names):
        return np.full(len(names), 1 / len(names))
    others = 0.0 if names[0].startswith("AMBI") else OTHER_WEIGHT
    weights = np.array([LAYOUT_WEIGHTS.get(name, others) for name in names])
    return weights if "FC" in names else cast(ChannelWeights, weights / weights.sum())


def _read_channels(frame: AudioFrame, count: int) -> ChannelSamples:
    kind = np.dtype(SAMPLE_TYPES[frame.format.packed.name])
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
