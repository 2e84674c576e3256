"""What was said goes on to the process that hears it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from eardrum.gateway.live.tape import Tape
from eardrum.gateway.upstreams.session import RunnerSession
from eardrum.live import Clear, Command, Commit, Configure, Finish


@asynccontextmanager
async def sending(
    process: RunnerSession, first: Iterable[bytes | Command], tape: Tape, more: asyncio.Event, sent: Callable[[], None]
) -> AsyncIterator[None]:
    """For the duration of the block, send what comes `first`, and then what is on the tape.

    Args:
        process: who hears it.
        first: what it hears again.
        tape: what is to be said from then on.
        more: told when there is more of it.
        sent: told when it is less.
    """
    task = asyncio.create_task(_send(process, first, tape, more, sent))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _send(
    process: RunnerSession, first: Iterable[bytes | Command], tape: Tape, more: asyncio.Event, sent: Callable[[], None]
) -> None:
    for again in first:
        await _say(process, again)
    while not process.over:  # what is taken then would be lost
        if (item := tape.take()) is not None:
            await _say(process, item)
            sent()
        else:
            more.clear()
            await more.wait()


async def _say(process: RunnerSession, item: bytes | Command) -> None:
    match item:
        case bytes():
            await process.feed(item)
        case Configure():
            await process.configure(item.settings)
        case Commit():
            await process.commit()
        case Clear():
            await process.clear()
        case Finish():
            await process.finish()
