"""`POST /live`: messages in the body, events as lines of the answer, both at the same time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from eardrum.errors import InvalidRequestError
from eardrum.live import Finish, Settings
from eardrum.runner.live.driver import Driver
from eardrum.wall import Messages, event_line

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def settings_of(header: str) -> Settings:
    """The settings that a session begins with.

    Raises:
        InvalidRequestError: the header is not what it should be.
    """
    try:
        return Settings.from_json(json.loads(header or "{}"))
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidRequestError(f"The header x-eardrum-live does not hold settings in JSON: {error}") from error


async def run(driver: Driver, receive: Receive, send: Send, over: asyncio.Event) -> None:
    """Go on until the session has ended, the client is gone, or all is `over`: no session ends by itself.

    Raises:
        EardrumError: the session cannot go on.
    """
    reading = asyncio.ensure_future(_read(driver, receive))
    writing = asyncio.ensure_future(_write(driver, send))
    ending = asyncio.ensure_future(over.wait())
    try:
        await asyncio.wait([reading, writing, ending], return_when=asyncio.FIRST_COMPLETED)
        for task in (writing, reading):
            if task.done():
                task.result()
    finally:
        for begun in (reading, writing, ending):
            begun.cancel()
        await asyncio.wait([reading, writing, ending])
        await driver.close()


async def _read(driver: Driver, receive: Receive) -> None:
    """Take what comes; ends when the client hangs up."""
    messages = Messages()
    finished = False
    while (message := await receive())["type"] == "http.request":
        for said in messages.feed(message.get("body", b"")):
            if finished:
                raise InvalidRequestError("The session was finished: what comes after that belongs to another one.")
            finished = isinstance(said, Finish)
            await driver.take(said)
        if not message.get("more_body", False) and not finished:
            finished = True
            await driver.take(Finish())


async def _write(driver: Driver, send: Send) -> None:
    async with aclosing(driver.events()) as events:
        async for event in events:
            await send({"type": "http.response.body", "body": event_line(event), "more_body": True})
