"""Checks a recording against its own timestamps and header, and reports missing and damaged parts.

`MediaClock` follows the timestamps: a gap in them is a stretch without audio, and what follows is that much later.
`DamageReport` collects lost packets, gaps and missing ends as sentences for the client. The functions `read_claimed_...` read the
length of a file from its header where FFmpeg does not report it for a stream. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from msgspec import Struct

TOLERANCE_S = 0.1
"""Deviations up to this are ignored: encoder padding, containers that count milliseconds, jitter of recorders."""

MAX_PLAIN_LEAP_S = 1.0
"""A longer leap, or any leap back, counts only if the next frame confirms it: single timestamps may be damaged."""

MAX_LAST_LEAP_S = 60.0
"""Longest leap before the very last frame that counts; no later frame can confirm it."""


class TimedFrame(Protocol):
    """A stretch of decoded samples, as PyAV returns it."""

    @property
    def time(self) -> float | None:
        """The container's timestamp, in seconds."""

    @property
    def samples(self) -> int:
        """Number of samples per channel."""

    @property
    def sample_rate(self) -> int:
        """In Hz."""


FrameT = TypeVar("FrameT", bound=TimedFrame)


class Gap(Struct, frozen=True):
    """A stretch without audio from `start` to `end`, in seconds since the recording began."""

    start: float
    end: float


class MediaClock(Generic[FrameT]):
    """Follows the timestamps of one container.

    When timestamps go back (a restarted recorder, joined files) or leave an implausible gap, the clock continues from the audio's
    position.
    """

    def __init__(self, origin: float | None, believes: Callable[[Gap], bool] = lambda _: True):
        self._origin = origin  # the container's time when the recording begins; None: the first timestamp
        self._is_plausible = believes
        self.position = 0.0
        """Seconds since the recording began, at the end of the last frame."""

    def insert_gaps(self, frames: Iterable[FrameT]) -> Iterator[FrameT | Gap]:
        """Yield the frames in order, with the gaps between them."""
        held: FrameT | None = None  # a frame at a leap that is not confirmed yet
        for frame in frames:
            if held is not None:
                yield from self._resolve_leap(held, frame)
                held = None
            late = self._measure_delay(frame)
            if abs(late) <= TOLERANCE_S:
                yield self._advance(frame)
            elif 0 < late <= MAX_PLAIN_LEAP_S:
                yield from self._apply_leap(frame, late)
            else:
                held = frame
        if held is not None:
            late = self._measure_delay(held)
            yield from self._apply_leap(held, late) if late <= MAX_LAST_LEAP_S else iter((self._advance(held),))

    def _resolve_leap(self, held: FrameT, following: FrameT) -> Iterator[FrameT | Gap]:
        """Decide about a leap: the next frame continues either the timestamps before it or those after it."""
        late = self._measure_delay(held)
        length = held.samples / held.sample_rate
        if following.time is not None:
            assert held.time is not None
            assert self._origin is not None
            off_new = abs(following.time - held.time - length)
            off_old = abs(following.time - self._origin - self.position - length)
            if off_old < off_new:
                yield self._advance(held)
                return
        yield from self._apply_leap(held, late)

    def _apply_leap(self, frame: FrameT, late: float) -> Iterator[FrameT | Gap]:
        assert self._origin is not None
        if late > 0 and self._is_plausible(gap := Gap(self.position, self.position + late)):
            yield gap
            self.position = gap.end
        else:
            self._origin += late
        yield self._advance(frame)

    def _advance(self, frame: FrameT) -> FrameT:
        self.position += frame.samples / frame.sample_rate
        return frame

    def _measure_delay(self, frame: FrameT) -> float:
        """Return the seconds by which the frame's timestamp is ahead of the audio."""
        time = frame.time
        if time is None:
            return 0.0
        if self._origin is None:
            self._origin = time - self.position
        return time - self._origin - self.position


MISSING_TOLERANCE_S = 0.5
"""Many intact files lack up to this much at their end."""

MAX_SENTENCES = 8
"""Most warnings kept: a chain of many files may be damaged in many places."""

LAST_PACKET_S = 0.06
"""Longest audio in the last packet of a file."""

MISSING_TOLERANCE_SHARE = 0.01
"""The same, as a share of the length: some headers hold estimates."""


