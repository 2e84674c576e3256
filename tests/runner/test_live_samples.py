"""Raw audio in any portions."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum.errors import InvalidRequestError
from eardrum.live import MAX_CHANNELS, MAX_RATE, MIN_RATE, AudioEncoding, AudioFormat, check_format
from eardrum.runner.live.driver import RawSamples
from tests.generated_cases import count_cases
from tests.recordings import Samples, create_tone, encode_g711, encode_pcm, load_speech, resample

RATES = (4_000, 8_000, 22_050, 24_000, 44_100, 48_000, 384_000)


def convert_audio(form: AudioFormat, data: bytes, portion: int = 640) -> Samples:
    source = RawSamples(form)
    pieces = [source.feed(data[at : at + portion]) for at in range(0, len(data), portion)]
    return np.concatenate([*pieces, source.flush()])


def measure_difference(one: Samples, other: Samples) -> float:
    """Power of the difference, in parts of the power of the first; the ends are left out."""
    size = min(len(one), len(other)) - 800
    return float(np.mean((one[800:size] - other[800:size]) ** 2) / np.mean(one[800:size] ** 2))


@pytest.mark.parametrize("rate", RATES)
def test_any_rate_becomes_16_khz(rate: int) -> None:
    sound = create_tone(2.0)
    found = convert_audio(AudioFormat(rate=rate), encode_pcm(resample(sound, rate)))
    assert len(found) == pytest.approx(32_000, abs=200)
    assert measure_difference(sound, found) < 1e-3


def test_what_is_at_16_khz_is_not_touched() -> None:
    data = encode_pcm(load_speech()[:16_000])
    assert np.array_equal(convert_audio(AudioFormat(), data) * 32768, np.frombuffer(data, "<i2").astype(np.float32))


@pytest.mark.parametrize(("encoding", "codec"), [(AudioEncoding.MULAW, "pcm_mulaw"), (AudioEncoding.ALAW, "pcm_alaw")])
def test_telephone_audio_is_decoded_as_the_standard_says(encoding: AudioEncoding, codec: str) -> None:
    every = bytes(range(256))
    context = av.CodecContext.create(codec, "r")
    assert isinstance(context, av.AudioCodecContext)
    context.sample_rate, context.layout = 8_000, "mono"
    (frame,) = context.decode(av.Packet(every))
    assert np.array_equal(
        RawSamples(AudioFormat(encoding)).feed(every * 16)[:256] * 32768, frame.to_ndarray()[0].astype(np.float32)
    )


@pytest.mark.parametrize("encoding", [AudioEncoding.MULAW, AudioEncoding.ALAW])
def test_telephone_audio_is_the_speech_it_was(encoding: AudioEncoding) -> None:
    data = encode_g711(load_speech(), f"pcm_{encoding}")
    assert measure_difference(load_speech(), convert_audio(AudioFormat(encoding), data)) < 0.01


def test_channels_are_mixed() -> None:
    both = np.stack([create_tone(1.0, 440), create_tone(1.0, 1000)], axis=1)
    found = convert_audio(AudioFormat(channels=2), encode_pcm(both.reshape(-1)))
    assert np.allclose(found, both.mean(axis=1), atol=1e-3)


def test_floats_are_taken_as_they_are_and_nonsense_in_them_is_silence() -> None:
    wild = np.array([0.5, np.nan, np.inf, -7.0], "<f4")
    assert convert_audio(AudioFormat(AudioEncoding.PCM32F), wild.tobytes()).tolist() == [0.5, 0.0, 1.0, -1.0]


@settings(deadline=None, max_examples=count_cases(30))
@given(
    st.sampled_from([16_000, 24_000, 8_000]),
    st.sampled_from(list(AudioEncoding)[:4]),
    st.lists(st.integers(0, 3000), max_size=30),
)
def test_portions_make_no_difference(rate: int, encoding: AudioEncoding, sizes: list[int]) -> None:
    form = AudioFormat(encoding, rate=rate)
    data = encode_pcm(load_speech()[:8_000])
    source, pieces, at = RawSamples(form), [], 0
    for size in sizes:
        pieces.append(source.feed(data[at : at + size]))
        at += size
    pieces += [source.feed(data[at:]), source.flush()]
    assert np.array_equal(np.concatenate(pieces), convert_audio(form, data, len(data)), equal_nan=True)


def test_one_byte_at_a_time_is_the_same_audio() -> None:
    data = encode_pcm(load_speech()[:4_000])
    assert np.array_equal(convert_audio(AudioFormat(rate=24_000), data, 1), convert_audio(AudioFormat(rate=24_000), data))


@pytest.mark.parametrize(
    ("form", "named"),
    [
        (AudioFormat(rate=MIN_RATE - 1), "rate"),
        (AudioFormat(rate=MAX_RATE + 1), "rate"),
        (AudioFormat(rate=-16_000), "rate"),
        (AudioFormat(channels=0), "channels"),
        (AudioFormat(audio_track=2), "audio_track"),
        (AudioFormat(channels=MAX_CHANNELS + 1), "channels"),
    ],
)
def test_what_cannot_be_heard_is_refused_by_name(form: AudioFormat, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=str(getattr(form, named))) as refused:
        check_format(form)
    assert refused.value.param == named


def test_a_container_says_itself_what_its_rate_is() -> None:
    check_format(AudioFormat(AudioEncoding.CONTAINER, rate=1))
