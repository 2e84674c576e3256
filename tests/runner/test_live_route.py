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
    decode_event,
)
from eardrum.runner.app import RunnerApp
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.live.driver import MAX_QUEUED_EVENTS, LiveSessionDriver
from eardrum.runner.vad import VadModel
from eardrum.transcription import SpeechTask, TranscriptionRequest
from tests.recordings import (
    SPEECH_TEXT,
    create_silence,
    encode,
    encode_g711,
    encode_pcm,
    load_announcements,
    load_speech,
    resample,
    shift_timestamps,
)

pytestmark = pytest.mark.slow

Messages = AsyncIterator[bytes | LiveCommand]


@pytest.fixture(scope="module")
def moonshine_batcher() -> Iterator[WindowBatcher]:
    """The embedded model, one window at a time so that texts repeat."""
    model = Moonshine.load(ModelCatalog(config.Settings()).find_model(EMBEDDED_ID).source, Moonshine.Options())
    batcher = WindowBatcher(model, batch=1)
    yield batcher
    batcher.close()


@asynccontextmanager
async def connect_client(batcher: WindowBatcher) -> AsyncIterator[RunnerUpstream]:
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


async def run_session(batcher: WindowBatcher, settings: SessionSettings, messages: Messages) -> list[LiveEvent]:
    """All events of a session in which these messages are sent."""
    async with connect_client(batcher) as upstream:
        return [event async for event in upstream.stream_live(settings, messages)]


def list_events(kind: type, events: list[LiveEvent]) -> list:
    return [event for event in events if isinstance(event, kind)]


async def create_talk(data: bytes, portion: int = 3200, wait: float = 0.0) -> Messages:
    """The audio in portions, with a rest between them, then the end."""
    for at in range(0, len(data), portion):
        yield data[at : at + portion]
        await asyncio.sleep(wait)
    yield FinishCommand()
    await asyncio.Event().wait()


def join_finals(events: list[LiveEvent]) -> str:
    return " ".join(final.text for final in list_events(FinalTranscript, events) if final.text)


def split_words(text: str) -> list[str]:
    return [word.strip(",.?!").lower() for word in text.split()]


def measure_likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, split_words(one), split_words(other), autojunk=False).ratio()


def test_a_recording_becomes_utterances_that_end_at_pauses(moonshine_batcher: WindowBatcher) -> None:
    events = asyncio.run(
        run_session(
            moonshine_batcher,
            SessionSettings(partials=False),
            create_talk(encode_pcm(load_speech()) + encode_pcm(create_silence(1))),
        )
    )
    assert join_finals(events) == SPEECH_TEXT
    numbers = [event.utterance for event in list_events(FinalTranscript, events)]
    assert numbers == list(range(1, len(numbers) + 1))
    for kind in (SpeechStarted, SpeechStopped, UtteranceCommitted):
        assert [event.utterance for event in list_events(kind, events)] == numbers
    assert isinstance(events[-1], SessionEnded)
    assert events[-1].duration == pytest.approx(len(load_speech()) / 16_000 + 1)
    assert events[-1].language == "en"


def test_without_endpointing_a_commit_ends_the_utterance(moonshine_batcher: WindowBatcher) -> None:
    async def talk() -> Messages:
        yield CommitCommand()
        yield encode_pcm(load_speech())
        yield CommitCommand()
        yield FinishCommand()

    events = asyncio.run(run_session(moonshine_batcher, SessionSettings(endpointing=None, partials=False), talk()))
    (refused,) = list_events(CommandRefused, events)
    assert isinstance(refused.error, EmptyCommitError)
    (final,) = list_events(FinalTranscript, events)
    assert measure_likeness(final.text, SPEECH_TEXT) > 0.98
    assert not list_events(SpeechStarted, events)
    assert events.index(list_events(UtteranceCommitted, events)[0]) < events.index(final)


