"""Audio for tests: real speech that ships with the project, encoded as clients send it."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "src" / "eardrum" / "sample.ogg"
PHONE = ROOT / "tests" / "data" / "phone"
PROMPTS = ROOT / "tests" / "data" / "prompts"

SPEECH_TEXT = (
    "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for them. "
    "Had he married a more amiable woman, he might have been made still more respectable than he was. "
    "He might even have been made amiable himself."
)
"""What the embedded model hears in `speech()`."""

Samples = np.ndarray[tuple[int], np.dtype[np.float32]]

CODECS = {
    # container: (FFmpeg's name, codec, rate)
    "wav": ("wav", "pcm_s16le", 16_000),
    "flac": ("flac", "flac", 16_000),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "m4a": ("mp4", "aac", 44_100),
    "ogg": ("ogg", "libopus", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "mp4": ("mp4", "aac", 44_100),
    "mkv": ("matroska", "aac", 44_100),
    "aac": ("adts", "aac", 44_100),
    "aiff": ("aiff", "pcm_s16be", 16_000),
    "caf": ("caf", "alac", 44_100),
    "ts": ("mpegts", "mp2", 44_100),
    "mov": ("mov", "aac", 44_100),
}
TRACK_CODECS = {
    "matroska": "pcm_s16le",
    "webm": "libopus",
    "mp4": "aac",
    "mov": "alac",
    "mpegts": "aac",
    "avi": "pcm_s16le",
}
"""Containers with room for several audio tracks."""
VIDEO = {"mp4", "mkv"}
RATE = 16_000


def encode(samples: Samples | None, container: str, *, rate: int | None = None, faststart: bool = False) -> bytes:
    """A file of this container. mp4 and mkv also hold a picture; without samples they hold nothing else.

    `faststart` puts the index of an mp4 or m4a before the media instead of after it.
    """
    muxer, codec, usual = CODECS[container]
    options = {"movflags": "faststart"} if faststart else {}
    # FFmpeg reads the file again to move the index, so it needs one with a name.
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", format=muxer, options=options) as output:
        pictures = output.add_stream("mpeg4", rate=10) if container in VIDEO else None
        sound = output.add_stream(codec, rate=rate or usual) if samples is not None else None
        if sound:
            sound.layout = "mono"
        if pictures:
            pictures.width = pictures.height = 64
            pictures.pix_fmt = "yuv420p"
            for shade in range(0, 250, 25):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")
                output.mux(pictures.encode(frame))
            output.mux(pictures.encode(None))
        if sound and samples is not None:
            _encode_sound(output, sound, samples)
        output.close()
        return Path(file.name).read_bytes()


def _encode_sound(output, sound, samples: Samples) -> None:
    resampler = av.AudioResampler(sound.codec_context.format, "mono", sound.codec_context.sample_rate)
    for start in range(0, len(samples), 1 << 20):
        pcm = (samples[start : start + (1 << 20)] * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for resampled in resampler.resample(frame):
            output.mux(sound.encode(resampled))
    for resampled in resampler.resample(None):
        output.mux(sound.encode(resampled))
    output.mux(sound.encode(None))


def shift_timestamps(data: bytes, muxer: str, move: Callable[[float], float | None], **options: str) -> bytes:
    """The same packets in a container of FFmpeg's name `muxer`, those of sound at other times, or left out where that is None."""
    with (
        av.open(io.BytesIO(data)) as file,
        tempfile.NamedTemporaryFile() as target,
        av.open(target.name, "w", format=muxer, options=options) as output,
    ):
        streams = {stream.index: output.add_stream_from_template(stream) for stream in file.streams}
        first: dict[int, int] = {}
        packets = []
        for packet in file.demux():
            if packet.pts is None:
                continue
            tick = packet.time_base
            first.setdefault(packet.stream.index, packet.pts)
            if packet.stream.type == "audio":
                moved = move(float((packet.pts - first[packet.stream.index]) * tick))
                if moved is None:
                    continue
                packet.pts = packet.dts = first[packet.stream.index] + round(moved / tick)
            packets.append((float(packet.dts * tick), packet))
        for _, packet in sorted(packets, key=lambda timed: timed[0]):
            packet.stream = streams[packet.stream.index]
            output.mux(packet)
        output.close()
        return Path(target.name).read_bytes()


