"""Live speech from a Whisper, to which every window costs the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from msgspec.structs import replace

from eardrum.live import CommitCommand, FinalTranscript, FinishCommand, LiveEvent, PartialTranscript, SessionSettings
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.live.driver import LiveSessionDriver
from eardrum.runner.vad import VadModel
from eardrum.transcription import Capabilities, Priority, TranscriptionRequest
from tests.models import build
from tests.models.tiny_whisper import load_clips
from tests.recordings import create_silence, encode_pcm

pytestmark = pytest.mark.slow

ENGLISH = TranscriptionRequest(language="en", priority=Priority.LIVE)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WindowBatcher, Capabilities]]:
    module = pytest.importorskip("eardrum.engines.faster_whisper")
    source = build("faster_whisper", tmp_path_factory.mktemp("live-whisper") / "hearing")
    engine = module.FasterWhisper.load(source, module.FasterWhisper.Options(device="cpu"))
    batcher = WindowBatcher(engine, batch=1)
    yield batcher, engine.capabilities
    batcher.close()


def run_session(whisper: tuple[WindowBatcher, Capabilities], settings: SessionSettings, *, step: float = 0.0) -> list[LiveEvent]:
    """The English clips, one after another."""
    batcher, can = whisper
    said = [clip.samples for clip in load_clips() if clip.language == "en"]
    data = encode_pcm(np.concatenate([piece for samples in said for piece in (samples, create_silence(1.0))]))

    async def talk() -> list[LiveEvent]:
        driver = LiveSessionDriver(settings, batcher=batcher, vad=VadModel(), capabilities=can, max_seconds=600)
        try:
            async with asyncio.timeout(120):
                for at in range(0, len(data), 3200):
                    await driver.take_message(data[at : at + 3200])
                    await asyncio.sleep(step)
                if settings.endpointing is None:
                    await driver.take_message(CommitCommand())
                await driver.take_message(FinishCommand())
                return [event async for event in driver.stream_events()]
        finally:
            await driver.close()

    return asyncio.run(talk())


def test_clips_are_utterances_with_their_texts(whisper: tuple[WindowBatcher, Capabilities]) -> None:
    events = run_session(whisper, SessionSettings(request=ENGLISH, partials=False))
    assert [event.text for event in events if isinstance(event, FinalTranscript)] == [
        c.text for c in load_clips() if c.language == "en"
    ]


def test_one_utterance_holds_them_all_until_the_commit(whisper: tuple[WindowBatcher, Capabilities]) -> None:
    events = run_session(whisper, SessionSettings(request=replace(ENGLISH, words=True), endpointing=None, partials=False))
    (final,) = [event for event in events if isinstance(event, FinalTranscript)]
    assert final.text.count(".") >= len([c for c in load_clips() if c.language == "en"]) - 1
    times = [word.start for segment in final.segments for word in segment.words]
    assert times == sorted(times)


def test_partials_come_as_often_as_the_engine_can(whisper: tuple[WindowBatcher, Capabilities]) -> None:
    events = run_session(whisper, SessionSettings(request=ENGLISH), step=0.05)
    partials = [event for event in events if isinstance(event, PartialTranscript)]
    finals = {event.utterance: event.text for event in events if isinstance(event, FinalTranscript)}
    assert partials
    assert all(finals[partial.utterance].startswith(partial.stable) for partial in partials)
