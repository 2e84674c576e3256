"""Moves events between a client's WebSocket, the conversation that decides, and the session that listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import assert_never

from eardrum.api.realtime.conversation import Conversation, HangUp, Open, Step
from eardrum.api.sockets import Closing, Socket, until_one_ends
from eardrum.errors import EardrumError, ShuttingDownError
from eardrum.gateway.live import Session
from eardrum.live import Clear, Commit, Configure, Settings

ENDING = HangUp(Closing.GOING_AWAY, "The server is shutting down.")

Listen = Callable[[str, Settings], AbstractAsyncContextManager[Session]]
"""A session with the model of this id."""


class Line:
    """One connection, from the greeting to the end.

    Args:
        conversation: decides.
        listen: opens sessions.
        socket: the client's.
    """

    def __init__(self, conversation: Conversation, listen: Listen, socket: Socket):
        self._conversation = conversation
        self._listen = listen
        self._socket = socket
        self._session: asyncio.Future[Session] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._closing = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve until either side hangs up. When the server ends nothing more is heard, and the last texts are sent.

        Raises:
            ClientGoneError: the client took nothing in, or is gone.
        """
        try:
            await self._do(self._conversation.greeting())
            await until_one_ends(self._act(), self._until_over())
        finally:
            await self._stop_listening()

    async def _until_over(self) -> None:
        await self._over

    async def _act(self) -> None:
        """On what the client says, until the server ends; then the session ends, and with it the connection."""
        async for message in self._socket:
            await self._do(list(self._conversation.heard(message)))
        if self._session:
            await (await self._session).finish()
            await self._over
        else:
            await self._hang_up(ENDING)

    async def _do(self, steps: Iterable[Step]) -> None:
        for step in steps:
            match step:
                case dict():
                    if not self._closing:
                        await self._socket.say(step)
                case HangUp():
                    await self._hang_up(step)
                case Open():
                    await self._open(step)
                case bytes() | Configure() | Commit() | Clear():
                    await self._tell(step)
                case _:
                    assert_never(step)

    async def _open(self, step: Open) -> None:
        await self._stop_listening()
        self._session = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._transcribe(step, self._session))
        self._listening.add_done_callback(self._listened)

    async def _tell(self, step: bytes | Configure | Commit | Clear) -> None:
        assert self._session
        session = await self._session  # a model may have to be loaded first
        match step:
            case bytes():
                await session.feed(step)
            case Configure(settings=settings):
                await session.configure(settings)
            case Commit():
                await session.commit()
            case Clear():
                await session.clear()

    async def _transcribe(self, step: Open, ready: asyncio.Future[Session]) -> None:
        """Tell the client what a session hears. When it ends, so does the connection."""
        try:
            async with self._listen(step.model, step.settings) as session:
                ready.set_result(session)
                async with aclosing(session.events()) as events:
                    async for event in events:
                        await self._do(list(self._conversation.told(event)))
            await self._hang_up(ENDING)
        except ShuttingDownError:  # the last texts are out, and clients take an error for more than that
            await self._hang_up(ENDING)
        except EardrumError as error:
            await self._do(self._conversation.broken(error))

    def _listened(self, task: asyncio.Task[None]) -> None:
        """What goes wrong with a session goes wrong with the connection."""
        if not task.cancelled() and (error := task.exception()) and not self._over.done():
            self._over.set_exception(error)

    async def _stop_listening(self) -> None:
        if self._listening:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _hang_up(self, last: HangUp) -> None:
        if not self._closing:
            self._closing = True
            await self._socket.close(last.code, last.reason)
            self._over.set_result(None)
