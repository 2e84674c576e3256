"""A Wyoming server on loopback whose sessions say what a test has written down, and a client for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from eardrum import config
from eardrum.api.wyoming import utterance
from eardrum.api.wyoming.protocol import FrameDecoder, WyomingEvent, encode_event
from eardrum.api.wyoming.server import WyomingServer
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.live import FinalTranscript, LiveEvent, SessionEnded, SessionSettings
from eardrum.server.lifecycle import bind_socket

HEARD: tuple[LiveEvent, ...] = (FinalTranscript(1, 0.0, 1.0, "lights off", language="en"), SessionEnded(1.0, "en"))


class ScriptedSession:
    """Takes audio, and says its events once it is told to finish."""

    def __init__(self, script: Sequence[LiveEvent | Exception]):
        self.audio = b""
        self.is_finished = False
        self.left = False
        self.says: asyncio.Queue[LiveEvent | Exception] = asyncio.Queue()
        self._script = script

    async def feed(self, audio: bytes) -> None:
        if not self.is_finished:
            self.audio += audio

    async def finish(self) -> None:
        if not self.is_finished:
            self.is_finished = True
            self.say_all()

    def say_all(self) -> None:
        for event in self._script:
            self.says.put_nowait(event)

    async def stream_events(self) -> AsyncGenerator[LiveEvent, None]:
        try:
            while True:
                event = await self.says.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, SessionEnded):
                    return
        finally:
            self.left = True


@dataclass
class SessionScript:
    """What the sessions of a server say, and those there were."""

    says: Sequence[LiveEvent | Exception] = HEARD
    loads: asyncio.Event = field(default_factory=asyncio.Event)
    """The model is loaded."""
    fails: Exception | None = None
    """Why it cannot be."""
    asked: int = 0
    """Sessions that were wanted."""
    opened: list[tuple[Model, SessionSettings, ScriptedSession]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loads.set()

    @asynccontextmanager
    async def open_session(self, service: Service, model: Model, settings: SessionSettings) -> AsyncIterator[ScriptedSession]:
        service.catalog.check_request(model, settings.request)
        self.asked += 1
        await self.loads.wait()
        if self.fails:
            raise self.fails
        session = ScriptedSession(self.says)
        self.opened.append((model, settings, session))
        yield session

    @property
    def session(self) -> ScriptedSession:
        return self.opened[-1][2]


class WyomingClient:
    """Speaks the protocol by the frames of the server itself; what those are worth is another test's business."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer
        self._frames = FrameDecoder()
        self._events: list[WyomingEvent] = []

    async def send_event(self, type: str, payload: bytes = b"", **data: Any) -> None:
        await self.send_raw(encode_event(WyomingEvent(type, data, payload)))

    async def send_raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_utterance(self, audio: bytes = b"\1\0\2\0", **shape: int) -> None:
        """A whole utterance."""
        await self.send_event("audio-start", rate=16000, width=2, channels=1)
        await self.send_event("audio-chunk", audio, **{"rate": 16000, "width": 2, "channels": 1, **shape})
        await self.send_event("audio-stop")

    async def receive_event(self) -> WyomingEvent | None:
        """The next event; None if the server has hung up."""
        while not self._events:
            data = await self.reader.read(1 << 16)
            if not data:
                return None
            self._events += self._frames.feed(data)
        return self._events.pop(0)

    async def receive_answer(self) -> list[WyomingEvent]:
        """Events up to the end of a transcript, or of the connection."""
        events: list[WyomingEvent] = []
        while event := await self.receive_event():
            events.append(event)
            if event.type == "transcript-stop":
                break
        return events

    async def receive_text(self) -> str:
        (transcript,) = [event for event in await self.receive_answer() if event.type == "transcript"]
        return str(transcript.data["text"])


def create_settings(stall_timeout: float = 1, **others: Any) -> config.Settings:
    """Whatever else is on this machine, the embedded model is the default."""
    return config.Settings(default_model="moonshine-tiny-en", limits=config.LimitSettings(stall_timeout=stall_timeout), **others)


async def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what nobody tells."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


Connect = Callable[[], Any]


@asynccontextmanager
async def run_server(
    monkeypatch: pytest.MonkeyPatch, script: SessionScript, chosen: config.Settings | None = None
) -> AsyncIterator[tuple[WyomingServer, Connect]]:
    """A server, and what connects to it; afterwards all tasks are over."""
    monkeypatch.setattr(utterance, "open_session", script.open_session)
    service = Service(chosen or create_settings())
    server = WyomingServer(service, bind_socket("127.0.0.1", 0, ""))
    await server.start()
    clients: list[WyomingClient] = []

    async def connect() -> WyomingClient:
        clients.append(WyomingClient(*await asyncio.open_connection(server.host, server.port)))
        return clients[-1]

    before = asyncio.all_tasks()
    try:
        yield server, connect
    finally:
        for client in clients:
            client.writer.close()
        async with asyncio.timeout(60):
            await server.close()
    assert asyncio.all_tasks() <= before, "a task outlived the server"
