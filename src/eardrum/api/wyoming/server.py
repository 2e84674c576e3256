"""The Wyoming server: accepts clients up to a limit, and serves each connection until it ends or the server shuts down.

A connection handles its events in order, one utterance and one text to speak at a time; an error ends it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress

from eardrum.api.request_body import MIN_BYTES_PER_S
from eardrum.api.wyoming.discovery import Announcement, ZeroconfAnnouncement
from eardrum.api.wyoming.protocol import (
    FrameDecoder,
    SampleFormat,
    TranscribeRequest,
    TranscriptEncoder,
    WyomingEvent,
    encode_event,
)
from eardrum.api.wyoming.speech import SynthesizeRequest, WyomingSpeech, describe_speech
from eardrum.api.wyoming.supervisor import SupervisorAnnouncement
from eardrum.api.wyoming.utterance import WyomingUtterance, build_info, list_models
from eardrum.concurrency import cancel_and_wait
from eardrum.connection_limits import describe_stall, descriptor_monitor
from eardrum.errors import (
    BusyError,
    ClientStalledError,
    EardrumError,
    ForbiddenClientError,
    InvalidRequestError,
    ShuttingDownError,
    UnauthorizedError,
)
from eardrum.gateway.places import SENDING_CLIENT, SendRateMeter
from eardrum.gateway.service import Service
from eardrum.gateway.speech import list_voice_models

CONNECTIONS = 256
"""Concurrent connections, or a quarter of the file descriptors if less. A further one replaces the oldest idle one."""


class WyomingServer:
    """Serves Wyoming on a bound socket."""

    def __init__(self, service: Service, listening: socket.socket):
        """Prepare the server; `start` accepts connections.

        Raises:
            ConfigError: the config enables the announcement, and it cannot be.
        """
        self.host, self.port = listening.getsockname()[:2]
        self._service = service
        self._listening = listening
        settings = service.settings.wyoming
        self._announcements: list[Announcement] = []
        if settings.zeroconf:
            self._announcements.append(ZeroconfAnnouncement(settings.zeroconf, self.host, self.port))
        if settings.supervisor:
            self._announcements.append(SupervisorAnnouncement(self.port))
        self._announcing: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        self._max_connections = min(CONNECTIONS, descriptor_monitor.soft_limit // 4 or CONNECTIONS)
        self._connections: dict[WyomingConnection, asyncio.Task[None]] = {}
        """The oldest first."""

    async def start(self) -> None:
        """Accept connections, and announce the server if configured."""
        self._server = await asyncio.start_server(self._accept, sock=self._listening)
        self._announcing = [asyncio.create_task(announcement.begin()) for announcement in self._announcements]

    async def close(self) -> None:
        """Stop accepting and wait for the utterances in progress. If cancelled, close the connections at once."""
        try:
            if self._server:
                self._server.close()
            for connection in self._connections:
                connection.finish()
            for announcing, announcement in zip(self._announcing, self._announcements, strict=True):
                await cancel_and_wait(announcing)
                await announcement.end()
            if self._connections:
                await asyncio.wait(self._connections.values())
        finally:
            for task in self._connections.values():
                task.cancel()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # detects clients that vanished without closing
        connection, settings = WyomingConnection(self._service, reader, writer), self._service.settings
        if not settings.wyoming.is_enabled(settings.api_keys):  # a reloaded config added keys
            connection.end(
                UnauthorizedError(
                    "This server now requires API keys, which Wyoming cannot send: set wyoming.enabled, or list wyoming.clients."
                )
            )
        elif not settings.wyoming.admits(connection.client):
            connection.end(
                ForbiddenClientError(f"{connection.client} is not among the clients that may connect (wyoming.clients).")
            )
        elif len(self._connections) >= self._max_connections or descriptor_monitor.are_short(
            peer.fileno(), len(self._connections)
        ):
            self._make_room(connection)
        self._connections[connection] = task = asyncio.create_task(connection.serve())
        task.add_done_callback(lambda _: self._connections.pop(connection))

    def _make_room(self, newcomer: WyomingConnection) -> None:
        idle = next((connection for connection in self._connections if connection.idle), None)
        if idle:
            idle.end()
        else:
            newcomer.end(BusyError(f"The server is busy with {len(self._connections)} utterances; try again later."))


log = logging.getLogger(__name__)

READ_BYTES = 64 << 10
SLOWER_THAN_SPEECH = 20
"""Audio may arrive this many times slower than real time while other requests wait for the model. A microphone, muted or not,
sends in real time; PCM over a mobile connection of 16 kbit/s is 16 times slower."""
LINGER_S = 2.0
"""After an error, the client's data is drained until it has sent nothing for so long. Closing at once could discard the error in
transit; and many clients send a whole utterance, in real time, before they read."""
MAX_LINGER_S = 60.0
"""How long to drain it at most, however much the client sends."""


class WyomingConnection:
    """Serves one client's connection.

    The future `_over` holds the end of the connection: a disconnect, an error of either side, or the server's shutdown.
    """

    def __init__(self, service: Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._service = service
        self._reader = reader
        self._writer = writer
        self._stall_s = service.settings.limits.stall_timeout
        self.client = str((writer.get_extra_info("peername") or ("?",))[0])
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request: TranscribeRequest | None = None
        """The client's parameters for the next utterance, if it has sent any."""
        self._format = SampleFormat()
        """The format of the utterance whose audio arrives, or of the next one."""
        self._utterance: WyomingUtterance | None = None
        self._transcribing: asyncio.Task[None] | None = None
        self._speech: WyomingSpeech | None = None
        """The text that is being spoken."""
        self._synthesizing: asyncio.Task[None] | None = None
        self._is_finishing = False
        self._lingering: asyncio.Timeout | None = None
        self._pace = SendRateMeter()
        self._waited, self._came = 0.0, 0
        """Seconds spent waiting for the rest of an utterance or event, and the bytes received in that time."""

    @property
    def is_slow(self) -> bool:
        """Whether the utterance arrives so slowly that its place at the model may go to others."""
        return self._speaking and self._pace.is_slow

    def give_up_place(self) -> None:
        """End the connection to free the utterance's place at the model."""
        self.end(ClientStalledError("Audio arrived too slowly while other requests waited for the model."))

    @property
    def _speaking(self) -> bool:
        """Whether an utterance has begun and is incomplete."""
        return self._utterance is not None and not self._utterance.complete

    @property
    def idle(self) -> bool:
        """Whether the connection is open and has no utterance in progress."""
        return not self._busy and not self._over.done()

    def end(self, error: BaseException | None = None) -> None:
        """End the connection now, with an error if given."""
        if self._over.done():
            return
        if error:
            self._over.set_exception(error)
        else:
            self._over.set_result(None)

    def finish(self) -> None:
        """End the connection as soon as no utterance is in progress."""
        self._is_finishing = True
        if self._lingering:
            self._lingering.reschedule(asyncio.get_running_loop().time() + LINGER_S)
        if not self._busy:
            self.end()

    async def serve(self) -> None:
        """Serve the client until the connection ends."""
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(self._handle_task_end)
        try:
            await self._over
        except EardrumError as error:
            await self._stop(reading)
            await self._send_error(error)
        except ConnectionAbortedError as error:
            log.info("Disconnected the Wyoming client at %s: %s", self.client, error)
        except OSError:
            pass  # the client is gone
        except Exception:
            log.exception("A Wyoming connection failed.")
            await self._stop(reading)
            await self._send_error(EardrumError("The server failed; its log has the cause."))
        finally:
            await self._stop(reading)
            await self._close()

    @property
    def _busy(self) -> bool:
        return any(task is not None and not task.done() for task in (self._transcribing, self._synthesizing))

    def _handle_task_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.end(task.exception())

    async def _read(self) -> None:
        frames = FrameDecoder()
        while data := await self._read_more(midway=frames.is_midway):
            audio_bytes = 0
            for event in frames.feed(data):
                audio_bytes += len(event.payload)
                await self._handle_event(event)
            self._count(audio_bytes if self._speaking else len(data))
        if self._utterance and self._utterance.complete:
            await self._wait_for_answer()  # a client that half-closes the connection still reads
        if self._speech and self._speech.is_complete:
            await self._wait_for_speech()

    async def _read_more(self, *, midway: bool) -> bytes:
        """Read from the client. Between utterances there is no time limit."""
        if not midway and not self._speaking:
            self._waited, self._came = 0.0, 0
            return await self._reader.read(READ_BYTES)
        began = time.monotonic()
        self._pace.start_waiting()
        try:
            async with asyncio.timeout(self._stall_s):
                return await self._reader.read(READ_BYTES)
        except TimeoutError:
            raise ClientStalledError(
                f"The client sent nothing for {self._stall_s:g} s in the middle of an utterance or event."
            ) from None
        finally:
            self._waited += time.monotonic() - began

    def _count(self, size: int) -> None:
        """Count received bytes. A client that sends too slowly is disconnected like a silent one."""
        self._pace.record_bytes(size)
        self._came += size
        if self._waited < self._stall_s:
            return
        if self._came < MIN_BYTES_PER_S * self._waited:
            rate = f"The client sent less than {MIN_BYTES_PER_S} bytes per second for {self._waited:.0f} s"
            raise ClientStalledError(f"{rate} in the middle of an utterance or event.")
        self._waited, self._came = 0.0, 0

    async def _handle_event(self, event: WyomingEvent) -> None:
        if event.type == "audio-chunk":
            await self._handle_audio(event)
            return
        if event.more:
            return  # handled once it is complete
        match event.type:
            case "describe":
                streaming = self._service.settings.wyoming.streaming
                voices = describe_speech(list_voice_models(self._service))
                await self._send_event(build_info(list_models(self._service), streaming=streaming, voices=voices))
            case "ping":
                await self._send_event(WyomingEvent("pong", {"text": event.data.get("text")}))
            case "transcribe":
                self._request = TranscribeRequest.parse(event.data)
            case "audio-start":
                await self._begin_utterance(event)
            case "audio-stop":
                await self._finish_utterance()
            case "synthesize" | "synthesize-start" | "synthesize-chunk" | "synthesize-stop":
                await self._handle_text(event)
            case _:
                log.debug("Ignored the Wyoming event %.80r, which is not for speech.", event.type)

    async def _handle_text(self, event: WyomingEvent) -> None:
        """Handle text to speak: as a whole, or in pieces, which end with the whole text again for servers that take no pieces."""
        speech = self._speech if self._speech and not self._speech.is_complete else None
        if event.type == "synthesize-start" or (event.type == "synthesize" and not speech):
            if speech:
                await self._drop_speech()
            await self._wait_for_speech()
            if self._is_finishing:
                raise ShuttingDownError("The server is shutting down.")
            request, streaming = SynthesizeRequest.parse(event.data), event.type != "synthesize"
            speech = self._speech = WyomingSpeech(self._service, request, client=self.client, streaming=streaming)
            self._synthesizing = asyncio.create_task(speech.speak(self._send_event))
            self._synthesizing.add_done_callback(self._handle_synthesis_end)
            if not streaming:
                await speech.feed(request.text)
                speech.stop()
        elif speech and event.type == "synthesize-chunk":
            await speech.feed(SynthesizeRequest.parse(event.data).text)
        elif speech and event.type == "synthesize-stop":
            speech.stop()

    def _handle_synthesis_end(self, task: asyncio.Task[None]) -> None:
        if self._is_finishing or (not task.cancelled() and task.exception()):
            self._handle_task_end(task)

    async def _wait_for_speech(self) -> None:
        """Wait until the text before is spoken."""
        if self._synthesizing:
            await asyncio.wait([self._synthesizing])

    async def _drop_speech(self) -> None:
        """Cancel the synthesis in progress."""
        if self._synthesizing:
            await cancel_and_wait(self._synthesizing)
        self._speech = self._synthesizing = None

    async def _begin_utterance(self, event: WyomingEvent) -> None:
        """Begin an utterance; drops one that the client did not stop."""
        if self._utterance and not self._utterance.complete:
            self._request = self._request or self._utterance.request
            await self._drop_utterance()
        self._format = SampleFormat.parse(event.data)

    async def _handle_audio(self, event: WyomingEvent) -> None:
        format = self._format.update(event.data)
        utterance = self._utterance
        if not utterance or utterance.complete:
            await self._wait_for_answer()
            if self._is_finishing:
                raise ShuttingDownError("The server is shutting down.")
            request, self._request, self._format = self._request or TranscribeRequest(), None, format
            utterance = self._utterance = WyomingUtterance(self._service, request, format, client=self.client)
            self._pace = SendRateMeter(format.rate * format.width * format.channels / SLOWER_THAN_SPEECH)
            SENDING_CLIENT.set(self)
            self._transcribing = asyncio.create_task(utterance.transcribe(self._send_event))
            self._transcribing.add_done_callback(self._handle_transcription_end)
        elif format != utterance.format:
            raise InvalidRequestError(
                f"The audio format changed within an utterance, from {utterance.format} to {format}: send audio-start first."
            )
        await utterance.feed(event.payload)

    async def _finish_utterance(self) -> None:
        self._format = SampleFormat()
        if self._utterance and not self._utterance.complete:
            self._utterance.stop()
            return
        await self._wait_for_answer()
        self._request = None
        for event in TranscriptEncoder(streaming=self._service.settings.wyoming.streaming).end():  # no audio: an empty transcript
            await self._send_event(event)

    def _handle_transcription_end(self, task: asyncio.Task[None]) -> None:
        if self._is_finishing or (not task.cancelled() and task.exception()):
            self._handle_task_end(task)

    async def _wait_for_answer(self) -> None:
        """Wait for the response to the previous utterance."""
        if self._transcribing:
            await asyncio.wait([self._transcribing])

    async def _drop_utterance(self) -> None:
        """Cancel the utterance in progress."""
        if self._transcribing:
            await cancel_and_wait(self._transcribing)
        self._utterance = self._transcribing = None

    async def _send_event(self, event: WyomingEvent) -> None:
        """Write to the client; disconnects one that does not read."""
        self._writer.write(encode_event(event))
        try:
            async with asyncio.timeout(self._stall_s):
                await self._writer.drain()
        except TimeoutError:
            raise ConnectionAbortedError(describe_stall(self._stall_s)) from None

    async def _stop(self, reading: asyncio.Task[None]) -> None:
        await cancel_and_wait(reading)
        await self._drop_utterance()
        await self._drop_speech()

    async def _send_error(self, error: EardrumError) -> None:
        """Send the error, and drain the client's data; at shutdown only for a moment."""
        log.info("Sent an error to the Wyoming client at %s: %s", self.client, error.message)
        longest = LINGER_S if self._is_finishing or isinstance(error, ShuttingDownError) else MAX_LINGER_S
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(longest) as self._lingering, asyncio.timeout(LINGER_S) as silence:
                await self._send_event(WyomingEvent("error", {"text": error.message, "code": error.code}))
                self._writer.write_eof()
                while await self._reader.read(READ_BYTES):
                    silence.reschedule(asyncio.get_running_loop().time() + LINGER_S)
        self._lingering = None

    async def _close(self) -> None:
        self._writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._writer.wait_closed()
                return
        self._writer.transport.abort()
