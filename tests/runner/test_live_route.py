"""Live speech over a runner's socket, with the embedded model."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvicorn

from eardrum.engines.moonshine import Moonshine
from eardrum.errors import EmptyCommitError
from eardrum.gateway.upstreams.session import LiveSession, RunnerSession
from eardrum.live import Committed, Ended, Final, LiveEvent, Partial, Refused, Settings, SpeechStarted, SpeechStopped
from eardrum.runner.app import RunnerApp
from eardrum.runner.batcher import Batcher
from eardrum.runner.vad import Vad
from tests.recordings import SPEECH_TEXT, pcm, silence, speech

Talk = Callable[[LiveSession], Awaitable[None]]


@asynccontextmanager
async def connected(batcher: Batcher) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a runner that listens on a socket."""
    app = RunnerApp(batcher, Vad(), Moonshine.capabilities, max_audio_s=3600)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        server = uvicorn.Server(uvicorn.Config(app, uds=path, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.ensure_future(server.serve())
        while not server.started:  # noqa: ASYNC110 -- it has no event for it
            await asyncio.sleep(0.01)
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as http:
            yield http
        server.should_exit = True
        await serving


async def talked(batcher: Batcher, settings: Settings, talk: Talk) -> list[LiveEvent]:
    """All events of a session in which `talk` is said."""
    async with connected(batcher) as http:
        session = RunnerSession(http, settings)
        talking = asyncio.ensure_future(talk(session))
        events = [event async for event in session.events()]
        await talking
        return events


def of(kind: type, events: list[LiveEvent]) -> list:
    return [event for event in events if isinstance(event, kind)]


async def recording(session: LiveSession) -> None:
    for at in range(0, len(pcm(speech())), 3200):
        await session.feed(pcm(speech())[at : at + 3200])
        await asyncio.sleep(0)
    await session.feed(pcm(silence(1)))
    await session.finish()


@pytest.mark.slow
def test_a_recording_becomes_utterances_that_end_at_pauses(hearing: Batcher) -> None:
    events = asyncio.run(talked(hearing, Settings(), recording))
    assert " ".join(final.text for final in of(Final, events)) == SPEECH_TEXT
    numbers = [event.utterance for event in of(Final, events)]
    assert numbers == list(range(1, len(numbers) + 1))
    for kind in (SpeechStarted, SpeechStopped, Committed):
        assert [event.utterance for event in of(kind, events)] == numbers
    assert isinstance(events[-1], Ended)
    assert events[-1].duration == pytest.approx(len(speech()) / 16_000 + 1)


@pytest.mark.slow
def test_without_endpointing_a_commit_ends_the_utterance(hearing: Batcher) -> None:
    async def talk(session: LiveSession) -> None:
        await session.commit()
        await session.feed(pcm(speech()))
        await session.commit()
        await session.finish()

    events = asyncio.run(talked(hearing, Settings(endpointing=None), talk))
    (refused,) = of(Refused, events)
    assert isinstance(refused.error, EmptyCommitError)
    (final,) = of(Final, events)
    assert final.text == SPEECH_TEXT
    assert not of(SpeechStarted, events)
    assert events.index(of(Committed, events)[0]) < events.index(final)


@pytest.mark.slow
def test_partials_come_while_somebody_speaks(hearing: Batcher) -> None:
    async def talk(session: LiveSession) -> None:
        data = pcm(speech())
        for at in range(0, len(data), 3200):
            await session.feed(data[at : at + 3200])
            await asyncio.sleep(0.02)
        await session.finish()

    events = asyncio.run(talked(hearing, Settings(), talk))
    finals = {final.utterance: final.text for final in of(Final, events)}
    partials: list[Partial] = of(Partial, events)
    assert partials
    for partial in partials:
        assert finals[partial.utterance].startswith(partial.stable)
