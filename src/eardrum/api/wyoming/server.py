"""The Wyoming server: accepts clients up to a limit, and serves each connection until it ends or the server shuts down.

A connection handles its events in order, one utterance at a time; an error ends it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress

from eardrum.api.uploads import MIN_BYTES_PER_S
from eardrum.api.wyoming import utterance as models
from eardrum.api.wyoming.discovery import ZeroconfAnnouncement
from eardrum.api.wyoming.protocol import (
    FrameDecoder,
    SampleFormat,
    TranscribeRequest,
    TranscriptEncoder,
    WyomingEvent,
    encode_event,
)
from eardrum.api.wyoming.utterance import WyomingUtterance
from eardrum.connection_limits import describe_stall, descriptor_monitor
from eardrum.errors import BusyError, ClientStalledError, EardrumError, InvalidRequestError, ShuttingDownError, UnauthorizedError
from eardrum.gateway.service import Service
from eardrum.gateway.slow_clients import SENDING_CLIENT, SendRateMeter

CONNECTIONS = 256
"""At a time, or a quarter of the descriptors there are. One more takes the place of the oldest that is idle."""


class WyomingServer:
    """Serves Wyoming on a bound socket."""

    def __init__(self, service: Service, listening: socket.socket):
        """Serve nobody yet.

        Raises:
            ConfigError: the server is to be announced, and cannot be.
        """
        self.host, self.port = listening.getsockname()[:2]
        self._service = service
        self._listening = listening
        name = service.settings.wyoming.zeroconf
        self._announcement = ZeroconfAnnouncement(name, self.host, self.port) if name else None
        self._announcing: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self._most = min(CONNECTIONS, descriptor_monitor.soft_limit // 4 or CONNECTIONS)
        self._connections: dict[WyomingConnection, asyncio.Task[None]] = {}
        """The oldest first."""

    async def start(self) -> None:
        """Let clients in."""
        self._server = await asyncio.start_server(self._accept, sock=self._listening)
        if self._announcement:
            self._announcing = asyncio.create_task(self._announcement.begin())

    async def close(self) -> None:
        """Let nobody in any more, and wait until the utterances in progress have their answers. Cancelled, it hangs up."""
        try:
            if self._server:
                self._server.close()
            for connection in self._connections:
                connection.finish()
            if self._announcement and self._announcing:
                self._announcing.cancel()
                await asyncio.wait([self._announcing])
                await self._announcement.end()
            if self._connections:
                await asyncio.wait(self._connections.values())
        finally:
            for task in self._connections.values():
                task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # so that who vanished without a word is noticed
        connection, settings = WyomingConnection(self._service, reader, writer), self._service.settings
        if not settings.wyoming.is_enabled(settings.apiKeys):  # keys came with a config that was read again
            connection.end(UnauthorizedError("This server asks for keys now, which Wyoming cannot show: set wyoming.enabled."))
        elif len(self._connections) >= self._most or descriptor_monitor.are_short(peer.fileno(), len(self._connections)):
            self._make_room(connection)
        self._connections[connection] = task = asyncio.create_task(connection.serve())
        task.add_done_callback(lambda _: self._connections.pop(connection))

    def _make_room(self, newcomer: WyomingConnection) -> None:
        idle = next((connection for connection in self._connections if connection.idle), None)
        if idle:
            idle.end()
        else:
            newcomer.end(BusyError(f"{len(self._connections)} utterances are in progress: come back later."))


log = logging.getLogger(__name__)

READ_BYTES = 64 << 10
SLOWER_THAN_SPEECH = 20
"""So many times slower than it is spoken, audio may come and hold a place that others want. A microphone is never slower than it
hears, muted or not; who sends PCM over a mobile connection of 16 kbit/s is 16 times slower."""
LINGER_S = 2.0
"""How long the rest is read and thrown away after an error. Closing at once would destroy the error on its way."""


class WyomingConnection:
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
        self._request, self._format = TranscribeRequest(), SampleFormat()
        self._utterance: WyomingUtterance | None = None
        self._transcribing: asyncio.Task[None] | None = None
        self._is_finishing = False
        self._pace = SendRateMeter()
        self._waited, self._came = 0.0, 0
        """Seconds for which the rest of an utterance or event was waited for, and the bytes that came in them."""

    @property
    def is_slow(self) -> bool:
        """Whether so little of an utterance comes that others may have its place at a model."""
        return self._speaking and self._pace.is_slow

    def give_up_place(self) -> None:
        """End the utterance: another one gets its place."""
        self.end(ClientStalledError("Too little audio came to hold a place at the model while others waited for one."))

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
        self._is_finishing = True
        if not self._busy:
            self.end()

    async def serve(self) -> None:
        """Do what the client says until the connection is over."""
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(self._handle_task_end)
        try:
            await self._over
        except EardrumError as error:
            await self._stop(reading)
            await self._send_error(error)
        except ConnectionAbortedError as error:
            log.info("A Wyoming client at %s was hung up on: %s", self._client, error)
        except OSError:
            pass  # the client is gone
        except Exception:
            log.exception("A Wyoming connection failed.")
            await self._stop(reading)
            await self._send_error(EardrumError("The server failed; its log says why."))
        finally:
            await self._stop(reading)
            await self._close()

    @property
    def _busy(self) -> bool:
        return self._transcribing is not None and not self._transcribing.done()

    def _handle_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.end(task.exception())

    async def _read(self) -> None:
        frames = FrameDecoder()
        while data := await self._read_more(midway=frames.is_midway):
            heard = 0
            for event in frames.feed(data):
                heard += len(event.payload)
                await self._handle_event(event)
            self._count(heard if self._speaking else len(data))
        if self._utterance and self._utterance.complete:
            await self._wait_for_answer()  # who closes only its own side of the connection still reads

    async def _read_more(self, *, midway: bool) -> bytes:
        """What comes next. Between utterances a client may be silent for as long as it likes."""
        if not midway and not self._speaking:
            self._waited, self._came = 0.0, 0
            return await self._reader.read(READ_BYTES)
        began = time.monotonic()
        self._pace.start_waiting()
        try:
            async with asyncio.timeout(self._stall_s):
                return await self._reader.read(READ_BYTES)
        except TimeoutError:
            raise ClientStalledError(f"Nothing came for {self._stall_s:g} s in the middle of an utterance or event.") from None
        finally:
            self._waited += time.monotonic() - began

    def _count(self, size: int) -> None:
        """So much came of an utterance or event. One who drips is given up as one who is silent."""
        self._pace.record_bytes(size)
        self._came += size
        if self._waited < self._stall_s:
            return
        if self._came < MIN_BYTES_PER_S * self._waited:
            what = f"Fewer than {MIN_BYTES_PER_S} bytes a second came for {self._waited:.0f} s"
            raise ClientStalledError(f"{what} in the middle of an utterance or event.")
        self._waited, self._came = 0.0, 0

    async def _handle_event(self, event: WyomingEvent) -> None:
        if event.type == "audio-chunk":
            await self._handle_audio(event)
            return
        if event.more:
            return  # what it says is done once it is whole
        match event.type:
            case "describe":
                streaming = self._service.settings.wyoming.streaming
                await self._send_event(models.build_info(models.list_models(self._service), streaming=streaming))
            case "ping":
                await self._send_event(WyomingEvent("pong", {"text": event.data.get("text")}))
            case "transcribe":
                self._request = TranscribeRequest.of(event.data)
            case "audio-start":
                await self._begin_utterance(event)
            case "audio-stop":
                await self._finish_utterance()
            case _:
                log.debug("A Wyoming client sent %.80r, which is not for a server of speech to text.", event.type)

    async def _begin_utterance(self, event: WyomingEvent) -> None:
        """A client that begins again without having stopped has given up what it said before."""
        if self._utterance and not self._utterance.complete:
            await self._drop_utterance()
        self._format = SampleFormat.of(event.data, SampleFormat())

    async def _handle_audio(self, event: WyomingEvent) -> None:
        shape = SampleFormat.of(event.data, self._format)
        utterance = self._utterance
        if not utterance or utterance.complete:
            await self._wait_for_answer()
            if self._is_finishing:
                raise ShuttingDownError("The server is shutting down.")
            utterance = self._utterance = WyomingUtterance(self._service, self._request, shape, client=self._client)
            self._request = TranscribeRequest()
            self._pace = SendRateMeter(shape.rate * shape.width * shape.channels / SLOWER_THAN_SPEECH)
            SENDING_CLIENT.set(self)
            self._transcribing = asyncio.create_task(utterance.transcribe(self._send_event))
            self._transcribing.add_done_callback(self._handle_transcription_end)
        elif shape != utterance.format:
            raise InvalidRequestError(f"Audio cannot change in the middle of an utterance: {utterance.format} became {shape}.")
        await utterance.feed(event.payload)

    async def _finish_utterance(self) -> None:
        if self._utterance and not self._utterance.complete:
            self._utterance.stop()
            return
        await self._wait_for_answer()
        self._request, self._format = TranscribeRequest(), SampleFormat()
        for event in TranscriptEncoder(streaming=self._service.settings.wyoming.streaming).end():  # no audio, nothing said
            await self._send_event(event)

    def _handle_transcription_end(self, task: asyncio.Task[None]) -> None:
        self._format = SampleFormat()
        if self._is_finishing or (not task.cancelled() and task.exception()):
            self._handle_task_end(task)

    async def _wait_for_answer(self) -> None:
        """Wait for the answer to the utterance before."""
        if self._transcribing:
            await asyncio.wait([self._transcribing])

    async def _drop_utterance(self) -> None:
        """Give up the utterance in progress."""
        if self._transcribing:
            self._transcribing.cancel()
            await asyncio.wait([self._transcribing])
        self._utterance = self._transcribing = None

    async def _send_event(self, event: WyomingEvent) -> None:
        """Write to the client; one that takes nothing in is hung up on."""
        self._writer.write(encode_event(event))
        try:
            async with asyncio.timeout(self._stall_s):
                await self._writer.drain()
        except TimeoutError:
            raise ConnectionAbortedError(describe_stall(self._stall_s)) from None

    async def _stop(self, reading: asyncio.Task[None]) -> None:
        reading.cancel()
        await asyncio.wait([reading])
        await self._drop_utterance()

    async def _send_error(self, error: EardrumError) -> None:
        """Tell the error, and take in what the client is still sending for a moment."""
        log.info("A Wyoming client at %s was refused: %s", self._client, error.message)
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._send_event(WyomingEvent("error", {"text": error.message, "code": error.code}))
                self._writer.write_eof()
                while await self._reader.read(READ_BYTES):
                    pass

    async def _close(self) -> None:
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._writer.wait_closed()
                return
        self._writer.transport.abort()
