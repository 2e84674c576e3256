"""Audio for the benchmarks, made on the fly from the speech that ships with the project."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import av
import numpy as np

from eardrum.transcription import SAMPLE_RATE

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "src" / "eardrum" / "sample.ogg"
PHONE = ROOT / "tests" / "data" / "phone"

PAUSE_S = 0.75
"""Silence between two announcements of a tape."""

WAV_RATE, WAV_CHANNELS, WAV_BYTES = 192_000, 2, 4
"""A WAV file of many bytes and little audio: 1.5 MB per second."""

Samples = np.ndarray[tuple[int], np.dtype[np.float32]]


@cache
def load_speech() -> Samples:
    """18 s of a book read aloud."""
    return decode_file(SAMPLE)


@cache
def load_tape() -> Samples:
    """Just under three minutes of phone announcements with pauses between them."""
    pause = np.zeros(int(PAUSE_S * SAMPLE_RATE), np.float32)
    announcements = [decode_file(path) for path in sorted(PHONE.glob("*.flac"))]
    return cast(Samples, np.concatenate([part for one in announcements for part in (one, pause)]))


@cache
def create_clips(count: int, seconds: float = 5.0) -> list[bytes]:
    """Short clips of the tape as MP3."""
    length = int(seconds * SAMPLE_RATE)
    starts = np.linspace(0, len(load_tape()) - length, count).astype(int)
    return [encode_mp3(load_tape()[start : start + length]) for start in starts]


@cache
def create_30_s_clip() -> bytes:
    """Half a minute of fluent reading as MP3: windows as long as the engine takes them."""
    return _encode_reading(30.0)


@cache
def create_one_window() -> bytes:
    """The same, shorter by what an MP3 adds at its ends, so that Whisper hears it in one window."""
    return _encode_reading(29.5)


def _encode_reading(seconds: float) -> bytes:
    return encode_mp3(cast(Samples, np.concatenate([load_speech(), load_speech()])[: int(seconds * SAMPLE_RATE)]))


@cache
def create_tape_mp3(seconds: float) -> bytes:
    """Announcements for about `seconds`, as a 128 kbit/s stereo MP3."""
    return _repeat_frames(_encode_tape(), len(load_tape()) / SAMPLE_RATE, seconds)


@cache
def create_tape_wav(seconds: float) -> bytes:
    """Announcements for so many seconds, as a 16 kHz mono WAV, which costs next to nothing to decode."""
    samples = np.resize(load_tape(), int(seconds * SAMPLE_RATE))
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setparams((1, 2, SAMPLE_RATE, len(samples), "NONE", ""))
        output.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


@cache
def create_sparse_mp3(seconds: float) -> bytes:
    """Five seconds of speech at the top of every minute, else silence."""
    minute: Samples = np.zeros(60 * SAMPLE_RATE, np.float32)
    minute[: 5 * SAMPLE_RATE] = load_speech()[: 5 * SAMPLE_RATE]
    return _repeat_frames(encode_mp3(minute), 60, seconds)


def decode_file(path: Path) -> Samples:
    """A file's samples at 16 kHz, mono."""
    with av.open(str(path)) as file:
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        frames = [r for frame in file.decode(audio=0) for r in resampler.resample(frame)] + resampler.resample(None)
    return cast(Samples, np.concatenate([frame.to_ndarray()[0] for frame in frames]))


def join_files(paths: Sequence[Path], seconds: float) -> bytes:
    """Files one after another, with a pause behind each, again and again until they fill `seconds`, as MP3."""
    pause = np.zeros(int(PAUSE_S * SAMPLE_RATE), np.float32)
    parts: list[Samples] = []
    missing, paths_again = int(seconds * SAMPLE_RATE), cycle(paths)
    while missing > 0:
        parts += [decode_file(next(paths_again))[:missing], pause]
        missing -= sum(map(len, parts[-2:]))
    return encode_mp3(cast(Samples, np.concatenate(parts)))


def encode_mp3(samples: Samples) -> bytes:
    """The samples as a 44.1 kHz stereo MP3 of 128 kbit/s, without the header that would tell its length."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as output:
        stream = output.add_stream("libmp3lame", rate=44_100, layout="stereo")
        stream.bit_rate = 128_000
        for frame in _resample(samples, "s16p", 44_100):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


class GeneratedWav:
    """A WAV file of a given size that exists only while it is sent: speech, silence, speech, ..."""

    def __init__(self, size: int):
        header = 44
        self.size = header + (size - header) // (WAV_CHANNELS * WAV_BYTES) * WAV_CHANNELS * WAV_BYTES

    def __iter__(self) -> Iterator[bytes]:
        data = self.size - 44
        frame = WAV_CHANNELS * WAV_BYTES
        layout = (1, WAV_CHANNELS, WAV_RATE, WAV_RATE * frame, frame, 8 * WAV_BYTES)
        yield b"RIFF" + struct.pack("<I", data + 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, *layout)
        yield b"data" + struct.pack("<I", data)
        period, sent = _build_wav_period(), 0
        while sent < data:
            at = sent % len(period)
            piece = period[at : at + min(1 << 18, data - sent)]
            sent += len(piece)
            yield piece


@cache
def _build_wav_period() -> bytes:
    """Twenty seconds, five of them speech."""
    samples: Samples = np.zeros(20 * SAMPLE_RATE, np.float32)
    samples[: 5 * SAMPLE_RATE] = load_speech()[: 5 * SAMPLE_RATE]
    frames = _resample(samples, "s32", WAV_RATE)
    return b"".join(frame.to_ndarray().tobytes() for frame in frames)


@cache
def _encode_tape() -> bytes:
    return encode_mp3(load_tape())


def _repeat_frames(piece: bytes, seconds: float, total: float) -> bytes:
    """MP3 frames stand alone, so a long file is a short one many times over: encoding hours would take minutes."""
    return (piece * (int(total / seconds) + 1))[: int(len(piece) * total / seconds)]


def _resample(samples: Samples, format: str, rate: int) -> Sequence[Any]:
    resampler = av.AudioResampler(format, "stereo", rate)
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    return [*resampler.resample(frame), *resampler.resample(None)]
