"""How long a file is by its own header, where FFmpeg does not tell it of a stream."""

from __future__ import annotations

ENDLESS = 0x7F000000
"""Sizes from here on are what writes to a pipe puts there, for want of knowing."""

LARGEST = 1 << 60
"""As above, where sizes have 64 bits."""

SIDE = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}
"""Bytes between an MP3's frame header and its index: by (MPEG 1, mono)."""

RATES = (44_100, 48_000, 32_000)


def claimed_bytes(head: bytes) -> int | None:
    """The size of a RIFF, RF64, Wave64 or AIFF file as it says; None if it does not."""
    match head[:4]:
        case b"RIFF":
            size = int.from_bytes(head[4:8], "little")
        case b"FORM":
            size = int.from_bytes(head[4:8])
        case b"RF64" if head[12:16] == b"ds64":
            size = int.from_bytes(head[20:28], "little")
            return size + 8 if 0 < size < LARGEST else None
        case b"riff":
            size = int.from_bytes(head[16:24], "little")
            return size if 0 < size < LARGEST else None
        case _:
            return None
    return size + 8 if 0 < size < ENDLESS else None


def claimed_seconds(head: bytes) -> float | None:
    """The length of an MP3 with an index, as encoders write it into the first frame; None for all others."""
    at = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    header = head[at : at + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[2] >> 2 & 3 == 3:
        return None  # not layer III
    first, half = header[1] & 0x18 == 0x18, header[1] & 0x18 == 0
    rate = RATES[header[2] >> 2 & 3] >> (0 if first else 2 if half else 1)
    at += 4 + SIDE[first, header[3] >> 6 == 3]
    if head[at : at + 4] not in (b"Xing", b"Info") or not head[at + 7] & 1:
        return None
    return int.from_bytes(head[at + 8 : at + 12]) * (1152 if first else 576) / rate
