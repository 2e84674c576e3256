"""Chained Ogg: files one behind the other, as radio stations and recorders in parts write them.

FFmpeg's demuxer gives up, or decodes garbage, where the next one has another rate, codec or number of channels. So each is
handed to it as a stream of its own. Where pages are missing, the time of what follows is known from the next page, which FFmpeg
does not believe if it is the last one: so that is not marked as such then. The pages of Ogg are those of RFC 3533.
"""

from __future__ import annotations

import zlib

from eardrum.runner.kept import Readable

CAPTURE = b"OggS"
HEAD = 27
"""Bytes of a page before the lengths of its segments."""
CHUNK = 1 << 16
FIRST, LAST = 2, 4
"""Flags of the pages that begin and end a logical stream."""
JOINED = 60
"""Pages missing behind the headers that are no loss: whoever tunes in to a station gets these, and then what is on."""
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits in the other order."""


class OggLinks:
    """Reads one link of the chain after the other: `read` comes to an end where the next begins, and `advance` goes on there."""

    def __init__(self, source: Readable):
        self._source = source
        self._held = bytearray()
        self._ready = b""
        self._next = b""  # the page with which the next link begins
        self._begun = False  # a page of this link that is no first one has passed
        self._ended = False
        self._complete = False
        self._numbers: dict[bytes, int] = {}  # the last page of each logical stream, by serial number
        self._heading = set[bytes]()  # those of which nothing but headers has come
        self.lost = 0
        """Pages that are missing, or damaged, before one that is whole."""
        self.skipped = 0
        """Bytes between pages, which belong to nothing."""

    @property
    def cut_off(self) -> bool:
        """Whether the last page that came is not whole, or not marked as the last."""
        return not self._complete

    def read(self, size: int) -> bytes:
        """The next bytes of this link, b"" at its end."""
        if not self._ready and not self._next:
            self._ready = self._page()
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def advance(self) -> bool:
        """Skip the rest of this link and begin with the next one; False if there is none."""
        while self.read(CHUNK):
            pass
        self._ready, self._next, self._begun = self._next, b"", False
        return bool(self._ready)

    def _page(self) -> bytes:
        """The next page of this link, or what lies before it; b"" at the end."""
        if not self._holds(HEAD):
            return self._rest()
        if not self._held.startswith(CAPTURE):
            return self._junk()
        segments = self._held[26]
        if not self._holds(HEAD + segments) or not self._holds(size := HEAD + segments + sum(self._held[HEAD : HEAD + segments])):
            return self._rest()
        whole = int.from_bytes(self._held[22:26], "little") == checksum(self._held[:size])
        if not whole and (at := self._held.find(CAPTURE, HEAD, size)) > 0:
            size = at  # its length is not to be believed either
        page = self._take(size)
        first, last = bool(page[5] & FIRST), bool(page[5] & LAST)
        self._complete = whole and last
        if whole and self._missing_before(page) and last:
            page = _continuing(page)
        if first and self._begun:
            self._next = page
            return b""
        self._begun = self._begun or not first
        return page

    def _missing_before(self, page: bytes) -> int:
        """How many pages of its logical stream are missing before this one."""
        serial, number = page[14:18], int.from_bytes(page[18:22], "little")
        heading = serial in self._heading
        if page[5] & FIRST:
            self._heading.add(serial)
        elif int.from_bytes(page[6:14], "little", signed=True) > 0:
            self._heading.discard(serial)
        missing = 0 if page[5] & FIRST else max(number - self._numbers.get(serial, number) - 1, 0)
        self._numbers[serial] = number
        if page[5] & LAST:
            del self._numbers[serial]
        if heading and missing > JOINED:
            return 0
        self.lost += missing
        return missing

    def _rest(self) -> bytes:
        if self._held:
            self._complete = False
        return self._take(len(self._held))

    def _junk(self) -> bytes:
        at = self._held.find(CAPTURE)
        junk = self._take(at if at > 0 else len(self._held) - len(CAPTURE) + 1)
        self.skipped += len(junk)
        return junk

    def _take(self, size: int) -> bytes:
        data = bytes(self._held[:size])
        del self._held[:size]
        return data

    def _holds(self, size: int) -> bool:
        while len(self._held) < size and not self._ended:
            chunk = self._source.read(CHUNK)
            self._ended = not chunk
            self._held += chunk
        return len(self._held) >= size


def checksum(page: bytes | bytearray) -> int:
    """The checksum that a page should have: zlib's, but for the order of the bits, the beginning and the end."""
    mirrored = (page[:22] + bytes(4) + page[26:]).translate(MIRRORED)
    found = zlib.crc32(mirrored, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(found.to_bytes(4, "little").translate(MIRRORED), "big")


def _continuing(page: bytes) -> bytes:
    """The page, no longer marked as the last one."""
    page = page[:5] + bytes([page[5] & ~LAST]) + page[6:]
    return page[:22] + checksum(page).to_bytes(4, "little") + page[26:]
