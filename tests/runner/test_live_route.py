"""Live speech over a runner's socket, with the embedded model."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from eardrum import config
from eardrum.engines.moonshine import Moonshine
from eardrum.errors import AudioError, EmptyCommitError, InvalidRequestError, UnsupportedFeatureError
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import EMBEDDED_ID
from eardrum.gateway.upstreams.runner import RunnerUpstream
from eardrum.live import (
    AudioEncoding,
    AudioFormat,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    FinalTranscript,
    FinishCommand,
    LiveCommand,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SessionSettings,
    SpeechStarted,
    SpeechStopped,
    UtteranceCommitted,
)
from eardrum.runner.app import RunnerApp
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.live.driver import MAX_QUEUED_EVENTS, LiveSessionDriver
from eardrum.runner.vad import VadModel
from eardrum.runner_protocol import decode_event
from eardrum.transcription import SpeechTask, TranscriptionRequest
from tests.recordings import SPEECH_TEXT, encode, g711, pcm, phone, resampled, retimed, silence, speech

pytestmark = pytest.mark.slow

Messages = AsyncIterator[bytes | LiveCommand]


@pytest.fixture(scope="module")
def hearing() -> Iterator[WindowBatcher]:
    """The embedded model, one window at a time so that texts repeat."""
    model = Moonshine.load(ModelCatalog(config.Settings()).find_model(EMBEDDED_ID).source, Moonshine.Options())
    batcher = WindowBatcher(model, batch=1)
    yield batcher
    batcher.close()


@asynccontextmanager
async def connected(batcher: WindowBatcher) -> AsyncIterator[RunnerUpstream]:
    """The way to a runner that listens on a socket."""
    app = RunnerApp(batcher, VadModel(), Moonshine.capabilities, max_audio_s=3600)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        server = uvicorn.Server(uvicorn.Config(app, uds=path, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
        serving = asyncio.ensure_future(server.serve())
        while not server.started:  # noqa: ASYNC110 -- it has no event for it
            await asyncio.sleep(0.01)
        upstream = RunnerUpstream(path)
        try:
            yield upstream
        finally:
            await upstream.close()
            server.should_exit = True
            await serving


async def talked(batcher: WindowBatcher, settings: SessionSettings, messages: Messages) -> list[LiveEvent]:
    """All events of a session in which these messages are sent."""
    async with connected(batcher) as upstream:
        return [event async for event in upstream.stream_live(settings, messages)]


def of(kind: type, events: list[LiveEvent]) -> list:
    return [event for event in events if isinstance(event, kind)]


async def pushing(data: bytes, portion: int = 3200, wait: float = 0.0) -> Messages:
    """The audio in portions, with a rest between them, then the end."""
    for at in range(0, len(data), portion):
        yield data[at : at + portion]
        await asyncio.sleep(wait)
    yield FinishCommand()
    await asyncio.Event().wait()


def text(events: list[LiveEvent]) -> str:
    return " ".join(final.text for final in of(FinalTranscript, events) if final.text)


def words_of(text: str) -> list[str]:
    return [word.strip(",.?!").lower() for word in text.split()]


def likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, words_of(one), words_of(other), autojunk=False).ratio()


def test_a_recording_becomes_utterances_that_end_at_pauses(hearing: WindowBatcher) -> None:
    events = asyncio.run(talked(hearing, SessionSettings(partials=False), pushing(pcm(speech()) + pcm(silence(1)))))
    assert text(events) == SPEECH_TEXT
    numbers = [event.utterance for event in of(FinalTranscript, events)]
    assert numbers == list(range(1, len(numbers) + 1))
    for kind in (SpeechStarted, SpeechStopped, UtteranceCommitted):
        assert [event.utterance for event in of(kind, events)] == numbers
    assert isinstance(events[-1], SessionEnded)
    assert events[-1].duration == pytest.approx(len(speech()) / 16_000 + 1)
    assert events[-1].language == "en"


def test_without_endpointing_a_commit_ends_the_utterance(hearing: WindowBatcher) -> None:
    async def talk() -> Messages:
        yield CommitCommand()
        yield pcm(speech())
        yield CommitCommand()
        yield FinishCommand()

    events = asyncio.run(talked(hearing, SessionSettings(endpointing=None, partials=False), talk()))
    (refused,) = of(CommandRefused, events)
    assert isinstance(refused.error, EmptyCommitError)
    (final,) = of(FinalTranscript, events)
    assert likeness(final.text, SPEECH_TEXT) > 0.98
    assert not of(SpeechStarted, events)
    assert events.index(of(UtteranceCommitted, events)[0]) < events.index(final)


def test_partials_come_while_somebody_speaks(hearing: WindowBatcher) -> None:
    events = asyncio.run(talked(hearing, SessionSettings(), pushing(pcm(speech()), wait=0.02)))
    finals = {final.utterance: final.text for final in of(FinalTranscript, events)}
    partials: list[PartialTranscript] = of(PartialTranscript, events)
    assert any(partial.stable for partial in partials)
    assert events.index(partials[0]) < events.index(of(SpeechStopped, events)[0])
    for partial in partials:
        assert finals[partial.utterance].startswith(partial.stable)
    assert likeness(text(events), SPEECH_TEXT) > 0.95


@pytest.mark.parametrize(
    ("form", "data"),
    [
        (AudioFormat(rate=24_000), lambda: pcm(resampled(speech(), 24_000))),
        (AudioFormat(AudioEncoding.MULAW, rate=8_000), lambda: g711(resampled(speech(), 8_000), "pcm_mulaw")),
        (AudioFormat(AudioEncoding.ALAW, rate=8_000), lambda: g711(resampled(speech(), 8_000), "pcm_alaw")),
        (AudioFormat(AudioEncoding.PCM32F, channels=2), lambda: np.repeat(speech(), 2).astype("<f4").tobytes()),
        (AudioFormat(AudioEncoding.CONTAINER), lambda: encode(speech(), "webm")),
        (AudioFormat(AudioEncoding.CONTAINER), lambda: encode(speech(), "ogg")),
        (AudioFormat(AudioEncoding.CONTAINER), lambda: encode(speech(), "mp3")),
    ],
    ids=["24k", "mulaw", "alaw", "f32 stereo", "webm", "ogg", "mp3"],
)
def test_audio_of_any_format_is_heard(hearing: WindowBatcher, form: AudioFormat, data: Callable[[], bytes]) -> None:
    events = asyncio.run(talked(hearing, SessionSettings(format=form, partials=False), pushing(data(), 1001)))
    assert likeness(text(events), SPEECH_TEXT) > 0.95
    assert events[-1].duration == pytest.approx(len(speech()) / 16_000, abs=0.3)


def test_a_live_container_keeps_its_head_and_its_clock(hearing: WindowBatcher) -> None:
    gap = retimed(encode(speech(), "webm"), "webm", lambda at: at if at < 6 else at + 30)
    form = SessionSettings(format=AudioFormat(AudioEncoding.CONTAINER), partials=False)
    events = asyncio.run(talked(hearing, form, pushing(gap[: len(gap) * 9 // 10], 1001)))
    finals: list[FinalTranscript] = [final for final in of(FinalTranscript, events) if final.text]
    assert finals[0].text.startswith("And Mr. John Dashwood had then leisure")
    assert finals[0].start < 0.3
    assert {round(final.end) // 30 for final in finals} == {0, 1}
    assert not [final for final in finals if final.end - final.start > 12]
    assert events[-1].duration == pytest.approx(46, abs=1.5)
    assert [warning[:20] for warning in events[-1].warnings] == ["There is no audio fr", "The file breaks off "]


def test_one_byte_at_a_time_is_heard_too(hearing: WindowBatcher) -> None:
    data = pcm(speech()[: 3 * 16_000])
    events = asyncio.run(talked(hearing, SessionSettings(partials=False), pushing(data, 1)))
    assert events[-1].duration == 3.0
    assert text(events).startswith("And Mr. John Dashwood")


def test_minutes_pushed_at_once_are_heard_to_the_end(hearing: WindowBatcher) -> None:
    """Windows wait bounded, and the socket stops being read; nothing is lost."""
    data = np.concatenate([np.concatenate([samples, silence(0.7)]) for _, samples, _ in phone()])
    events = asyncio.run(talked(hearing, SessionSettings(), pushing(pcm(data), 1 << 20)))
    said = " ".join(text for _, _, text in phone())
    assert likeness(text(events), said) > 0.9
    assert len(of(UtteranceCommitted, events)) == len(of(FinalTranscript, events)) > 30
    assert len(of(PartialTranscript, events)) < len(of(FinalTranscript, events))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (SessionSettings(format=AudioFormat(rate=100)), InvalidRequestError),
        (SessionSettings(request=TranscriptionRequest(task=SpeechTask.TRANSLATE)), UnsupportedFeatureError),
    ],
)
def test_what_cannot_be_heard_is_refused_at_once(
    hearing: WindowBatcher, settings: SessionSettings, error: type[Exception]
) -> None:
    with pytest.raises(error):
        asyncio.run(talked(hearing, settings, pushing(b"")))
    assert hearing.live_sessions == 0


def test_a_container_that_is_none_ends_the_session_with_an_error(hearing: WindowBatcher) -> None:
    with pytest.raises(AudioError, match="cannot be decoded"):
        asyncio.run(
            talked(hearing, SessionSettings(format=AudioFormat(AudioEncoding.CONTAINER)), pushing(b"this is no audio" * 1000))
        )


def test_the_format_holds_once_there_was_audio(hearing: WindowBatcher) -> None:
    other = SessionSettings(format=AudioFormat(rate=8_000), partials=False)

    async def talk() -> Messages:
        yield ConfigureCommand(SessionSettings(partials=False))
        yield pcm(speech()[:100])
        yield ConfigureCommand(other)
        async for message in pushing(pcm(speech()[100 : 3 * 16_000])):
            yield message

    events = asyncio.run(talked(hearing, other, talk()))
    (refused,) = of(CommandRefused, events)
    assert refused.error.param == "format"
    assert text(events).startswith("And Mr. John Dashwood")


def test_what_is_no_message_ends_the_session_with_an_error(hearing: WindowBatcher) -> None:
    async def run() -> list[bytes]:
        async with (
            connected(hearing) as upstream,
            upstream._session.post("http://runner/live", data=b"nonsense, but long enough") as response,
        ):
            return [line async for line in response.content]

    (line,) = asyncio.run(run())
    with pytest.raises(InvalidRequestError, match="not a message"):
        decode_event(line)


@pytest.mark.parametrize("form", [AudioFormat(), AudioFormat(AudioEncoding.CONTAINER)])
def test_of_a_client_that_vanishes_nothing_is_left(hearing: WindowBatcher, form: AudioFormat) -> None:
    data = pcm(np.tile(speech(), 3)) if form.encoding is AudioEncoding.PCM16 else encode(np.tile(speech(), 3), "webm")

    async def run() -> None:
        async with connected(hearing) as upstream:
            async with aclosing(upstream.stream_live(SessionSettings(format=form), pushing(data, 1 << 16))) as events:
                async for event in events:
                    if isinstance(event, UtteranceCommitted):
                        break
            async with asyncio.timeout(20):
                while hearing.live_sessions:  # noqa: ASYNC110 -- the other end of the socket tells nobody
                    await asyncio.sleep(0.01)

    asyncio.run(run())
    assert not [thread for thread in threading.enumerate() if thread.name == "live-container"]
    assert not hearing._queue.take(1)


def test_a_client_that_reads_nothing_is_not_read_from_either(hearing: WindowBatcher) -> None:
    """Events that wait are bounded, and so is what is heard ahead of them."""

    async def run() -> int:
        driver = LiveSessionDriver(
            SessionSettings(), batcher=hearing, vad=VadModel(), capabilities=Moonshine.capabilities, max_seconds=3600
        )
        try:
            for _ in range(MAX_QUEUED_EVENTS):
                await driver.take_message(CommitCommand())
            for message in (CommitCommand(), pcm(speech())):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(driver.take_message(message), 0.1)
            return driver._events.qsize()
        finally:
            await driver.close()

    assert asyncio.run(run()) == MAX_QUEUED_EVENTS
    assert hearing.live_sessions == 0