def test_partials_come_while_somebody_speaks(moonshine_batcher: WindowBatcher) -> None:
    events = asyncio.run(run_session(moonshine_batcher, SessionSettings(), create_talk(encode_pcm(load_speech()), wait=0.02)))
    finals = {final.utterance: final.text for final in list_events(FinalTranscript, events)}
    partials: list[PartialTranscript] = list_events(PartialTranscript, events)
    assert any(partial.stable for partial in partials)
    assert events.index(partials[0]) < events.index(list_events(SpeechStopped, events)[0])
    for partial in partials:
        assert finals[partial.utterance].startswith(partial.stable)
    assert measure_likeness(join_finals(events), SPEECH_TEXT) > 0.95


@pytest.mark.parametrize(
    ("form", "data"),
    [
        (AudioFormat(rate=24_000), lambda: encode_pcm(resample(load_speech(), 24_000))),
        (AudioFormat(AudioEncoding.MULAW, rate=8_000), lambda: encode_g711(resample(load_speech(), 8_000), "pcm_mulaw")),
        (AudioFormat(AudioEncoding.ALAW, rate=8_000), lambda: encode_g711(resample(load_speech(), 8_000), "pcm_alaw")),
        (AudioFormat(AudioEncoding.PCM32F, channels=2), lambda: np.repeat(load_speech(), 2).astype("<f4").tobytes()),
        (AudioFormat(AudioEncoding.CONTAINER), lambda: encode(load_speech(), "webm")),
        (AudioFormat(AudioEncoding.CONTAINER), lambda: encode(load_speech(), "ogg")),
        (AudioFormat(AudioEncoding.CONTAINER), lambda: encode(load_speech(), "mp3")),
    ],
    ids=["24k", "mulaw", "alaw", "f32 stereo", "webm", "ogg", "mp3"],
)
def test_audio_of_any_format_is_heard(moonshine_batcher: WindowBatcher, form: AudioFormat, data: Callable[[], bytes]) -> None:
    events = asyncio.run(run_session(moonshine_batcher, SessionSettings(format=form, partials=False), create_talk(data(), 1001)))
    assert measure_likeness(join_finals(events), SPEECH_TEXT) > 0.95
    assert events[-1].duration == pytest.approx(len(load_speech()) / 16_000, abs=0.3)


