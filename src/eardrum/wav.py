"""Headers of WAV files."""

from __future__ import annotations

import struct

WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
"""The header of a WAV file, up to its samples."""

MAX_WAV_SIZE = 0xFFFFFFFF
"""The largest size that a header can hold. It also stands for the unknown size of a stream."""

PCM_CODE, FLOAT_CODE, ALAW_CODE, MULAW_CODE = 1, 3, 6, 7
"""The codes of the formats of samples."""


def build_wav_header(
    data_bytes: int | None, rate: int, channels: int = 1, *, code: int = PCM_CODE, sample_bytes: int = 2
) -> bytes:
    """Build the header of a WAV file.

    Args:
        data_bytes: bytes of all samples; None for a stream whose length is not known. A size that does not fit becomes the
            largest one.
        rate: samples per second and channel.
        channels: the number of channels.
        code: the format of samples.
        sample_bytes: bytes of one sample.
    """
    frame = sample_bytes * channels
    size = MAX_WAV_SIZE if data_bytes is None else data_bytes
    form = (b"fmt ", 16, code, channels, rate, rate * frame, frame, 8 * sample_bytes)
    file_bytes = min(WAV_HEADER.size - 8 + size, MAX_WAV_SIZE)
    return WAV_HEADER.pack(b"RIFF", file_bytes, b"WAVE", *form, b"data", min(size, MAX_WAV_SIZE))
