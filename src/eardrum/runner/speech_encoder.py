"""Encodes synthesized speech as MP3, Opus, AAC, FLAC, WAV or PCM, piece by piece, with FFmpeg's libraries from PyAV.

Streams are made so that clients can join them: an MP3 has neither a tag nor a frame with its length, which would be wrong for two
files one behind the other.
"""

from __future__ import annotations

import io
from typing import Any, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

from eardrum.engines.base import Audio
from eardrum.errors import InvalidRequestError
from eardrum.speech import SpeechFormat, SpeechRequest
from eardrum.wav import WAV_HEADER, build_wav_header

CONTAINERS: dict[SpeechFormat, tuple[str, str, int, dict[str, str]]] = {
    SpeechFormat.MP3: ("mp3", "libmp3lame", 64_000, {"write_xing": "0", "id3v2_version": "0"}),
    SpeechFormat.OPUS: ("ogg", "libopus", 32_000, {"page_duration": "200000"}),  # pages of 0.2 s can be played soon
    SpeechFormat.AAC: ("adts", "aac", 64_000, {}),
    SpeechFormat.FLAC: ("flac", "flac", 0, {}),
}
"""FFmpeg's names of container and codec, bits per second (0: the codec has no choice), and options of the container."""

CODEC_RATES = {
    SpeechFormat.MP3: (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    SpeechFormat.OPUS: (8_000, 12_000, 16_000, 24_000, 48_000),
    SpeechFormat.AAC: (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
}
"""Sample rates in Hz that a codec has."""


class SpeechEncoder:
    """Encodes one response. `encode` and `finish` return the bytes that are ready; `rate` is that of the samples, in Hz."""

    def __init__(self, request: SpeechRequest, rate: int):
        check_sample_rate(request)
        self._request = request
        self._rate = rate
        self._sink = io.BytesIO() if request.is_whole else StreamSink()
        self.samples = 0
        """Samples that were encoded, at `rate`."""
        self._format: PcmFormat | ContainerFormat
        if request.format in (SpeechFormat.PCM, SpeechFormat.WAV):
            self._format = PcmFormat(request, self._sink)
        else:
            self._format = ContainerFormat(request, self._sink)

    @property
    def duration(self) -> float:
        """Seconds of audio that were encoded."""
        return self.samples / self._rate

    def encode(self, audio: Audio) -> bytes:
        """Encode samples and return the bytes that are ready: none before the end of a format that comes as a whole."""
        self.samples += len(audio)
        samples = (np.clip(audio, -1.0, 1.0) * 32767.0).astype(np.int16)
        frame = AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = self._rate
        self._format.add_frame(frame)
        return self._sink.take() if isinstance(self._sink, StreamSink) else b""

    def finish(self) -> bytes:
        """Return the rest, after the last samples."""
        self._format.finish()
        return self._sink.take() if isinstance(self._sink, StreamSink) else self._sink.getvalue()


class StreamSink:
    """A file without positions: bytes are written to its end and taken from its beginning."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        """Add bytes."""
        self._data += data
        return len(data)

    def take(self) -> bytes:
        """Remove and return all bytes."""
        taken = bytes(self._data)
        self._data.clear()
        return taken


class PcmFormat:
    """Samples of 16 bits, with the header of a WAV if that is the format."""

    def __init__(self, request: SpeechRequest, sink: io.BytesIO | StreamSink):
        self._sink = sink
        self._rate = request.sample_rate
        self._has_header = request.format is SpeechFormat.WAV
        self._is_whole = request.is_whole
        self._resampler = AudioResampler(format="s16", layout="mono", rate=request.sample_rate)
        if self._has_header:
            sink.write(build_wav_header(None, self._rate))

    def add_frame(self, frame: AudioFrame) -> None:
        """Write samples."""
        self._write(self._resampler.resample(frame))

    def finish(self) -> None:
        """Write the rest, and the true length of a whole WAV."""
        self._write(self._resampler.resample(None))
        if self._has_header and isinstance(self._sink, io.BytesIO):
            size = self._sink.tell() - WAV_HEADER.size
            self._sink.seek(0)
            self._sink.write(build_wav_header(size, self._rate))

    def _write(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            self._sink.write(frame.to_ndarray().astype("<i2", copy=False).tobytes())


class ContainerFormat:
    """A codec in a container of FFmpeg's."""

    def __init__(self, request: SpeechRequest, sink: io.BytesIO | StreamSink):
        container, codec, bits, options = CONTAINERS[request.format]
        self._container = av.open(cast(Any, sink), "w", format=container, options=options)
        self._stream = cast(AudioStream, self._container.add_stream(codec, rate=request.sample_rate))
        self._stream.layout = "mono"
        if bits:
            self._stream.bit_rate = bits
        self._at = 0

    def add_frame(self, frame: AudioFrame) -> None:
        """Encode samples."""
        frame.pts = None
        self._write(frame)

    def finish(self) -> None:
        """Encode the rest and close the container."""
        self._write(None)
        self._container.close()

    def _write(self, frame: AudioFrame | None) -> None:
        self._container.mux(self._stream.encode(frame))


def check_sample_rate(request: SpeechRequest) -> None:
    """Check that the format can have the requested sample rate.

    Raises:
        InvalidRequestError: it cannot; the message lists the rates.
    """
    rates = CODEC_RATES.get(request.format)
    if rates and request.sample_rate not in rates:
        listed = ", ".join(map(str, rates))
        raise InvalidRequestError(
            f"{request.format} has the sample rates {listed}, not {request.sample_rate}.", param="sample_rate"
        )