def test_a_live_container_keeps_its_head_and_its_clock(moonshine_batcher: WindowBatcher) -> None:
    gap = shift_timestamps(encode(load_speech(), "webm"), "webm", lambda at: at if at < 6 else at + 30)
    form = SessionSettings(format=AudioFormat(AudioEncoding.CONTAINER), partials=False)
    events = asyncio.run(run_session(moonshine_batcher, form, create_talk(gap[: len(gap) * 9 // 10], 1001)))
    finals: list[FinalTranscript] = [final for final in list_events(FinalTranscript, events) if final.text]
    assert finals[0].text.startswith("And Mr. John Dashwood had then leisure")
    assert finals[0].start < 0.3
    assert {round(final.end) // 30 for final in finals} == {0, 1}
    assert not [final for final in finals if final.end - final.start > 12]
    assert events[-1].duration == pytest.approx(46, abs=1.5)
    assert [warning[:20] for warning in events[-1].warnings] == ["There is no audio fr", "The file breaks off "]


def test_one_byte_at_a_time_is_heard_too(moonshine_batcher: WindowBatcher) -> None:
    data = encode_pcm(load_speech()[: 3 * 16_000])
    events = asyncio.run(run_session(moonshine_batcher, SessionSettings(partials=False), create_talk(data, 1)))
    assert events[-1].duration == 3.0
    assert join_finals(events).startswith("And Mr. John Dashwood")


def test_minutes_pushed_at_once_are_heard_to_the_end(moonshine_batcher: WindowBatcher) -> None:
    """Windows wait bounded, and the socket stops being read; nothing is lost."""
    data = np.concatenate([np.concatenate([samples, create_silence(0.7)]) for _, samples, _ in load_announcements()])
    events = asyncio.run(run_session(moonshine_batcher, SessionSettings(), create_talk(encode_pcm(data), 1 << 20)))
    said = " ".join(text for _, _, text in load_announcements())
    assert measure_likeness(join_finals(events), said) > 0.9
    assert len(list_events(UtteranceCommitted, events)) == len(list_events(FinalTranscript, events)) > 30
    assert len(list_events(PartialTranscript, events)) < len(list_events(FinalTranscript, events))


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (SessionSettings(format=AudioFormat(rate=100)), InvalidRequestError),
        (SessionSettings(request=TranscriptionRequest(task=SpeechTask.TRANSLATE)), UnsupportedFeatureError),
    ],
)
def test_what_cannot_be_heard_is_refused_at_once(
    moonshine_batcher: WindowBatcher, settings: SessionSettings, error: type[Exception]
) -> None:
    with pytest.raises(error):
        asyncio.run(run_session(moonshine_batcher, settings, create_talk(b"")))
    assert moonshine_batcher.live_sessions == 0


def test_a_container_that_is_none_ends_the_session_with_an_error(moonshine_batcher: WindowBatcher) -> None:
    with pytest.raises(AudioError, match="cannot be decoded"):
        asyncio.run(
            run_session(
                moonshine_batcher,
                SessionSettings(format=AudioFormat(AudioEncoding.CONTAINER)),
                create_talk(b"this is no audio" * 1000),
            )
        )


def test_the_format_holds_once_there_was_audio(moonshine_batcher: WindowBatcher) -> None:
    other = SessionSettings(format=AudioFormat(rate=8_000), partials=False)

    async def talk() -> Messages:
        yield ConfigureCommand(SessionSettings(partials=False))
        yield encode_pcm(load_speech()[:100])
        yield ConfigureCommand(other)
        async for message in create_talk(encode_pcm(load_speech()[100 : 3 * 16_000])):
            yield message

    events = asyncio.run(run_session(moonshine_batcher, other, talk()))
    (refused,) = list_events(CommandRefused, events)
    assert refused.error.param == "format"
    assert join_finals(events).startswith("And Mr. John Dashwood")


def test_what_is_no_message_ends_the_session_with_an_error(moonshine_batcher: WindowBatcher) -> None:
    async def run() -> list[bytes]:
        async with (
            connect_client(moonshine_batcher) as upstream,
            upstream._session.post("http://runner/live", data=b"nonsense, but long enough") as response,
        ):
            return [line async for line in response.content]

    (line,) = asyncio.run(run())
    with pytest.raises(InvalidRequestError, match="not a message"):
        decode_event(line)


@pytest.mark.parametrize("form", [AudioFormat(), AudioFormat(AudioEncoding.CONTAINER)])
def test_of_a_client_that_vanishes_nothing_is_left(moonshine_batcher: WindowBatcher, form: AudioFormat) -> None:
    data = (
        encode_pcm(np.tile(load_speech(), 3))
        if form.encoding is AudioEncoding.PCM16
        else encode(np.tile(load_speech(), 3), "webm")
    )

    async def run() -> None:
        async with connect_client(moonshine_batcher) as upstream:
            async with aclosing(upstream.stream_live(SessionSettings(format=form), create_talk(data, 1 << 16))) as events:
                async for event in events:
                    if isinstance(event, UtteranceCommitted):
                        break
            async with asyncio.timeout(20):
                while moonshine_batcher.live_sessions:  # noqa: ASYNC110 -- the other end of the socket tells nobody
                    await asyncio.sleep(0.01)

    asyncio.run(run())
    assert not [thread for thread in threading.enumerate() if thread.name == "live-container"]
    assert not moonshine_batcher._queue.take(1)


def test_a_client_that_reads_nothing_is_not_read_from_either(moonshine_batcher: WindowBatcher) -> None:
    """Events that wait are bounded, and so is what is heard ahead of them."""

    async def run() -> int:
        driver = LiveSessionDriver(
            SessionSettings(), batcher=moonshine_batcher, vad=VadModel(), capabilities=Moonshine.capabilities, max_seconds=3600
        )
        try:
            for _ in range(MAX_QUEUED_EVENTS):
                await driver.take_message(CommitCommand())
            for message in (CommitCommand(), encode_pcm(load_speech())):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(driver.take_message(message), 0.1)
            return driver._events.qsize()
        finally:
            await driver.close()

    assert asyncio.run(run()) == MAX_QUEUED_EVENTS
    assert moonshine_batcher.live_sessions == 0
