"""One client's connection: what it says is done in order, one utterance at a time, and an error ends it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from eardrum.api.multipart import SLOWEST
from eardrum.api.wyoming import models
from eardrum.api.wyoming.asks import Ask
from eardrum.api.wyoming.frames import Event, Frames, written
from eardrum.api.wyoming.samples import Shape
from eardrum.api.wyoming.telling import Telling
from eardrum.api.wyoming.utterance import Utterance
from eardrum.errors import EardrumError, InvalidRequestError, ShuttingDownError, StalledError
from eardrum.gateway.senders import SENDER, Pace
from eardrum.gateway.service import Service
from eardrum.stalling import stalled

log = logging.getLogger(__name__)

PIECE = 64 << 10
SLOWER_THAN_SPEECH = 20
"""So many times slower than it is spoken, audio may come and hold a place that others want. A microphone is never slower than it
hears, muted or not; who sends PCM over a mobile connection of 16 kbit/s is 16 times slower."""
LINGER_S = 2.0
"""How long the rest is read and thrown away after an error. Closing at once would destroy the error on its way."""


class Connection:
    """A client, from its first byte to the end of its connection.

    Whatever ends it is put into `_over`: the client's leaving, an error of either side, the server's shutting down.
    """

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._service = service
        self._reader = reader
        self._writer = writer
        self._stall_s = service.settings.limits.stall_seconds
        self._client = str((writer.get_extra_info("peername") or ("?",))[0])
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ask, self._shape = Ask(), Shape()
        self._utterance: Utterance | None = None
        self._transcribing: asyncio.Task[None] | None = None
        self._last = False
        self._pace = Pace()
        self._waited, self._came = 0.0, 0
        """Seconds for which the rest of an utterance or event was waited for, and the bytes that came in them."""

    @property
    def slow(self) -> bool:
        """Whether so little of an utterance comes that others may have its place at a model."""
        return self._speaking and self._pace.slow

    def give_way(self) -> None:
        """End the utterance: another one gets its place."""
        self.end(StalledError("Too little audio came to hold a place at the model while others waited for one."))

    @property
    def _speaking(self) -> bool:
        """Whether an utterance has begun, and more of it is to come."""
        return self._utterance is not None and not self._utterance.complete

    @property
    def idle(self) -> bool:
        """Whether no utterance is in progress on it, and it is to go on."""
        return not self._busy and not self._over.done()

    def end(self, error: BaseException | None = None) -> None:
        """End the connection now, with an error if there is one to tell."""
        if self._over.done():
            return
        if error:
            self._over.set_exception(error)
        else:
            self._over.set_result(None)

    def finish(self) -> None:
        """End it as soon as no utterance is in progress."""
        self._last = True
        if not self._busy:
            self.end()

    async def serve(self) -> None:
        """Do what the client says until the connection is over."""
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(self._ended)
        try:
            await self._over
        except EardrumError as error:
            await self._stop(reading)
            await self._refuse(error)
        except ConnectionAbortedError as error:
            log.info("A Wyoming client at %s was hung up on: %s", self._client, error)
        except OSError:
            pass  # the client is gone
        except Exception:
            log.exception("A Wyoming connection failed.")
            await self._stop(reading)
            await self._refuse(EardrumError("The server failed; its log says why."))
        finally:
            await self._stop(reading)
            await self._close()

    @property
    def _busy(self) -> bool:
        return self._transcribing is not None and not self._transcribing.done()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.end(task.exception())

    async def _read(self) -> None:
        frames = Frames()
        while data := await self._more(midway=frames.midway):
            heard = 0
            for event in frames.feed(data):
                heard += len(event.payload)
                await self._take(event)
            self._count(heard if self._speaking else len(data))
        if self._utterance and self._utterance.complete:
            await self._answered()  # who closes only its own side of the connection still reads

    async def _more(self, *, midway: bool) -> bytes:
        """What comes next. Between utterances a client may be silent for as long as it likes."""
        if not midway and not self._speaking:
            self._waited, self._came = 0.0, 0
            return await self._reader.read(PIECE)
        began = time.monotonic()
        self._pace.wait()
        try:
            async with asyncio.timeout(self._stall_s):
                return await self._reader.read(PIECE)
        except TimeoutError:
            raise StalledError(f"Nothing came for {self._stall_s:g} s in the middle of an utterance or event.") from None
        finally:
            self._waited += time.monotonic() - began

    def _count(self, size: int) -> None:
        """So much came of an utterance or event. One who drips is given up as one who is silent."""
        self._pace.came(size)
        self._came += size
        if self._waited < self._stall_s:
            return
        if self._came < SLOWEST * self._waited:
            what = f"Fewer than {SLOWEST} bytes a second came for {self._waited:.0f} s"
            raise StalledError(f"{what} in the middle of an utterance or event.")
        self._waited, self._came = 0.0, 0

    async def _take(self, event: Event) -> None:
        if event.type == "audio-chunk":
            await self._hear(event)
            return
        if event.more:
            return  # what it says is done once it is whole
        match event.type:
            case "describe":
                streaming = self._service.settings.wyoming.streaming
                await self._tell(models.info(models.listed(self._service), streaming=streaming))
            case "ping":
                await self._tell(Event("pong", {"text": event.data.get("text")}))
            case "transcribe":
                self._ask = Ask.of(event.data)
            case "audio-start":
                await self._begin(event)
            case "audio-stop":
                await self._complete()
            case _:
                log.debug("A Wyoming client sent %.80r, which is not for a server of speech to text.", event.type)

    async def _begin(self, event: Event) -> None:
        """A client that begins again without having stopped has given up what it said before."""
        if self._utterance and not self._utterance.complete:
            await self._drop()
        self._shape = Shape.of(event.data, Shape())

    async def _hear(self, event: Event) -> None:
        shape = Shape.of(event.data, self._shape)
        utterance = self._utterance
        if not utterance or utterance.complete:
            await self._answered()
            if self._last:
                raise ShuttingDownError("The server is shutting down.")
            utterance = self._utterance = Utterance(self._service, self._ask, shape, client=self._client)
            self._ask = Ask()
            self._pace = Pace(shape.rate * shape.width * shape.channels / SLOWER_THAN_SPEECH)
            SENDER.set(self)
            self._transcribing = asyncio.create_task(utterance.transcribe(self._tell))
            self._transcribing.add_done_callback(self._transcribed)
        elif shape != utterance.shape:
            raise InvalidRequestError(f"Audio cannot change in the middle of an utterance: {utterance.shape} became {shape}.")
        await utterance.feed(event.payload)

    async def _complete(self) -> None:
        if self._utterance and not self._utterance.complete:
            self._utterance.stop()
            return
        await self._answered()
        self._ask, self._shape = Ask(), Shape()
        for event in Telling(streaming=self._service.settings.wyoming.streaming).end():  # no audio, nothing said
            await self._tell(event)

    def _transcribed(self, task: asyncio.Task[None]) -> None:
        self._shape = Shape()
        if self._last or (not task.cancelled() and task.exception()):
            self._ended(task)

    async def _answered(self) -> None:
        """Wait for the answer to the utterance before."""
        if self._transcribing:
            await asyncio.wait([self._transcribing])

    async def _drop(self) -> None:
        """Give up the utterance in progress."""
        if self._transcribing:
            self._transcribing.cancel()
            await asyncio.wait([self._transcribing])
        self._utterance = self._transcribing = None

    async def _tell(self, event: Event) -> None:
        """Write to the client; one that takes nothing in is hung up on."""
        self._writer.write(written(event))
        try:
            async with asyncio.timeout(self._stall_s):
                await self._writer.drain()
        except TimeoutError:
            raise ConnectionAbortedError(stalled(self._stall_s)) from None

    async def _stop(self, reading: asyncio.Task[None]) -> None:
        reading.cancel()
        await asyncio.wait([reading])
        await self._drop()

    async def _refuse(self, error: EardrumError) -> None:
        """Tell the error, and take in what the client is still sending for a moment."""
        log.info("A Wyoming client at %s was refused: %s", self._client, error.message)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._tell(Event("error", {"text": error.message, "code": error.code}))
                self._writer.write_eof()
                while await self._reader.read(PIECE):
                    pass

    async def _close(self) -> None:
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._writer.wait_closed()
                return
        self._writer.transport.abort()
