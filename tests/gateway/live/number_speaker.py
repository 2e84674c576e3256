"""A gateway whose models hear numbers (see `tests/programs/fake_runner.py`), and somebody who speaks them."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eardrum import config
from eardrum.errors import EardrumError
from eardrum.gateway.live import ResumableSession, find_live_model, open_session
from eardrum.gateway.service import Service
from eardrum.live import FinalTranscript, LiveEvent, SessionSettings, UtteranceFailed
from tests.programs import FAKE_RUNNER

RATE = 16_000


def speak_words(*values: int, seconds: float = 0.2) -> bytes:
    """Samples that are these words."""
    return b"".join(struct.pack("<h", value) * int(seconds * RATE) for value in values)


def create_silence(seconds: float = 0.6) -> bytes:
    """Samples that are none."""
    return speak_words(0, seconds=seconds)


def speak_sentence(*values: int) -> bytes:
    """Words, and the pause that ends an utterance."""
    return speak_words(*values) + create_silence()


def build_model(folder: Path, *, entry: dict[str, Any] | None = None, **habits: Any) -> dict[str, Any]:
    """A model of a config that hears numbers, with habits that the program lists."""
    python = folder / "python"
    told = shlex.quote(json.dumps({"mark": str(folder / "mark"), **habits}))
    python.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(FAKE_RUNNER)])} --habits {told} "$@"\n')
    python.chmod(0o755)
    return {"engine": "openai_api", "python": str(python), "options": {"url": "http://127.0.0.1:9/v1"}, **(entry or {})}


@asynccontextmanager
async def run_service(folder: Path, models: dict[str, Any], **more: Any) -> AsyncIterator[Service]:
    """A service with these models."""
    file = folder / "config.yaml"
    file.write_text(json.dumps({"models": models, **more}))
    service = Service(config.load_settings(file, environment={}))
    try:
        yield service
    finally:
        await service.shutdown()


@dataclass
class LiveSpeaker:
    """A session, and what came out of it so far."""

    session: ResumableSession
    events: list[LiveEvent] = field(default_factory=list)
    error: EardrumError | None = None
    more: asyncio.Event = field(default_factory=asyncio.Event)

    async def read_events(self) -> None:
        """Take every event."""
        try:
            async for event in self.session.stream_events():
                self.events.append(event)
                self.more.set()
        except EardrumError as error:
            self.error = error
        self.more.set()

    async def wait_until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        """Wait until what came out fulfils this."""
        async with asyncio.timeout(seconds):
            while not condition():
                self.more.clear()
                await self.more.wait()

    async def finish_session(self, seconds: float = 15) -> list[LiveEvent]:
        """Finish, and give all events."""
        await self.session.finish()
        await self.wait_until(lambda: self.error or (self.events and type(self.events[-1]).__name__ == "SessionEnded"), seconds)
        if self.error:
            raise self.error
        return self.events

    def list_events(self, *kinds: type) -> list[Any]:
        """The events of some kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def texts(self) -> dict[int, str]:
        """What each utterance ended with."""
        answers: list[FinalTranscript | UtteranceFailed] = self.list_events(FinalTranscript, UtteranceFailed)
        assert len({answer.utterance for answer in answers}) == len(answers), "an utterance was answered twice"
        return {answer.utterance: answer.text if isinstance(answer, FinalTranscript) else "failed" for answer in answers}


@asynccontextmanager
async def open_speaker(service: Service, name: str = "", settings: SessionSettings | None = None) -> AsyncIterator[LiveSpeaker]:
    """A session with somebody who listens."""
    async with open_session(service, find_live_model(service, name), settings or SessionSettings()) as session:
        speaker = LiveSpeaker(session)
        listening = asyncio.create_task(speaker.read_events())
        try:
            yield speaker
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


def kill_runner(service: Service) -> int:
    """Kill the process of the only model that is up, as the kernel would; gives its pid."""
    pid = service.list_processes()[0].pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    return pid
