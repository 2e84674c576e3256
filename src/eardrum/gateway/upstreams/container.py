"""What kind of file audio is, by its first bytes, and how long, if they say. Names and content types are not to be trusted."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from eardrum.types import SAMPLE_RATE

HEAD_BYTES = 64 << 10
"""So much of a file is looked at."""

UNKNOWN_SIZES = (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000)
"""What stands in the header of a WAV that was written without going back."""


@dataclass(frozen=True, slots=True)
class Container:
    """A file's kind. Servers go by the ending of its name, or by its content type, or by neither."""

    ending: str
    media_type: str
    seconds: float = 0.0
    """0 if its head does not tell."""

    @property
    def name(self) -> str:
        """A file name."""
        return f"audio.{self.ending}" if self.ending else "audio"


SIGNATURES = (
    (8, b"WAVE", "wav", "audio/wav"),
    (0, b"fLaC", "flac", "audio/flac"),
    (0, b"OggS", "ogg", "audio/ogg"),
    (0, b"ID3", "mp3", "audio/mpeg"),
    (4, b"ftypM4A", "m4a", "audio/mp4"),
    (4, b"ftyp", "mp4", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "webm", "audio/webm"),
    *((0, bytes((0xFF, second)), "aac", "audio/aac") for second in (0xF0, 0xF1, 0xF8, 0xF9)),
    *((0, bytes((0xFF, second)), "mp3", "audio/mpeg") for second in range(0xE0, 0x100)),
)
"""Where in a file which bytes tell its kind; the first that fits counts."""


def container(head: bytes) -> Container:
    """The kind of file that begins so."""
    for at, mark, ending, media_type in SIGNATURES:
        if head.startswith(mark, at):
            tell = {"wav": _wav_seconds, "flac": _flac_seconds}.get(ending)
            return Container(ending, media_type, tell(head) if tell else 0.0)
    return Container("", "application/octet-stream")


def wav_header(data_bytes: int) -> bytes:
    """What precedes so many bytes of s16le mono at 16 kHz in a WAV file."""
    rate = SAMPLE_RATE
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate, 2 * rate, 2, 16)
    riff = struct.pack("<4sI4s", b"RIFF", min(36 + data_bytes, 0xFFFFFFFF), b"WAVE")
    return riff + form + struct.pack("<4sI", b"data", min(data_bytes, 0xFFFFFFFF))


def _wav_seconds(head: bytes) -> float:
    at, byte_rate = 12, 0
    while at + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"fmt " and at + 20 <= len(head):
            (byte_rate,) = struct.unpack_from("<I", head, at + 16)
        if name == b"data":
            return size / byte_rate if byte_rate and size not in UNKNOWN_SIZES else 0.0
        at += 8 + size + size % 2
    return 0.0


def _flac_seconds(head: bytes) -> float:
    if len(head) < 26:
        return 0.0
    packed = int.from_bytes(head[18:26], "big")  # 20 bits of rate, 3 of channels, 5 of depth, 36 of samples
    rate, samples = packed >> 44, packed & ((1 << 36) - 1)
    return samples / rate if rate else 0.0
