"""One client's session, which lasts as long as its socket: many recordings, one after the other."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

from eardrum.api.access import record
from eardrum.api.asgi import Scope
from eardrum.api.sockets import Socket, alongside
from eardrum.api.tingwu import messages
from eardrum.api.tingwu.messages import Wishes
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.gateway.inventory import Model
from eardrum.gateway.live import Session, live, named
from eardrum.gateway.service import Service
from eardrum.gateway.sessions import going_down
from eardrum.languages import language_code
from eardrum.live import Failed, Final, LiveEvent, Partial, Settings
from eardrum.types import Priority, Request


class Conversation:
    """A session over an open socket. `model` and `language` are what the address names, which TingWu's has no room for."""

    def __init__(self, service: Service, socket: Socket, scope: Scope, *, model: str = "", language: str = ""):
        self._service = service
        self._socket = socket
        self._record = record(scope)
        self._name = model
        self._language = language
        self._backend = ""
        self._wishes = Wishes()

    async def run(self) -> None:
        """Serve the client until it leaves or the server ends.

        Raises:
            EardrumError: the session cannot be had, or is over, and why.
        """
        await alongside(self._talk(), self._heartbeat())

    async def warn(self, error: EardrumError) -> None:
        """Tell the client of an error."""
        self._record.note = error.message
        await self._socket.say(messages.warning(error.message, self._backend))

    async def _talk(self) -> None:
        model = named(self._service, self._name, Request(language=language_code(self._language)))
        self._backend = model.engine
        await self._socket.say(messages.connected(self._record.id))
        first = await self._next()  # a page that nobody speaks to yet loads no model
        if first is None:
            raise going_down()
        self._record.model = model.id
        async with live(self._service, model, self._settings(model)) as session:
            try:
                await alongside(self._answer(session), self._listen(session, model, first))
            finally:
                self._record.summary = session.summary

    async def _next(self) -> bytes | Wishes | None:
        """The next audio, or other wishes; None when the server ends. What means nothing else here is answered on the way."""
        async for message in self._socket:
            messages.check_size(message)
            if isinstance(message, bytes):
                return message
            try:
                said = messages.parsed(message)
                if said.get("type") == "ping":
                    await self._socket.say({"type": "pong"})
                elif "type" not in said:
                    self._wishes = self._wishes.changed(said)
                    return self._wishes
            except InvalidRequestError as error:
                await self.warn(error)
        return None

    async def _listen(self, session: Session, model: Model, message: bytes | Wishes | None) -> None:
        """Hand on what the client says, to the end of the server, which the session sees to itself."""
        configured = self._settings(model)
        while message is not None:
            if isinstance(message, bytes):
                await session.feed(message)
            elif not message.speaking:
                await session.commit()
            if (settings := self._settings(model)) != configured:
                configured = settings
                await session.configure(settings)
            message = await self._next()

    async def _answer(self, session: Session) -> None:
        async with aclosing(session.events()) as events:
            async for event in events:
                await self._tell(event)

    async def _tell(self, event: LiveEvent) -> None:
        """A commit with nothing to commit is refused, which no client of TingWu's needs to know."""
        match event:
            case Partial():
                await self._socket.say(messages.text(self._wishes.mode, event.stable + event.tentative, final=False))
            case Final():
                await self._socket.say(messages.text(self._wishes.mode, event.text, final=True))
            case Failed():
                await self.warn(event.error)

    def _settings(self, model: Model) -> Settings:
        request = Request(language=language_code(self._language), priority=Priority.LIVE)
        settings = self._wishes.settings(Settings(request), model.capabilities)
        return replace(settings, request=self._service.prepared(model, settings.request))

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(messages.HEARTBEAT_S)
            await self._socket.say(messages.ping(time.time()))