def encode_tracks(*sounds: Samples, container: str = "matroska", marked: Sequence[int] | None = None, aside: int = 0) -> bytes:
    """A file with a track for each, interleaved. `marked` are the default ones, counted from 1; `aside` is for commentators."""
    with tempfile.NamedTemporaryFile() as file, av.open(file.name, "w", format=container) as output:
        streams = [output.add_stream(TRACK_CODECS[container], rate=48_000 if container == "webm" else RATE) for _ in sounds]
        for number, stream in enumerate(streams, 1):
            stream.layout = "mono"
            if marked is not None:
                stream.disposition = Disposition.default if number in marked else Disposition(0)
            if number == aside:
                stream.disposition |= Disposition.comment
        resamplers = [av.AudioResampler(s.codec_context.format, "mono", s.codec_context.sample_rate) for s in streams]
        for start in range(0, max(map(len, sounds)), RATE // 10):
            for sound, stream, resampler in zip(sounds, streams, resamplers, strict=True):
                piece = (sound[start : start + RATE // 10] * 32767).astype(np.int16)
                if not len(piece):
                    continue
                frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
                frame.sample_rate = RATE
                for resampled in resampler.resample(frame):
                    output.mux(stream.encode(resampled))
        for stream, resampler in zip(streams, resamplers, strict=True):
            for resampled in resampler.resample(None):
                output.mux(stream.encode(resampled))
            output.mux(stream.encode(None))
        output.close()
        return Path(file.name).read_bytes()


def create_silence(seconds: float) -> Samples:
    """Digital silence."""
    return np.zeros(int(seconds * RATE), np.float32)


def create_tone(seconds: float, hertz: float = 440.0) -> Samples:
    """A sine at half of full scale."""
    return np.asarray(0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE), np.float32)


def create_noise(seconds: float, level: float = 0.01) -> Samples:
    """White noise, the same every time."""
    return np.asarray(np.random.default_rng(7).normal(0, level, int(seconds * RATE)), np.float32)


def encode_pcm(samples: Samples) -> bytes:
    """Headerless s16le."""
    return (samples * 32767).astype("<i2").tobytes()


def decode_file(path: Path) -> Samples:
    """A file's samples at 16 kHz mono."""
    with av.open(str(path)) as file:
        resampler = av.AudioResampler("flt", "mono", 16_000)
        frames = [r for frame in file.decode(audio=0) for r in resampler.resample(frame)] + resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def resample(samples: Samples, rate: int) -> Samples:
    """The samples at another rate."""
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = 16_000
    resampler = av.AudioResampler("flt", "mono", rate)
    return np.concatenate([f.to_ndarray()[0] for f in [*resampler.resample(frame), *resampler.resample(None)]])


def encode_g711(samples: Samples, codec: str) -> bytes:
    """The samples as FFmpeg encodes them for a telephone."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, av.AudioCodecContext)
    context.sample_rate, context.format, context.layout = 16_000, "s16", "mono"
    context.time_base = Fraction(1, 16_000)
    frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
    frame.sample_rate = 16_000
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


@cache
def load_speech() -> Samples:
    """18 s of clear English."""
    return decode_file(SAMPLE)


@cache
def load_announcements() -> list[tuple[str, Samples, str]]:
    """Phone announcements: name, samples, what is said."""
    with (PHONE / "references.tsv").open(encoding="utf-8") as table:
        return [(r["name"], decode_file(PHONE / f"{r['name']}.flac"), r["text"]) for r in csv.DictReader(table, delimiter="\t")]


@cache
def load_prompts(language: str) -> list[Samples]:
    """Phone prompts in German, French or Spanish (`de`, `fr`, `es`), in the order of their names."""
    return [decode_file(path) for path in sorted(PROMPTS.glob(f"{language}-*.ogg"))]


@cache
def encode_speech(container: str) -> bytes:
    """`speech()` as a file."""
    return encode(load_speech(), container)


@cache
def encode_announcements(seconds: int) -> bytes:
    """Phone announcements one after another for so long, as FLAC, which takes the least time to encode."""
    pieces = [piece for _, samples, _ in load_announcements() for piece in (samples, create_silence(0.5))]
    once = np.concatenate(pieces)
    return encode(np.resize(once, seconds * RATE), "flac")
