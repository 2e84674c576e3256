"""Pages to links of a chain, however the bytes come."""

from __future__ import annotations

import struct

import pytest

from eardrum.runner.ogg import FIRST_PAGE, LAST_PAGE, OggChain, compute_checksum


def build_page(body: bytes, flags: int = 0, serial: int = 1) -> bytes:
    lengths = bytes([255] * (len(body) // 255) + [len(body) % 255])
    made = b"OggS" + struct.pack("<BBqIIIB", 0, flags, 0, serial, 0, 0, len(lengths)) + lengths + body
    return made[:22] + struct.pack("<I", compute_checksum(made)) + made[26:]


class PiecewiseBytes:
    """Bytes, so many at a time."""

    def __init__(self, data: bytes, size: int):
        self._data = data
        self._size = size

    def read(self, size: int) -> bytes:
        size = min(size, self._size)
        piece, self._data = self._data[:size], self._data[size:]
        return piece


def split_chain(data: bytes, size: int = 7) -> tuple[list[bytes], OggChain]:
    links, found = OggChain(PiecewiseBytes(data, size)), []
    while True:
        link = b""
        while piece := links.read(100):
            link += piece
        found.append(link)
        assert not links.read(1)
        if not links.advance():
            return found, links


ONE = build_page(b"head", FIRST_PAGE) + build_page(b"OggS" * 200) + build_page(b"end", LAST_PAGE)
PICTURES = (
    build_page(b"head", FIRST_PAGE)
    + build_page(b"pictures", FIRST_PAGE, 2)
    + build_page(b"a")
    + build_page(b"b", LAST_PAGE, 2)
    + build_page(b"c", LAST_PAGE)
)


@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("links", [[ONE], [PICTURES], [ONE, PICTURES, ONE]])
def test_every_link_is_a_stream(links: list[bytes], size: int) -> None:
    found, reader = split_chain(b"".join(links), size)
    assert found == links
    assert not reader.is_cut_off


def test_the_rest_of_a_link_can_be_skipped() -> None:
    links = OggChain(PiecewiseBytes(ONE + PICTURES, 50))
    links.read(10)
    assert links.advance()
    assert links.read(1000) == build_page(b"head", FIRST_PAGE)


@pytest.mark.parametrize("missing", [1, 5, 29, 31, len(build_page(b"end")), 400])
def test_an_end_that_is_missing_is_noticed(missing: int) -> None:
    found, links = split_chain((ONE + ONE)[:-missing])
    assert b"".join(found) == (ONE + ONE)[:-missing]
    assert links.is_cut_off


def test_what_lies_between_pages_is_passed_on() -> None:
    junk = b"Ogg? " * 100
    for data in (junk + ONE, ONE + junk + build_page(b"x"), ONE[:40] + junk + ONE):
        found, _ = split_chain(data)
        assert b"".join(found) == data
