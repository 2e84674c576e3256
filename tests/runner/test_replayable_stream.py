"""Bytes that are read twice."""

from __future__ import annotations

import io

import pytest

from eardrum.runner.byte_pipe import ReplayableStream


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_what_was_read_is_there_again_with_the_rest(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    stream = ReplayableStream(io.BytesIO(data))
    assert stream.read(7) == data[:7]
    assert stream.read_head(3) == data[:3]
    assert stream.read(3) == data[7:10]
    file = stream.to_file()
    assert file.read() == data
    file.seek(5)
    assert file.read(2) == data[5:7]
    assert stream.size == len(data)
    assert stream.is_at_end
    stream.close()


def test_what_is_not_wanted_again_is_forgotten() -> None:
    stream = ReplayableStream(io.BytesIO(b"abcdef"))
    stream.read(2)
    stream.discard()
    assert stream.read_head(2) == b""
    stream.drain(4)
    assert stream.size == 6
    stream.close()
