"""A live session between its audio and an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from eardrum.engines.base import Engine, EngineOptions, EngineResult, Window
from eardrum.live import (
    ClearCommand,
    CommitCommand,
    EndpointingSettings,
    FinalTranscript,
    FinishCommand,
    LiveEvent,
    SessionSettings,
    UtteranceCleared,
    UtteranceFailed,
)
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.live.driver import LiveSessionDriver
from eardrum.runner.vad import VadModel
from eardrum.transcription import Capabilities, Segment
from tests.recordings import create_silence, encode_pcm, load_speech

UTTERANCES = SessionSettings(partials=False, endpointing=EndpointingSettings(silence_s=0.3))


class ContextNotingEngine(Engine):
    """Not a model: its text is a number, and it notes what came before, as engines do that go by it."""

    capabilities = Capabilities(max_window_s=10, max_batch=8)
    sequential = True

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []
        """How many windows came at once, and what was said before them."""
        self.fail: Callable[[Window], bool] = lambda _: False

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        raise NotImplementedError

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        self.seen.append((len(windows), windows[0].context.text))
        if self.fail(windows[0]):
            raise RuntimeError("scripted")
        said = f"n{windows[0].start:.1f}"
        windows[0].context.text += said
        return [EngineResult([Segment(0.0, window.seconds, said)], "en") for window in windows]


@contextmanager
def run_driver(settings: SessionSettings = UTTERANCES) -> Iterator[tuple[ContextNotingEngine, Callable[..., list[LiveEvent]]]]:
    """An engine, and what takes messages to it and gives the events of the session."""
    engine = ContextNotingEngine()
    batcher = WindowBatcher(engine, batch=4)

    async def talk(*messages: object) -> list[LiveEvent]:
        driver = LiveSessionDriver(settings, batcher=batcher, vad=VadModel(), capabilities=engine.capabilities, max_seconds=60)
        try:
            async with asyncio.timeout(60):
                for message in (*messages, FinishCommand()):
                    await driver.take_message(message)
                return [event async for event in driver.stream_events()]
        finally:
            await driver.close()

    try:
        yield engine, lambda *messages: asyncio.run(talk(*messages))
    finally:
        batcher.close()


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
