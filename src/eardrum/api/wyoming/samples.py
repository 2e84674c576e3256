"""Any PCM that clients send as 16 bits, with nothing but bytes: the gateway has no decoder. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eardrum.errors import InvalidRequestError
from eardrum.live import Encoding, Format
from eardrum.types import SAMPLE_RATE

RATES = range(1_000, 384_001)
WIDTHS = range(1, 5)
CHANNELS = range(1, 33)

SIGNED = bytes(byte ^ 0x80 for byte in range(256))
"""8-bit samples are unsigned, all others signed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the samples are: rate in Hz, bytes per sample, channels."""

    rate: int = SAMPLE_RATE
    width: int = 2
    channels: int = 1

    @classmethod
    def of(cls, data: dict[str, Any], otherwise: Shape) -> Shape:
        """What an event says of its audio; what it does not say is as in `otherwise`.

        Raises:
            InvalidRequestError: no audio is like that.
        """
        return cls(
            _number(data, "rate", RATES, otherwise.rate),
            _number(data, "width", WIDTHS, otherwise.width),
            _number(data, "channels", CHANNELS, otherwise.channels),
        )

    @property
    def format(self) -> Format:
        """What `Samples` makes of it."""
        return Format(Encoding.PCM16, self.rate, self.channels)


class Samples:
    """Turns bytes of one shape into 16-bit samples. What is no whole sample of every channel waits for its rest."""

    def __init__(self, shape: Shape):
        self._width = shape.width
        self._frame = shape.width * shape.channels
        self._rest = b""

    def feed(self, audio: bytes) -> bytes:
        """The 16-bit samples that are whole now."""
        if self._rest:
            audio = self._rest + audio
        whole = len(audio) - len(audio) % self._frame
        self._rest = audio[whole:]
        return _as_16_bits(audio[:whole], self._width)


def _as_16_bits(audio: bytes, width: int) -> bytes:
    """Little-endian samples, of which the upper 16 bits stay."""
    if width == 2:
        return audio
    samples = bytearray(len(audio) // width * 2)
    if width == 1:
        samples[1::2] = audio.translate(SIGNED)
    else:
        samples[0::2] = audio[width - 2 :: width]
        samples[1::2] = audio[width - 1 :: width]
    return bytes(samples)


def _number(data: dict[str, Any], name: str, allowed: range, otherwise: int) -> int:
    value = data.get(name)
    if value is None:
        return otherwise
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise InvalidRequestError(f"The `{name}` of audio is a number from {allowed[0]} to {allowed[-1]}, not {value!r:.40}.")
    return value
