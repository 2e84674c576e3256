"""One utterance: from its first audio to its transcript."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace

from eardrum.api.wyoming import models, recording
from eardrum.api.wyoming.asks import Ask
from eardrum.api.wyoming.frames import Event
from eardrum.api.wyoming.samples import Samples, Shape
from eardrum.api.wyoming.telling import Telling
from eardrum.api.wyoming.waiting import Waiting
from eardrum.errors import EardrumError
from eardrum.gateway.live import Session, live
from eardrum.gateway.service import Service
from eardrum.gateway.sessions import going_down
from eardrum.live import Ended, LiveEvent, Settings

log = logging.getLogger("eardrum.access")

Tell = Callable[[Event], Awaitable[None]]


class Utterance:
    """Audio goes in as it comes; `transcribe` runs beside that and tells the client."""

    def __init__(self, service: Service, ask: Ask, shape: Shape, *, client: str):
        self.shape = shape
        self.complete = False
        """Whether the client has said that no more audio comes."""
        self._service = service
        self._ask = ask
        self._samples = Samples(shape)
        self._waiting = Waiting()
        self._heard = False  # the session has all of it
        self._facts: dict[str, object] = {"protocol": "wyoming", "client": client}

    async def feed(self, audio: bytes) -> None:
        """The next bytes, any number of them; waits while too many wait for the model."""
        await self._waiting.put(self._samples.feed(audio))

    def stop(self) -> None:
        """That was all of it."""
        self.complete = True
        self._waiting.end()

    async def transcribe(self, tell: Tell) -> None:
        """Tell the client what was said.

        Raises:
            EardrumError: that cannot be known, and why.
            OSError: the client is gone.
        """
        began, note = time.monotonic(), "given up"
        try:
            await self._transcribe(tell)
            note = ""
        except EardrumError as error:
            note = error.message
            raise
        except ConnectionAbortedError as error:
            note = str(error)
            raise
        finally:
            self._log(time.monotonic() - began, note)

    async def _transcribe(self, tell: Tell) -> None:
        model = models.chosen(self._service, self._ask)
        self._facts["model"] = model.id
        request = self._service.prepared(model, self._ask.request)
        streaming = self._service.settings.wyoming.streaming
        telling = Telling(request.language, streaming=streaming)
        if model.foreign:
            text_alone = replace(request, times=False)
            for event in await recording.heard(self._service, model, text_alone, self.shape.format, self._waiting.pieces()):
                await self._pass_on(event, telling, tell)
            return
        settings = Settings(request, self.shape.format, endpointing=None, partials=streaming)
        async with live(self._service, model, settings) as session:
            ways = [asyncio.create_task(self._listen(session, telling, tell)), asyncio.create_task(self._feed(session))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                if ways[1].done():
                    ways[1].result()
                await ways[0]
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _feed(self, session: Session) -> None:
        async for audio in self._waiting.pieces():
            await session.feed(audio)
        self._heard = not session.finished  # else the server ends, and has not heard it all
        await session.finish()

    async def _listen(self, session: Session, telling: Telling, tell: Tell) -> None:
        async with aclosing(session.events()) as events:
            async for event in events:
                if isinstance(event, Ended) and not self._heard:
                    raise going_down()  # half a command may mean something else than the whole
                await self._pass_on(event, telling, tell)

    async def _pass_on(self, event: LiveEvent, telling: Telling, tell: Tell) -> None:
        if isinstance(event, Ended):
            self._facts |= {"audio_s": round(event.duration, 2), "decode_s": round(event.decode_s, 3)}
        for told in telling.take(event):
            await tell(told)

    def _log(self, seconds: float, note: str) -> None:
        facts = {**self._facts, "total_s": round(seconds, 3)} | ({"note": note} if note else {})
        line = " ".join(f"{name}={json.dumps(value) if ' ' in str(value) else value}" for name, value in facts.items())
        log.info("%s", line, extra={"facts": facts})
