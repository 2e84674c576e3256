"""A live session between its audio and an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Self

import numpy as np
import pytest
from msgspec.structs import replace

from eardrum.engines.base import Engine, EngineOptions, EngineResult, Window
from eardrum.errors import AudioError, RunnerCrashedError
from eardrum.gateway.live.replay_buffer import COMMIT_ANSWER_S, ReplayBuffer, SessionHistory
from eardrum.live import (
    AudioEncoding,
    AudioFormat,
    ClearCommand,
    CommitCommand,
    EndpointingSettings,
    FinalTranscript,
    FinishCommand,
    LiveCommand,
    LiveEvent,
    SessionEnded,
    SessionSettings,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.fair_queue import ServiceClass
from eardrum.runner.live.driver import LiveSessionDriver
from eardrum.runner.vad import VadModel
from eardrum.transcription import SAMPLE_RATE, Capabilities, Segment, TranscriptionRequest
from tests.recordings import create_silence, encode_pcm, encode_speech, load_speech, resample

UTTERANCES = SessionSettings(partials=False, endpointing=EndpointingSettings(silence_s=0.3))


class ContextNotingEngine(Engine):
    """Not a model: its text is a number, and it notes what came before, as engines do that go by it."""

    capabilities = Capabilities(max_window_s=10, max_batch=8)
    sequential = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []
        """How many windows came at once, and what was said before them."""
        self.fail: Callable[[Window], bool] = lambda _: False
        self.spoils: Callable[[Window], bool] = lambda _: False
        self.gate = Event()
        self.gate.set()

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        raise NotImplementedError

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        self.seen.append((len(windows), windows[0].context.text))
        assert self.gate.wait(60)
        if self.fail(windows[0]):
            raise RuntimeError("scripted")
        if self.spoils(windows[0]):
            return [EngineResult([None]) for _ in windows]  # type: ignore[list-item]
        said = f"n{windows[0].start:.1f}"
        windows[0].context.text += said
        return [EngineResult([Segment(0.0, window.seconds, said)], "en") for window in windows]


@contextmanager
def run_driver(settings: SessionSettings = UTTERANCES) -> Iterator[tuple[ContextNotingEngine, Callable[..., list[LiveEvent]]]]:
    """An engine, and what takes messages to it and gives the events of the session. Functions among them get the batcher."""
    engine = ContextNotingEngine()
    batcher = WindowBatcher(engine, batch=4)

    async def talk(*messages: object) -> list[LiveEvent]:
        driver = LiveSessionDriver(settings, batcher=batcher, vad=VadModel(), capabilities=engine.capabilities, max_seconds=60)
        try:
            async with asyncio.timeout(60):
                for message in (*messages, FinishCommand()):
                    if callable(message):
                        message(batcher)
                    else:
                        await driver.take_message(message)
                return [event async for event in driver.stream_events()]
        finally:
            await driver.close()

    try:
        yield engine, lambda *messages: asyncio.run(talk(*messages))
    finally:
        batcher.close()


def submit_other_window(batcher: WindowBatcher) -> None:
    """Give the engine a window of another request."""
    window = Window(create_silence(1), 0.0, 1.0, (0.0, 1.0), TranscriptionRequest())
    batcher.submit(batcher.allocate_request_id(), window, ServiceClass.LIVE)


def test_an_engine_that_goes_by_what_was_said_gets_windows_one_by_one() -> None:
    with run_driver() as (engine, talk):
        events = talk(encode_pcm(np.concatenate([load_speech(), create_silence(1), load_speech()])))
    finals = [event for event in events if isinstance(event, FinalTranscript)]
    assert len(finals) > 4
    decoded = [(count, text) for count, text in engine.seen if text in ("", *_list_contexts(finals))]
    assert {count for count, _ in engine.seen} == {1}
    assert {text for _, text in decoded} == {"", *_list_contexts(finals[:-1])}


def _list_contexts(finals: list[FinalTranscript]) -> list[str]:
    return ["".join(final.text for final in finals[: count + 1]) for count in range(len(finals))]


def test_an_engine_that_breaks_on_a_window_costs_one_utterance() -> None:
    with run_driver() as (engine, talk):
        engine.fail = lambda window: window.start < 1
        events = talk(encode_pcm(load_speech()))
    outcomes = [event for event in events if isinstance(event, FinalTranscript | UtteranceFailed)]
    assert isinstance(outcomes[0], UtteranceFailed)
    assert "scripted" in outcomes[0].error.message
    assert all(isinstance(event, FinalTranscript) for event in outcomes[1:])
    assert len(outcomes) > 2


def test_what_was_cleared_has_no_text() -> None:
    with run_driver(SessionSettings(endpointing=None)) as (_, talk):
        events = talk(encode_pcm(load_speech()), ClearCommand(), encode_pcm(load_speech()[: 3 * 16_000]), CommitCommand())
    assert [type(event) for event in events if isinstance(event, FinalTranscript | UtteranceCleared)] == [
        UtteranceCleared,
        FinalTranscript,
    ]


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x00\x00" * 100])
def test_hardly_any_audio_ends_without_a_text(data: bytes) -> None:
    with run_driver() as (engine, talk):
        (ended,) = talk(data)
    assert ended.duration == pytest.approx(len(data) // 2 / 16_000)
    assert not engine.seen


def test_a_result_that_cannot_be_used_costs_one_utterance() -> None:
    """That of an engine of another package, for instance."""
    with run_driver() as (engine, talk):
        engine.spoils = lambda window: window.start < 1
        events = talk(encode_pcm(load_speech()))
    first, *others = [event for event in events if isinstance(event, FinalTranscript | UtteranceFailed)]
    assert isinstance(first, UtteranceFailed)
    assert len(others) > 1
    assert all(isinstance(event, FinalTranscript) for event in others)


def test_a_partial_that_has_become_a_final_is_decoded_before_the_next_one() -> None:
    """The engine is busy with another request meanwhile, so that both wait."""
    settings = SessionSettings(endpointing=EndpointingSettings(silence_s=0.3))
    with run_driver(settings) as (engine, talk):
        sentence = load_speech()[: 3 * SAMPLE_RATE]
        said = np.concatenate([sentence, create_silence(1), sentence, create_silence(1)])
        events = talk(lambda _: engine.gate.clear(), submit_other_window, encode_pcm(said), lambda _: engine.gate.set())
    contexts = [(count, context) for count, context in engine.seen[1:]]
    finals = [event for event in events if isinstance(event, FinalTranscript)]
    assert len(finals) > 1
    assert {count for count, _ in contexts} == {1}
    assert contexts[-1][1] == _list_contexts(finals[:-1])[-1]


def test_windows_that_were_cleared_are_not_decoded() -> None:
    with run_driver(SessionSettings(endpointing=None, partials=False)) as (engine, talk):
        talk(
            lambda _: engine.gate.clear(),
            encode_pcm(load_speech()),
            ClearCommand(),
            lambda _: engine.gate.set(),
            encode_pcm(load_speech()),
            CommitCommand(),
        )
        cleared = len(engine.seen)
    with run_driver(SessionSettings(endpointing=None, partials=False)) as (engine, talk):
        talk(encode_pcm(load_speech()), CommitCommand())
    assert len(engine.seen) > 2
    assert cleared == 1 + len(engine.seen), "only the one that the engine had already"


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 24_000, 44_100, 192_000, 384_000])
def test_a_commit_is_answered_at_its_own_time_whatever_the_rate(rate: int) -> None:
    """By which the gateway knows that it was answered."""
    settings = SessionSettings(partials=False, endpointing=None, format=AudioFormat(rate=rate))
    with run_driver(settings) as (_, talk):
        speech = encode_pcm(resample(load_speech()[: 3 * SAMPLE_RATE], rate))
        sizes = [round(rate * seconds) * 2 for seconds in (0.7, 1.9013)]
        events = talk(speech[: sizes[0]], CommitCommand(), speech[sizes[0] : sizes[1]], CommitCommand())
    ends = [event.end for event in events if isinstance(event, UtteranceCommitted)]
    assert ends == pytest.approx([0.7, 1.9013], abs=COMMIT_ANSWER_S / 5)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000])
def test_utterances_that_another_process_decodes_keep_their_times(rate: int) -> None:
    """The first process dies with all texts: the second one gets the audio of each utterance without the silence between them."""
    settings = replace(UTTERANCES, format=AudioFormat(rate=rate))
    said = np.concatenate(
        [load_speech()[: 5 * SAMPLE_RATE], create_silence(3.1), load_speech()[: 5 * SAMPLE_RATE], create_silence(2)]
    )
    history = SessionHistory(settings)
    history.buffer.feed(encode_pcm(resample(said, rate)))
    with run_driver(settings) as (_, talk):
        for event in talk(*take_all(history.buffer)):
            if not isinstance(event, FinalTranscript | SessionEnded):
                history.handle_event(event)
    expected = dict(history.merger.open_utterances)
    assert len(expected) > 1
    assert history.handle_crash(RunnerCrashedError("It died.")) == []
    replay = history.start_replay()
    with run_driver(replay.settings) as (_, talk):
        told = [history.handle_event(event) for event in talk(*replay.items, *take_all(history.buffer))]
    finals = [event for event in told if isinstance(event, FinalTranscript)]
    assert [final.utterance for final in finals] == list(expected)
    for final in finals:
        utterance = expected[final.utterance]
        assert (final.start, final.end) == (utterance.start, utterance.end)
        for segment in final.segments:
            assert utterance.start - 0.05 <= segment.start < segment.end <= utterance.end + 0.001


def take_all(buffer: ReplayBuffer) -> list[bytes | LiveCommand]:
    return list(iter(buffer.take_next, None))


def test_what_was_said_before_a_stream_became_too_long_has_its_text() -> None:
    async def listen() -> tuple[list[LiveEvent], AudioError]:
        settings = replace(UTTERANCES, format=AudioFormat(AudioEncoding.CONTAINER))
        driver = LiveSessionDriver(settings, batcher=batcher, vad=VadModel(), capabilities=engine.capabilities, max_seconds=6)
        events: list[LiveEvent] = []
        try:
            await driver.take_message(encode_speech("ogg"))
            async with asyncio.timeout(60):
                async for event in driver.stream_events():
                    events.append(event)  # noqa: PERF401 -- what came before the error counts
        except AudioError as error:
            return events, error
        finally:
            await driver.close()
        raise AssertionError("The stream was not too long.")

    engine = ContextNotingEngine()
    batcher = WindowBatcher(engine, batch=4)
    try:
        events, error = asyncio.run(listen())
    finally:
        batcher.close()
    assert "longer than 6 s" in error.message
    assert isinstance(events[-1], FinalTranscript)
    assert 5.5 < events[-1].end <= 6
