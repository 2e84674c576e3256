"""Bytes of raw audio, in any portions, to samples at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from eardrum.engines.base import Audio
from eardrum.errors import InvalidRequestError
from eardrum.live import Encoding, Format
from eardrum.runner.downmix import NO_LAYOUT, Downmix
from eardrum.types import SAMPLE_RATE

LOWEST, HIGHEST = 8_000, 192_000
"""Rates in Hz."""

MOST_CHANNELS = 64

BLOCK_S = 0.032
"""Audio that is mixed and resampled at a time. Blocks of one length make the result the same however the bytes were portioned."""


def check(form: Format) -> None:
    """See that audio of this format can be read.

    Raises:
        InvalidRequestError: rate, channels or track out of range.
    """
    if form.encoding is Encoding.CONTAINER:
        return
    if not LOWEST <= form.rate <= HIGHEST:
        raise InvalidRequestError(
            f"A rate of {form.rate} Hz cannot be heard: send audio of {LOWEST} to {HIGHEST} Hz and say which.", param="rate"
        )
    if (form.audio_track or 1) > 1:
        raise InvalidRequestError(
            f"Audio without a container has one audio track: audio_track cannot be {form.audio_track}.", param="audio_track"
        )
    if not 1 <= form.channels <= MOST_CHANNELS:
        raise InvalidRequestError(f"{form.channels} channels cannot be heard: send 1 to {MOST_CHANNELS}.", param="channels")


class RawSamples:
    """Turns one stream of raw audio into samples. Bytes of an incomplete sample wait for the rest."""

    def __init__(self, form: Format):
        self._form = form
        self._held = bytearray()
        self._size = _WIDTH[form.encoding] * form.channels
        self._block = self._size * round(form.rate * BLOCK_S)
        self._mix = Downmix([NO_LAYOUT] * form.channels, form.rate) if form.channels > 1 else None
        self._resampler = None if form.rate == SAMPLE_RATE else AudioResampler("flt", "mono", SAMPLE_RATE)

    def feed(self, data: bytes) -> Audio:
        """The samples that the next bytes complete, shape [n]."""
        self._held += data
        whole = len(self._held) - len(self._held) % self._block
        return self._take(whole)

    def flush(self) -> Audio:
        """Those of the bytes that wait for a block to be full. More audio may follow."""
        return self._take(len(self._held) - len(self._held) % self._size)

    def _take(self, size: int) -> Audio:
        data = bytes(self._held[:size])
        del self._held[:size]
        samples = _decoded(data, self._form.encoding)
        if not size or (self._resampler is None and self._mix is None):
            return samples
        step = self._block // self._size * self._form.channels
        blocks = (samples[at : at + step] for at in range(0, len(samples), step))
        return np.concatenate([piece for block in blocks for piece in self._converted(block)] or [samples[:0]])

    def _converted(self, samples: Audio) -> Iterator[Audio]:
        """One block in mono at `SAMPLE_RATE`."""
        if self._mix:
            samples = self._mix.mix(np.ascontiguousarray(samples.reshape(-1, self._form.channels).T))
        if self._resampler is None:
            yield samples
            return
        frame = AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = self._form.rate
        for resampled in self._resampler.resample(frame):
            yield cast(Audio, resampled.to_ndarray()[0])


_WIDTH = {Encoding.PCM16: 2, Encoding.PCM32F: 4, Encoding.MULAW: 1, Encoding.ALAW: 1}


def _decoded(data: bytes, encoding: Encoding) -> Audio:
    match encoding:
        case Encoding.PCM16:
            return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        case Encoding.PCM32F:
            samples = np.nan_to_num(np.frombuffer(data, "<f4"), posinf=1.0, neginf=-1.0).astype(np.float32)
            return cast(Audio, samples.clip(-1, 1))
        case _:
            return cast(Audio, _TABLES[encoding][np.frombuffer(data, np.uint8)])


def _mulaw() -> Audio:
    """ITU-T G.711, mu-law: the sample of each byte."""
    code = ~np.arange(256, dtype=np.uint8)
    size = (((code & 0x0F).astype(np.int32) << 3) + 0x84 << ((code >> 4) & 7)) - 0x84
    return (np.where(code & 0x80, -size, size) / 32768).astype(np.float32)


def _alaw() -> Audio:
    """ITU-T G.711, A-law: the sample of each byte."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    part, exponent = ((code & 0x0F).astype(np.int32) << 4) + 8, ((code >> 4) & 7).astype(np.int32)
    size = np.where(exponent > 0, (part + 0x100) << np.maximum(exponent - 1, 0), part)
    return (np.where(code & 0x80, size, -size) / 32768).astype(np.float32)


_TABLES = {Encoding.MULAW: _mulaw(), Encoding.ALAW: _alaw()}
