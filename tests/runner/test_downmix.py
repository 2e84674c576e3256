"""Any number of channels to one: nothing that a channel holds is lost."""

from __future__ import annotations

import struct

import av
import numpy as np
import pytest
from av.audio.plane import AudioPlane

from eardrum.live import AudioFormat
from eardrum.runner.byte_pipe import BytePipe
from eardrum.runner.decoder import AudioDecoder
from eardrum.runner.live.driver import RawSamples
from eardrum.runner.tracks import NO_LAYOUT, MonoDownmix
from tests.recordings import Samples, create_noise, create_tone, load_speech, resample

pytestmark = pytest.mark.slow


RATE = 48_000
VOICE = resample(load_speech()[16_000 : 3 * 16_000], RATE)
SURROUND = 0x3F
"""FL FR FC LFE BL BR in a WAV header."""


def build_wav(channels: np.ndarray, *, layout: int | None = None, kind: str = "<i2") -> bytes:
    """A file of samples [channels, n]; with a layout, if only 0, the header is the extensible one."""
    width = np.dtype(kind).itemsize
    count, align = len(channels), len(channels) * width
    tag = 1 if kind == "<i2" else 3
    form = struct.pack("<HHIIHH", tag if layout is None else 0xFFFE, count, RATE, RATE * align, align, 8 * width)
    if layout is not None:
        form += struct.pack("<HHI", 22, 8 * width, layout) + struct.pack("<H", tag) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    data = (channels.T * 32767 if tag == 1 else channels.T).astype(kind).tobytes()
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def decode_samples(data: bytes, *, live: bool = False) -> Samples:
    return np.concatenate(list(AudioDecoder(BytePipe.from_bytes(data), raw_pcm=False, max_seconds=60, live=live)))


def build_channels(*at: int, of: int, voice: Samples = VOICE) -> np.ndarray:
    """Channels that are silent but for those named."""
    channels = np.zeros((of, len(voice)), np.float32)
    channels[list(at)] = voice
    return channels


def measure_distance_db(found: Samples, expected: Samples) -> float:
    """Level of the difference against the voice; a sign is nothing that anybody hears."""
    size = min(len(found), len(expected))
    found, expected = found[:size], expected[:size]
    found = found * np.sign(np.dot(found, expected))
    return float(10 * np.log10(np.mean((found - expected) ** 2) / np.mean(expected**2) + 1e-12))


def measure_level_db(found: Samples, expected: Samples) -> float:
    return float(20 * np.log10(found.std() / expected.std()))


ONE = decode_samples(build_wav(VOICE[None]))


def test_a_voice_that_cancels_itself_is_heard() -> None:
    for kind in ("<i2", "<f4"):
        assert measure_distance_db(decode_samples(build_wav(np.stack([VOICE, -VOICE]), kind=kind)), ONE) < -25
    assert measure_distance_db(decode_samples(build_wav(np.stack([VOICE, -0.8 * VOICE]))), 0.9 * ONE) < -15


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 16, 24, 37, 64])
def test_a_voice_on_any_channel_of_any_count_is_heard(count: int) -> None:
    for at in {0, count - 1}:
        found = decode_samples(build_wav(build_channels(at, of=count), layout=None if at else 0))
        assert len(found) == len(ONE)
        assert measure_level_db(found, ONE) > -8
        assert measure_distance_db(found / found.std() * ONE.std(), ONE) < -15


@pytest.mark.parametrize("at", range(6))
def test_a_layout_that_is_not_true_loses_no_voice(at: int) -> None:
    found = decode_samples(build_wav(build_channels(at, of=6), layout=SURROUND))
    assert measure_level_db(found, ONE) > -7


def test_channels_without_a_layout_are_averaged() -> None:
    voices = np.stack([level * VOICE for level in (1.0, 0.8, 0.6)])
    np.testing.assert_allclose(MonoDownmix([NO_LAYOUT] * 3, RATE).mix_channels(voices), voices.mean(axis=0), atol=1e-6)


def test_one_voice_on_all_channels_is_as_loud_as_in_mono() -> None:
    for count, layout in ((2, None), (2, 3), (5, None), (16, 0)):
        assert measure_distance_db(decode_samples(build_wav(build_channels(*range(count), of=count), layout=layout)), ONE) < -60


def test_both_of_two_who_speak_in_turn_are_heard_among_many_channels() -> None:
    half = len(VOICE) // 2
    channels = np.zeros((24, len(VOICE)), np.float32)
    channels[3, :half], channels[17, half:] = VOICE[:half], VOICE[half:]
    assert measure_distance_db(decode_samples(build_wav(channels)), ONE) < -10


