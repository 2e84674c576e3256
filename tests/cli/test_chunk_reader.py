"""What is piped in, as it comes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from eardrum.cli.chunk_reader import CHUNK_BYTES, MAX_QUEUED, ChunkReader


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Ends to read and to write; a test closes the second."""
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)


async def test_pieces_come_as_they_are_written_until_the_end(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    pieces = ChunkReader(reading)
    os.write(writing, b"one")
    assert await anext(pieces) == b"one"
    os.write(writing, b"two")
    assert await anext(pieces) == b"two"
    os.close(writing)
    assert [piece async for piece in pieces] == []


async def test_who_stops_does_not_wait_for_more(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    pieces = ChunkReader(reading)
    asyncio.get_running_loop().call_later(0.05, pieces.stop)
    assert [piece async for piece in pieces] == []
    os.close(writing)  # which ends the thread


async def test_no_more_is_read_than_is_taken(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    os.set_blocking(writing, False)
    pieces = ChunkReader(reading)
    written = 0
    for _ in range(400):
        try:
            written += os.write(writing, bytes(CHUNK_BYTES))
        except BlockingIOError:
            await asyncio.sleep(0.002)
    assert written < (MAX_QUEUED + 8) * CHUNK_BYTES
    os.close(writing)
    assert sum([len(piece) async for piece in pieces]) == written


async def test_what_cannot_be_read_has_no_more(pipe: tuple[int, int]) -> None:
    assert [piece async for piece in ChunkReader(pipe[1])] == []
    os.close(pipe[1])
