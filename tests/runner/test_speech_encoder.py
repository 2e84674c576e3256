"""Every format decodes to what was encoded, and streams can be joined."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest

from eardrum.errors import InvalidRequestError
from eardrum.runner.speech_encoder import SpeechEncoder
from eardrum.speech import OUTPUT_RATE, SpeechFormat, SpeechRequest

SECONDS = 2.0
DECODERS = {
    SpeechFormat.MP3: "mp3",
    SpeechFormat.OPUS: "ogg",
    SpeechFormat.AAC: "aac",
    SpeechFormat.FLAC: "flac",
    SpeechFormat.WAV: "wav",
}


def create_tone(pitch: float = 440.0, rate: int = OUTPUT_RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(SECONDS * rate)) / rate)).astype(np.float32)


def encode(request: SpeechRequest, audio: np.ndarray, rate: int = OUTPUT_RATE) -> list[bytes]:
    """The bytes of each half second, and those of the end."""
    encoder = SpeechEncoder(request, rate)
    pieces = [encoder.encode(piece) for piece in np.split(audio, 4)]
    pieces.append(encoder.finish())
    assert encoder.duration == pytest.approx(SECONDS)
    return pieces


def decode(data: bytes, format: SpeechFormat, rate: int = OUTPUT_RATE) -> np.ndarray:
    if format is SpeechFormat.PCM:
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768
    with av.open(io.BytesIO(data), format=DECODERS[format]) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return np.concatenate([part.to_ndarray()[0] for part in (*frames, *resampler.resample(None))])


def find_pitch(samples: np.ndarray, rate: int = OUTPUT_RATE) -> float:
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    return float(np.abs(np.fft.rfft(middle)).argmax() * rate / len(middle))


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("format", SpeechFormat)
def test_every_format_has_the_length_and_the_sound(format: SpeechFormat, streamed: bool) -> None:
    samples = decode(b"".join(encode(SpeechRequest(format=format, streamed=streamed), create_tone())), format)
    assert len(samples) / OUTPUT_RATE == pytest.approx(SECONDS, abs=0.1)
    assert find_pitch(samples) == pytest.approx(440, abs=3)
    assert 0.3 < np.sqrt(np.mean(samples**2)) < 0.4


@pytest.mark.parametrize("format", [SpeechFormat.MP3, SpeechFormat.OPUS, SpeechFormat.AAC, SpeechFormat.PCM])
def test_audio_comes_before_the_end(format: SpeechFormat) -> None:
    first, *_ = encode(SpeechRequest(format=format, streamed=False), create_tone())
    assert len(first) > 500


def test_joined_mp3s_are_whole() -> None:
    parts = [b"".join(encode(SpeechRequest(format=SpeechFormat.MP3), create_tone(pitch))) for pitch in (440.0, 880.0)]
    assert not any(b"Xing" in part or b"Info" in part or part.startswith(b"ID3") for part in parts)
    samples = decode(b"".join(parts), SpeechFormat.MP3)
    assert len(samples) / OUTPUT_RATE == pytest.approx(2 * SECONDS, abs=0.2)
    half = len(samples) // 2
    assert [round(find_pitch(part), -1) for part in (samples[:half], samples[half:])] == [440, 880]


def test_a_whole_wav_and_a_streamed_one() -> None:
    *before, whole = encode(SpeechRequest(format=SpeechFormat.WAV, streamed=False), create_tone())
    assert not any(before)
    assert struct.unpack_from("<I", whole, 4)[0] == len(whole) - 8
    assert struct.unpack_from("<I", whole, 40)[0] == len(whole) - 44 == int(SECONDS * OUTPUT_RATE) * 2
    streamed = b"".join(encode(SpeechRequest(format=SpeechFormat.WAV), create_tone()))
    assert struct.unpack_from("<I", streamed, 40)[0] == 0xFFFFFFFF
    assert streamed[44:] == whole[44:]


def test_a_whole_flac_knows_its_length() -> None:
    data = b"".join(encode(SpeechRequest(format=SpeechFormat.FLAC, streamed=False), create_tone()))
    with av.open(io.BytesIO(data)) as container:
        assert container.duration == pytest.approx(SECONDS * 1e6, abs=1)


@pytest.mark.parametrize(("format", "rate"), [(SpeechFormat.PCM, 16_000), (SpeechFormat.WAV, 44_100), (SpeechFormat.MP3, 48_000)])
def test_other_rates(format: SpeechFormat, rate: int) -> None:
    data = b"".join(encode(SpeechRequest(format=format, sample_rate=rate), create_tone(rate=16_000), 16_000))
    samples = decode(data, format, rate)
    assert len(samples) / rate == pytest.approx(SECONDS, abs=0.1)
    assert find_pitch(samples, rate) == pytest.approx(440, abs=3)


def test_a_rate_that_a_codec_lacks_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"opus has the sample rates 8000, .*not 44100") as refused:
        SpeechEncoder(SpeechRequest(format=SpeechFormat.OPUS, sample_rate=44_100), OUTPUT_RATE)
    assert refused.value.param == "sample_rate"


def test_samples_beyond_the_range_are_clipped() -> None:
    encoder = SpeechEncoder(SpeechRequest(), OUTPUT_RATE)
    samples = np.frombuffer(encoder.encode(np.array([2.0, -2.0], np.float32)) + encoder.finish(), "<i2")
    assert samples.tolist() == [32767, -32767]