def test_a_rumbling_subwoofer_does_not_drown_the_voice() -> None:
    channels = build_channels(2, of=6, voice=VOICE * 0.3)
    channels[3] = 0.9 * np.sin(2 * np.pi * 40 * np.arange(len(VOICE)) / RATE)
    assert measure_distance_db(decode_samples(build_wav(channels, layout=SURROUND)), ONE * 0.3) < -15


def test_a_voice_in_front_of_music_all_around_stays_in_front() -> None:
    music = np.stack([np.roll(create_noise(len(VOICE) / 16_000, 0.02), 977 * n) for n in range(6)])
    channels = music[:, : len(VOICE)].astype(np.float32)
    channels[2] += VOICE
    assert measure_distance_db(decode_samples(build_wav(channels, layout=SURROUND)), ONE) < -6


def test_there_is_no_click_where_the_weights_change() -> None:
    steady = create_tone(2.0, 200)
    turning = steady * np.where(np.arange(len(steady)) < len(steady) // 2, 1, -1)
    mixed = MonoDownmix(["FL", "FR"], 16_000).mix_channels(np.stack([steady, turning]).astype(np.float32))
    assert np.abs(np.diff(mixed)).max() < 2.5 * np.abs(np.diff(steady)).max()
    assert np.abs(mixed[-4000:]).max() > 0.45


def test_a_live_container_is_mixed_in_the_same_way() -> None:
    found = decode_samples(build_wav(np.stack([VOICE, -VOICE])), live=True)
    assert measure_level_db(found, ONE) > -1
    assert measure_level_db(decode_samples(build_wav(build_channels(8, of=9)), live=True), ONE) > -1


@pytest.mark.parametrize("rate", [16_000, RATE])
def test_raw_live_audio_is_mixed_in_the_same_way(rate: int) -> None:
    voice = resample(VOICE, rate) if rate != RATE else VOICE
    voice = load_speech()[16_000 : 3 * 16_000] if rate == 16_000 else voice
    for channels in (np.stack([voice, -voice]), build_channels(5, of=6, voice=voice)):
        data = (channels.T * 32767).astype("<i2").tobytes()
        found = []
        for portion in (641, 4096):
            source = RawSamples(AudioFormat(rate=rate, channels=len(channels)))
            pieces = [source.feed(data[at : at + portion]) for at in range(0, len(data), portion)]
            found.append(np.concatenate([*pieces, source.flush()]))
        np.testing.assert_array_equal(*found)
        assert measure_level_db(found[0], ONE) > -1


@pytest.mark.parametrize("form", ["u8", "s16", "s32", "s64", "flt", "dbl", "u8p", "s16p", "s32p", "s64p", "fltp", "dblp"])
def test_every_format_of_samples(form: str) -> None:
    frame = av.AudioFrame(format=form, layout="9 channels", samples=100)
    frame.sample_rate = RATE
    kind = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}[form.rstrip("p")]
    value = {"u": 192, "i": 1 << (8 * int(kind[1]) - 2), "f": 0.5}[kind[0]]
    for plane in [AudioPlane(frame, at) for at in range(9 if form.endswith("p") else 1)]:
        plane.update(np.full(plane.buffer_size // int(kind[1]), value, kind).tobytes())
    mixed = MonoDownmix.of(frame).mix_frame(frame)
    assert (mixed.samples, mixed.sample_rate, mixed.layout.name) == (100, RATE, "mono")
    np.testing.assert_allclose(mixed.to_ndarray()[0], 0.5, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_costs_only_itself(value: float) -> None:
    for channels in (VOICE[None].copy(), np.stack([VOICE, -VOICE])):
        channels[0, 1000] = value
        found = decode_samples(build_wav(channels, kind="<f4"))
        assert np.isfinite(found).all()
        assert measure_distance_db(found[2000:], ONE[2000:]) < -20


def test_a_voice_that_cancels_itself_keeps_its_sign_whichever_channel_is_louder() -> None:
    dice = np.random.default_rng(2)
    sway = 1 + 0.2 * np.sin(2 * np.pi * 3 * np.arange(len(VOICE)) / RATE)
    channels = np.stack([VOICE * sway, -VOICE * (2 - sway)]) + dice.normal(0, VOICE.std() / 30, (2, len(VOICE)))
    assert measure_distance_db(decode_samples(build_wav(channels.astype(np.float32), kind="<f4")), ONE) < -15
