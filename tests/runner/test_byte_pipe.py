"""The bounded pipe between the event loop and a decoding thread."""

from __future__ import annotations

import asyncio

import pytest

from eardrum.runner.byte_pipe import MAX_BUFFERED_BYTES, BytePipe, PipeCancelledError


async def wait_shortly(awaitable: asyncio.Future[object] | asyncio.Task[object]) -> object:
    return await asyncio.wait_for(awaitable, 60)


async def is_blocked(task: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0.05)
    return not task.done()


async def test_bytes_come_out_as_they_went_in() -> None:
    inlet = BytePipe()
    for chunk in (b"ab", b"cdefg", b"h"):
        await inlet.feed(chunk)
    inlet.finish()
    assert [inlet.read(3) for _ in range(6)] == [b"ab", b"cde", b"fg", b"h", b"", b""]


async def test_an_empty_chunk_is_not_the_end() -> None:
    inlet = BytePipe()
    for chunk in (b"ab", b"", b"cd"):
        await inlet.feed(chunk)
    inlet.finish()
    assert [inlet.read(9) for _ in range(3)] == [b"ab", b"cd", b""]


async def test_the_sender_waits_while_the_reader_is_behind() -> None:
    inlet = BytePipe()
    await asyncio.wait_for(inlet.feed(b"x" * (MAX_BUFFERED_BYTES - 1)), 60)
    feeding = asyncio.create_task(inlet.feed(b"yz"))
    assert await is_blocked(feeding)
    assert await asyncio.to_thread(inlet.read, 1) == b"x"
    assert await is_blocked(feeding), "room for a byte is not room"
    await asyncio.to_thread(inlet.read, 1)
    await wait_shortly(feeding)


async def test_a_fast_sender_never_gets_far_ahead_of_a_slow_reader() -> None:
    inlet, chunk, total = BytePipe(), b"x" * (MAX_BUFFERED_BYTES // 4), 40
    fed = taken = 0

    async def send() -> None:
        nonlocal fed
        for _ in range(total):
            await inlet.feed(chunk)
            fed += len(chunk)
        inlet.finish()

    sending = asyncio.create_task(send())
    most = 0
    while data := await asyncio.to_thread(inlet.read, 100_000):
        most = max(most, fed - taken)
        taken += len(data)
    await wait_shortly(sending)
    assert taken == fed == total * len(chunk)
    assert most <= MAX_BUFFERED_BYTES + 2 * len(chunk)


async def test_a_reader_waits_for_bytes_and_for_the_end() -> None:
    inlet = BytePipe()
    reading = asyncio.create_task(asyncio.to_thread(inlet.read, 10))
    assert await is_blocked(reading)
    await inlet.feed(b"abc")
    assert await wait_shortly(reading) == b"abc"
    reading = asyncio.create_task(asyncio.to_thread(inlet.read, 10))
    assert await is_blocked(reading)
    inlet.finish()
    assert await wait_shortly(reading) == b""


async def test_cancelling_wakes_the_sender_and_the_reader() -> None:
    full = BytePipe()
    feeding = asyncio.create_task(full.feed(b"x" * MAX_BUFFERED_BYTES))
    assert await is_blocked(feeding)
    full.cancel()
    await wait_shortly(feeding)
    await asyncio.wait_for(full.feed(b"more" * MAX_BUFFERED_BYTES), 60)
    with pytest.raises(PipeCancelledError):
        full.read(1)

    empty = BytePipe()
    reading = asyncio.create_task(asyncio.to_thread(empty.read, 10))
    assert await is_blocked(reading)
    empty.cancel()
    with pytest.raises(PipeCancelledError):
        await wait_shortly(reading)


async def test_cancelling_forgets_the_bytes() -> None:
    inlet = BytePipe()
    await inlet.feed(b"x" * 1000)
    inlet.cancel()
    inlet.finish()
    with pytest.raises(PipeCancelledError):
        inlet.read(1)


async def test_peeking_takes_nothing() -> None:
    inlet = BytePipe()
    for chunk in (b"abc", b"def", b"ghi"):
        await inlet.feed(chunk)
    inlet.finish()
    assert inlet.peek(5) == b"abcde"
    assert inlet.peek(2) == b"ab"
    rest = b""
    while data := inlet.read(4):
        rest += data
    assert rest == b"abcdefghi"


async def test_what_was_peeked_at_still_counts_as_held() -> None:
    inlet = BytePipe()
    await inlet.feed(b"x" * (MAX_BUFFERED_BYTES - 1))
    assert len(inlet.peek(MAX_BUFFERED_BYTES - 1)) == MAX_BUFFERED_BYTES - 1
    feeding = asyncio.create_task(inlet.feed(b"y"))
    assert await is_blocked(feeding)
    inlet.cancel()
    await wait_shortly(feeding)


async def test_peeking_waits_for_all_it_wants_or_the_end() -> None:
    inlet = BytePipe()
    peeking = asyncio.create_task(asyncio.to_thread(inlet.peek, 5))
    await inlet.feed(b"abc")
    assert await is_blocked(peeking)
    inlet.finish()
    assert await wait_shortly(peeking) == b"abc"
    assert BytePipe.from_bytes(b"").peek(5) == b""
