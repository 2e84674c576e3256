"""Every width of PCM as 16 bits, however its bytes come."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.api.wyoming.protocol import SampleConverter, SampleFormat
from eardrum.errors import InvalidRequestError
from eardrum.live import AudioEncoding, AudioFormat


def convert_samples(audio: bytes, width: int, channels: int = 1) -> list[int]:
    converted = SampleConverter(SampleFormat(rate=16_000, width=width, channels=channels)).feed(audio)
    return list(struct.unpack(f"<{len(converted) // 2}h", converted))


def test_bytes_are_unsigned() -> None:
    assert convert_samples(bytes([0, 1, 127, 128, 129, 255]), 1) == [-32768, -32512, -256, 0, 256, 32512]


def test_the_upper_half_of_wider_samples_stays() -> None:
    values = [-(2**31), -65536, 0, 65536, 2**31 - 1]
    assert convert_samples(struct.pack("<5i", *values), 4) == [-32768, -1, 0, 1, 32767]
    of_24_bits = b"".join(struct.pack("<i", value)[1:] for value in values)
    assert convert_samples(of_24_bits, 3) == [-32768, -1, 0, 1, 32767]


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.binary(max_size=25)))
def test_however_the_bytes_are_cut_the_samples_are_the_same(width: int, channels: int, pieces: list[bytes]) -> None:
    shape, whole = SampleFormat(rate=8_000, width=width, channels=channels), b"".join(pieces)
    in_pieces = SampleConverter(shape)
    frames = len(whole) // (width * channels)
    assert b"".join(map(in_pieces.feed, pieces)) == SampleConverter(shape).feed(whole)
    assert len(SampleConverter(shape).feed(whole)) == 2 * frames * channels


def test_the_format_is_that_of_the_samples_we_make() -> None:
    assert SampleFormat(rate=44_100, width=4, channels=2).live_format == AudioFormat(AudioEncoding.PCM16, 44_100, 2)


def test_what_an_event_does_not_say_is_as_before() -> None:
    assert SampleFormat(rate=22_050, width=1, channels=2).update({"rate": 8_000, "width": None}) == SampleFormat(
        rate=8_000, width=1, channels=2
    )


@pytest.mark.parametrize(
    "data",
    [
        {"rate": 0},
        {"rate": "16000"},
        {"rate": 10**9},
        {"width": 0},
        {"width": 5},
        {"channels": 0},
        {"channels": True},
        {"width": []},
    ],
)
def test_impossible_audio_is_refused(data: dict[str, Any]) -> None:
    (name,) = data
    with pytest.raises(InvalidRequestError, match=f"{name} must be a whole number from"):
        SampleFormat().update(data)
