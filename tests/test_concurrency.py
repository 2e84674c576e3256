"""Tasks side by side: the first one ends the others, and none is left behind. The channel: in order, bounded, and closed."""

from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from eardrum.concurrency import Channel, cancel_and_wait, run_alongside, run_in_background, run_until_first
from tests.conftest import run_ready_tasks


class Work:
    """A coroutine that takes a while to clean up when it is cancelled."""

    def __init__(self) -> None:
        self.cleaned_up = False

    async def run(self) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.01)
            self.cleaned_up = True


async def fail(message: str = "failed") -> None:
    raise RuntimeError(message)


async def test_the_first_that_ends_ends_the_others() -> None:
    work = Work()
    await run_until_first(work.run(), asyncio.sleep(0.01))
    assert work.cleaned_up


async def test_the_first_that_fails_ends_the_others() -> None:
    work = Work()
    with pytest.raises(RuntimeError, match="failed"):
        await run_until_first(work.run(), fail())
    assert work.cleaned_up


async def test_the_error_of_the_first_argument_wins() -> None:
    with pytest.raises(RuntimeError, match="one"):
        await run_until_first(fail("one"), fail("two"))


async def test_a_task_cancelled_by_somebody_else_counts_as_ended() -> None:
    work, other = Work(), Work()
    task = asyncio.create_task(work.run())
    asyncio.get_running_loop().call_later(0.01, task.cancel)
    await run_until_first(task, other.run())
    assert work.cleaned_up
    assert other.cleaned_up


async def test_a_cancelled_race_cancels_all() -> None:
    one, other = Work(), Work()
    race = asyncio.create_task(run_until_first(one.run(), other.run()))
    await run_ready_tasks()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert one.cleaned_up
    assert other.cleaned_up


async def test_main_runs_to_its_end_although_others_end_earlier() -> None:
    ended = []

    async def main() -> None:
        await asyncio.sleep(0.02)
        ended.append("main")

    work = Work()
    await run_alongside(main(), asyncio.sleep(0), work.run())
    assert ended == ["main"]
    assert work.cleaned_up


async def test_one_that_fails_beside_main_ends_it() -> None:
    work = Work()
    with pytest.raises(RuntimeError):
        await run_alongside(work.run(), asyncio.sleep(0), fail())


async def test_the_outcome_of_main_counts_where_all_end_at_once() -> None:
    await run_alongside(asyncio.sleep(0), fail())
    with pytest.raises(RuntimeError, match="main"):
        await run_alongside(fail("main"), fail("other"))


async def test_work_in_the_background_ends_with_the_block() -> None:
    work = Work()
    async with run_in_background(work.run()):
        await asyncio.sleep(0)
    assert work.cleaned_up


async def test_the_error_of_work_in_the_background_is_raised_at_the_end() -> None:
    ended = []

    async def run_block() -> None:
        async with run_in_background(fail()):
            await asyncio.sleep(0.01)
            ended.append("block")

    with pytest.raises(RuntimeError):
        await run_block()
    assert ended == ["block"]


async def test_asyncio_logs_no_error_of_a_dropped_task(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RuntimeError, match="one"):
        await run_until_first(fail("one"), fail("two"))
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await cancel_and_wait(task)
    del task
    gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_items_arrive_in_order_until_the_channel_is_closed() -> None:
    channel = Channel[int](10)
    for number in range(3):
        await channel.send(number)
    channel.close()
    assert [item async for item in channel] == [0, 1, 2]
    assert await channel.receive_all() == []


async def test_a_receiver_waits_for_an_item() -> None:
    channel = Channel[str](10)
    asyncio.get_running_loop().call_later(0.01, channel.send_nowait, "late")
    assert await anext(channel) == "late"
    asyncio.get_running_loop().call_later(0.01, channel.close)
    with pytest.raises(StopAsyncIteration):
        await anext(channel)


async def test_the_sender_waits_while_too_much_is_queued() -> None:
    channel = Channel[bytes](5, len)
    await asyncio.wait_for(channel.send(b"12345"), 60)
    blocked = asyncio.create_task(channel.send(b"6"))
    await run_ready_tasks()
    assert not blocked.done()
    assert await anext(channel) == b"12345"
    await asyncio.wait_for(blocked, 60)
    assert await channel.receive_all() == [b"6"]


async def test_all_items_at_once_make_room() -> None:
    channel = Channel[bytes](3, len)
    blocked = asyncio.create_task(channel.send(b"1234"))
    await asyncio.sleep(0)
    assert await channel.receive_all() == [b"1234"]
    await asyncio.wait_for(blocked, 60)


@pytest.mark.parametrize("end", [Channel.close, Channel.discard])
async def test_a_waiting_sender_goes_on_when_the_channel_ends(end: object) -> None:
    channel = Channel[bytes](1, len)
    blocked = asyncio.create_task(channel.send(b"12"))
    await asyncio.sleep(0)
    assert callable(end)
    end(channel)
    await asyncio.wait_for(blocked, 60)


async def test_a_closed_channel_drops_items_and_keeps_the_queued_ones() -> None:
    channel = Channel[bytes](1, len)
    channel.send_nowait(b"before")
    channel.close()
    await asyncio.wait_for(channel.send(b"after"), 60)
    assert [item async for item in channel] == [b"before"]


async def test_discarding_drops_the_queued_items_too() -> None:
    channel = Channel[bytes](1, len)
    channel.send_nowait(b"before")
    channel.discard()
    assert [item async for item in channel] == []
