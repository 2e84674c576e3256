"""Reads chained Ogg: files one behind the other, as radio stations and recorders write them.

FFmpeg's demuxer gives up, or decodes garbage, where the next file has another rate, codec or number of channels. So each link is
given to it as a separate stream. Where pages are missing, the time of what follows is known from the next page, which FFmpeg
does not believe if it is the last one: it is then no longer marked as the last. The pages of Ogg are those of RFC 3533.
"""

from __future__ import annotations

import zlib

from eardrum.runner.byte_pipe import ByteSource

CAPTURE_PATTERN = b"OggS"
PAGE_HEADER_BYTES = 27
"""Bytes of a page before the lengths of its segments."""
CHUNK_BYTES = 1 << 16
FIRST_PAGE, LAST_PAGE = 2, 4
"""Flags of the pages that begin and end a logical stream."""
MIN_JOIN_GAP = 60
"""Pages missing behind the headers that are no loss: whoever tunes in to a station gets these, and then what is on."""
REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order."""


class OggChain:
    """Reads one link of the chain after the other: `read` ends where the next begins, and `advance` continues there."""

    def __init__(self, source: ByteSource):
        self._source = source
        self._buffer = bytearray()
        self._ready = b""
        self._next = b""  # the page with which the next link begins
        self._has_begun = False  # a page of this link that is no first one has passed
        self._ended = False
        self._complete = False
        self._last_pages: dict[bytes, int] = {}  # the last page of each logical stream, by serial number
        self._header_streams = set[bytes]()  # those of which nothing but headers has come
        self.lost_pages = 0
        """Pages that are missing, or damaged, before one that is whole."""
        self.skipped_bytes = 0
        """Bytes between pages, which belong to nothing."""

    @property
    def is_cut_off(self) -> bool:
        """Whether the last page that came is not whole, or not marked as the last."""
        return not self._complete

    def read(self, size: int) -> bytes:
        """The next bytes of this link, b"" at its end."""
        if not self._ready and not self._next:
            self._ready = self._read_page()
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def advance(self) -> bool:
        """Skip the rest of this link and begin with the next one; False if there is none."""
        while self.read(CHUNK_BYTES):
            pass
        self._ready, self._next, self._has_begun = self._next, b"", False
        return bool(self._ready)

    def _read_page(self) -> bytes:
        """The next page of this link, or what lies before it; b"" at the end."""
        if not self._has_bytes(PAGE_HEADER_BYTES):
            return self._take_rest()
        if not self._buffer.startswith(CAPTURE_PATTERN):
            return self._take_junk()
        segments = self._buffer[26]
        if not self._has_bytes(PAGE_HEADER_BYTES + segments) or not self._has_bytes(
            size := PAGE_HEADER_BYTES + segments + sum(self._buffer[PAGE_HEADER_BYTES : PAGE_HEADER_BYTES + segments])
        ):
            return self._take_rest()
        whole = int.from_bytes(self._buffer[22:26], "little") == compute_checksum(self._buffer[:size])
        if not whole and (at := self._buffer.find(CAPTURE_PATTERN, PAGE_HEADER_BYTES, size)) > 0:
            size = at  # its length is unreliable, too
        page = self._take(size)
        first, last = bool(page[5] & FIRST_PAGE), bool(page[5] & LAST_PAGE)
        self._complete = whole and last
        if whole and self._count_missing(page) and last:
            page = _clear_last_flag(page)
        if first and self._has_begun:
            self._next = page
            return b""
        self._has_begun = self._has_begun or not first
        return page

    def _count_missing(self, page: bytes) -> int:
        """How many pages of its logical stream are missing before this one."""
        serial, number = page[14:18], int.from_bytes(page[18:22], "little")
        heading = serial in self._header_streams
        if page[5] & FIRST_PAGE:
            self._header_streams.add(serial)
        elif int.from_bytes(page[6:14], "little", signed=True) > 0:
            self._header_streams.discard(serial)
        missing = 0 if page[5] & FIRST_PAGE else max(number - self._last_pages.get(serial, number) - 1, 0)
        self._last_pages[serial] = number
        if page[5] & LAST_PAGE:
            del self._last_pages[serial]
        if heading and missing > MIN_JOIN_GAP:
            return 0
        self.lost_pages += missing
        return missing

    def _take_rest(self) -> bytes:
        if self._buffer:
            self._complete = False
        return self._take(len(self._buffer))

    def _take_junk(self) -> bytes:
        at = self._buffer.find(CAPTURE_PATTERN)
        junk = self._take(at if at > 0 else len(self._buffer) - len(CAPTURE_PATTERN) + 1)
        self.skipped_bytes += len(junk)
        return junk

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _has_bytes(self, size: int) -> bool:
        while len(self._buffer) < size and not self._ended:
            chunk = self._source.read(CHUNK_BYTES)
            self._ended = not chunk
            self._buffer += chunk
        return len(self._buffer) >= size


def compute_checksum(page: bytes | bytearray) -> int:
    """The checksum that a page should have: zlib's, but for the order of the bits, the beginning and the end."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(REVERSED_BITS)
    found = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(found.to_bytes(4, "little").translate(REVERSED_BITS), "big")


def _clear_last_flag(page: bytes) -> bytes:
    """The page, no longer marked as the last one."""
    page = page[:5] + bytes([page[5] & ~LAST_PAGE]) + page[6:]
    return page[:22] + compute_checksum(page).to_bytes(4, "little") + page[26:]
