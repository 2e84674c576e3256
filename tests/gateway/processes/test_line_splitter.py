"""What processes print becomes lines, whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.gateway.processes.child import MAX_LINE_LENGTH, LineSplitter


def split_lines(*pieces: bytes) -> list[str]:
    lines = LineSplitter()
    return [line for piece in pieces for line in lines.feed(piece)] + lines.flush()


@pytest.mark.parametrize(
    ("printed", "lines"),
    [
        (b"", []),
        (b"one\ntwo", ["one", "two"]),
        (b"dos\r\nline\r\n", ["dos", "line"]),
        (b"\n\n", ["", ""]),
        (b" 10%\r 50%\r100%\ndone\n", ["100%", "done"]),
        (b" 10%\r 50%\r", [" 50%"]),
        ("h\u00e9\u20ac".encode(), ["h\u00e9\u20ac"]),
        (b"\xff\xfe\n", ["\ufffd\ufffd"]),
        (b"in  the  middle   \n", ["in  the  middle"]),
        (b"a\rb   c\n", ["b   c"]),
    ],
)
def test_lines(printed: bytes, lines: list[str]) -> None:
    assert split_lines(printed) == lines
    assert split_lines(*(bytes([byte]) for byte in printed)) == lines, "however it is cut"


@given(st.lists(st.binary()))
def test_where_it_is_cut_makes_no_difference(pieces: list[bytes]) -> None:
    assert split_lines(*pieces) == split_lines(b"".join(pieces))


def test_a_line_that_does_not_end_does_not_grow() -> None:
    lines = LineSplitter()
    for _ in range(100):
        assert all(len(line) == MAX_LINE_LENGTH for line in lines.feed(b"x" * 1000))
    assert len("".join(lines.flush())) <= MAX_LINE_LENGTH
    for _ in range(100):
        assert lines.feed(b" 42%\r" * 1000) == []
    assert lines.flush() == [" 42%"]