class DamageReport:
    """Collects the damage found while one recording is decoded. Times are seconds since its start."""

    def __init__(self) -> None:
        self._packets = 0
        self._first = self._last = 0.0  # times of lost packets
        self._in_row = 0  # lost packets at the last of these times
        self._gaps = 0
        self._gap = Gap(0.0, 0.0)  # the first one
        self._missing = 0.0
        self._sentences: list[str] = []
        self._omitted = 0
        self._is_broken = False

    def __bool__(self) -> bool:
        return self._packets > 0 or self._is_broken

    def add_lost_packet(self, at: float) -> None:
        """Record a packet that could not be decoded."""
        self._first = self._first if self._packets else at
        self._in_row = self._in_row + 1 if at == self._last else 1
        self._last = at
        self._packets += 1

    def add_gap(self, gap: Gap) -> None:
        """Record a stretch without audio between two timestamps."""
        self._gap = self._gap if self._gaps else gap
        self._gaps += 1
        self._missing += gap.end - gap.start

    def add_doubtful_leap(self, gap: Gap) -> None:
        """Record an implausible gap, which is ignored."""
        self._add_sentence(
            f"At {gap.start:.1f} s the timestamps jump to {gap.end:,.0f} s. The jump is ignored: later times continue from "
            f"{gap.start:.1f} s."
        )

    def add_unreadable_rest(self, at: float) -> None:
        """Record that the container cannot be read beyond this time."""
        self._is_broken = True
        self._add_sentence(f"The file cannot be read beyond {at:.1f} s: the rest is damaged.")

    def add_lost_pages(self, count: int) -> None:
        """Record missing pages of an Ogg file."""
        self._add_sentence(
            "A page of the file is missing or damaged." if count == 1 else f"{count:,} pages of the file are missing or damaged."
        )

    def add_missing_end(self, at: float) -> None:
        """Record that the end is missing; its length is unknown."""
        self._add_break(f"at {at:.1f} s: its end is missing")

    def check_duration(self, seconds: float, claimed: float) -> None:
        """Compare the decoded length with the header's. If nothing is missing, lost packets at the end held no audio."""
        if self._packets and self._last >= seconds and seconds >= claimed - LAST_PACKET_S:
            self._packets -= self._in_row
        if claimed - seconds > max(MISSING_TOLERANCE_S, MISSING_TOLERANCE_SHARE * claimed):
            self._add_break(f"at {seconds:.1f} s: its header promises {claimed:.1f} s")

    def check_size(self, at: float, size: int, claimed: int) -> None:
        """Record a missing end if fewer bytes arrived than the header promises."""
        if size < claimed - 1:  # many writers forget the padding to an even size
            self._add_break(f"at {at:.1f} s: {size:,} of the {claimed:,} bytes in its header arrived")

    def _add_break(self, where: str) -> None:
        if not self._is_broken:
            self._is_broken = True
            self._add_sentence(f"The file breaks off {where}.")

    def _add_sentence(self, sentence: str) -> None:
        if len(self._sentences) < MAX_SENTENCES:
            self._sentences.append(sentence)
        else:
            self._omitted += 1

    @property
    def warnings(self) -> tuple[str, ...]:
        """The warnings, as sentences."""
        sentences = list(self._sentences)
        if self._omitted:
            sentences.append(f"{self._omitted:,} more warnings like these are left out.")
        if self._gaps:
            more = f", and in {self._gaps - 1:,} more places, {self._missing:.1f} s in all" if self._gaps > 1 else ""
            sentences.insert(
                0, f"There is no audio from {self._gap.start:.1f} to {self._gap.end:.1f} s by the file's timestamps{more}."
            )
        if self._packets:
            packets = "A packet" if self._packets == 1 else f"{self._packets:,} packets, the first"
            sentences.insert(0, f"{packets} at {self._first:.1f} s could not be decoded.")
        return tuple(sentences)


UNKNOWN_SIZE = 0x7F000000
"""Sizes from here on mean an unknown size: writers to a pipe put them there."""

UNKNOWN_SIZE_64 = 1 << 60
"""The same for 64-bit sizes."""

SIDE_INFO_BYTES = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}
"""Bytes between an MP3's frame header and its index: by (MPEG 1, mono)."""

MP3_RATES = (44_100, 48_000, 32_000)


def read_claimed_bytes(head: bytes) -> int | None:
    """Read the size in the header of a RIFF, RF64, Wave64 or AIFF file; None if it has none."""
    match head[:4]:
        case b"RIFF":
            size = int.from_bytes(head[4:8], "little")
        case b"FORM":
            size = int.from_bytes(head[4:8])
        case b"RF64" if head[12:16] == b"ds64":
            size = int.from_bytes(head[20:28], "little")
            return size + 8 if 0 < size < UNKNOWN_SIZE_64 else None
        case b"riff":
            size = int.from_bytes(head[16:24], "little")
            return size if 0 < size < UNKNOWN_SIZE_64 else None
        case _:
            return None
    return size + 8 if 0 < size < UNKNOWN_SIZE else None


def read_claimed_seconds(head: bytes) -> float | None:
    """Read the length of an MP3 from the index that encoders write into the first frame; None for other files."""
    at = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    header = head[at : at + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[2] >> 2 & 3 == 3:
        return None  # not layer III
    first, half = header[1] & 0x18 == 0x18, header[1] & 0x18 == 0
    rate = MP3_RATES[header[2] >> 2 & 3] >> (0 if first else 2 if half else 1)
    at += 4 + SIDE_INFO_BYTES[first, header[3] >> 6 == 3]
    index = head[at : at + 12]
    if len(index) < 12 or index[:4] not in (b"Xing", b"Info") or not index[7] & 1:
        return None
    return int.from_bytes(index[8:]) * (1152 if first else 576) / rate
