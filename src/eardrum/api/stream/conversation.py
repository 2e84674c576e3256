"""One client's session: what it says goes to the model, what comes of it goes to the client."""

from __future__ import annotations

from contextlib import aclosing, suppress
from dataclasses import replace

from eardrum.api.access import record
from eardrum.api.asgi import Scope
from eardrum.api.sockets import Socket, alongside
from eardrum.api.stream.config import FORMAT, Config, ignored
from eardrum.api.stream.messages import Configured, Said, Worded, said, told
from eardrum.errors import AudioError, EardrumError, InvalidRequestError, ShuttingDownError
from eardrum.gateway.inventory import Model
from eardrum.gateway.live import Session, live, named
from eardrum.gateway.service import Service
from eardrum.gateway.sessions import going_down
from eardrum.live import Clear, Commit, Ended, Finish

HALF = "The audio ended in the middle of a sample: check `encoding` and `channels`."


class Conversation:
    """A session over an open socket."""

    def __init__(self, service: Service, socket: Socket, scope: Scope, worded: Worded):
        self._service = service
        self._socket = socket
        self._record = record(scope)
        self._worded = worded
        self._heard = 0  # bytes of audio

    async def run(self, config: Config) -> None:
        """Serve the client to the end of its audio.

        Raises:
            EardrumError: the session cannot be had, or is over, and why.
        """
        first: Said | None = None
        if not config.model:  # whoever names none in the address may do so in the first message
            first = await self._next()
            if isinstance(first, Configured):
                config, first = config.changed(first.given), None
            elif isinstance(first, Finish):
                await self._end(Ended(duration=0.0))
                return
        model = named(self._service, config.model, config.settings.request)
        config = self._checked(config, model)
        self._record.model = model.id
        async with live(self._service, model, config.settings) as session:
            try:
                await self._say_settings("ready", config, model)
                await alongside(self._answer(session), self._listen(session, first, config, model))
            finally:
                self._record.summary = session.summary

    async def fail(self, error: EardrumError) -> None:
        """Tell the client of an error."""
        self._record.note = error.message
        await self._socket.say({"type": "error", **self._worded(error)})

    async def _next(self) -> Said:
        """What the client says next. What nobody understands is answered and passed over.

        Raises:
            ShuttingDownError: nothing more is heard of it, because the server ends.
        """
        async for message in self._socket:
            try:
                return said(message)
            except InvalidRequestError as error:
                await self.fail(error)
        raise going_down()

    async def _listen(self, session: Session, first: Said | None, config: Config, model: Model) -> None:
        """Hand on what the client says, to the end of its audio or of the server, which the session sees to itself."""
        with suppress(ShuttingDownError):
            message = await self._next() if first is None else first
            while not isinstance(message, Finish):
                if isinstance(message, Configured):
                    config = await self._reconfigured(session, config, message, model)
                else:
                    await self._hand_on(session, message)
                message = await self._next()
            self._socket.ignore()
            if self._heard % config.frame_bytes:
                await self.fail(AudioError(HALF, param=None))
            await session.finish()

    async def _hand_on(self, session: Session, message: Said) -> None:
        match message:
            case bytes():
                self._heard += len(message)
                await session.feed(message)
            case Commit():
                await session.commit()
            case Clear():
                await session.clear()

    async def _reconfigured(self, session: Session, before: Config, wish: Configured, model: Model) -> Config:
        """What holds from now on: what the client wants, or, if that cannot be, what held before."""
        try:
            config = self._checked(before.changed(wish.given), model)
            if config.model != before.model and named(self._service, config.model, config.settings.request).id != model.id:
                raise InvalidRequestError(f"This session is with {model.id}: open another for {config.model}.", param="model")
            if self._heard and config.settings.format != before.settings.format:
                raise InvalidRequestError(f"{', '.join(FORMAT)} cannot change after the first audio.", param="encoding")
        except EardrumError as error:
            await self.fail(error)
            return before
        await session.configure(config.settings)
        await self._say_settings("configured", config, model)
        return config

    async def _answer(self, session: Session) -> None:
        """Tell the client what comes of it, to the end of the session."""
        async with aclosing(session.events()) as events:
            async for event in events:
                if isinstance(event, Ended):
                    await self._end(event)
                elif message := told(event, self._worded):
                    await self._socket.say(message)

    async def _end(self, event: Ended) -> None:
        message = told(event, self._worded)
        assert message
        await self._socket.say(message)
        await self._socket.close()

    def _checked(self, config: Config, model: Model) -> Config:
        """With the server's defaults.

        Raises:
            UnsupportedFeatureError: the model cannot do what is asked.
        """
        request = self._service.prepared(model, config.settings.request)
        return Config(config.model, replace(config.settings, request=request))

    async def _say_settings(self, kind: str, config: Config, model: Model) -> None:
        unused = ignored(config.settings.request, model.capabilities)
        message = {"type": kind, "session": self._record.id, "model": model.id, **config.shown()}
        await self._socket.say(message | ({"ignored": unused} if unused else {}))
