"""A window's samples as a small file in memory."""

from __future__ import annotations

import io
import wave
from dataclasses import dataclass
from typing import Literal

import av
import numpy as np

from eardrum.engines.base import Audio
from eardrum.transcription import SAMPLE_RATE

Format = Literal["flac", "wav"]


@dataclass(frozen=True, slots=True)
class Clip:
    """A file of 16-bit mono audio at 16 kHz."""

    format: Format
    data: bytes

    @property
    def name(self) -> str:
        """A file name; some servers go by its ending."""
        return f"window.{self.format}"

    @property
    def media_type(self) -> str:
        """The content type."""
        return f"audio/{self.format}"


def clip(audio: Audio, form: Format) -> Clip:
    """The samples (float32 in -1..1, shape [n]) as a file; what is louder is clipped. FLAC is about half as large as WAV."""
    pcm = (np.clip(audio, -1.0, 1.0) * 32767).round().astype("<i2")
    return Clip(form, _flac(pcm) if form == "flac" else _wav(pcm))


def _wav(pcm: np.ndarray[tuple[int], np.dtype[np.int16]]) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


def _flac(pcm: np.ndarray[tuple[int], np.dtype[np.int16]]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as file:
        stream = file.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return buffer.getvalue()
