"""One request inside a runner: when its windows reach the engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Hashable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from eardrum.engines.base import Audio, Engine, EngineOptions, EngineResult, Window
from eardrum.errors import AudioError, UnsupportedFeatureError
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.byte_pipe import BytePipe
from eardrum.runner.decoder import AudioDecoder
from eardrum.runner.segmenter import SegmenterConfig
from eardrum.runner.transcription import BLOCK_SAMPLES, TranscriptionJob, adjust_config, split_blocks
from eardrum.runner.vad import SpeechProbabilities, VadModel, VadStream
from eardrum.transcription import (
    SAMPLE_RATE,
    Capabilities,
    Segment,
    TranscriptionEvent,
    TranscriptionRequest,
    TranscriptionSummary,
    WindowCheckpoint,
)
from tests.recordings import encode_pcm, encode_speech, load_speech, shift_timestamps

RAW = TranscriptionRequest(raw_pcm=True)


class CountingEngine(Engine):
    """Not a model: notes how much of the request had been decoded each time windows came."""

    capabilities = Capabilities(max_window_s=10, max_batch=8)

    def __init__(self) -> None:
        self.listener: TranscriptionJob | None = None
        self.decoded_s: list[float] = []
        self.called = threading.Event()

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        raise NotImplementedError

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        assert self.listener
        self.decoded_s.append(self.listener._decoder.samples / SAMPLE_RATE)
        self.called.set()
        return [EngineResult([Segment(0.0, window.seconds, "heard")], "en") for window in windows]

    def close(self) -> None:
        """Nothing to let go of."""


async def collect_events(
    events: AsyncGenerator[TranscriptionEvent, None], into: list[TranscriptionEvent]
) -> list[TranscriptionEvent]:
    async for event in events:
        into.append(event)  # noqa: PERF401 -- what came before an error counts
    return into


def create_job(engine: CountingEngine, batcher: WindowBatcher) -> TranscriptionJob:
    engine.listener = TranscriptionJob(RAW, batcher=batcher, vad=VadModel(), cutting=SegmenterConfig(max_s=10), max_seconds=3600)
    return engine.listener


async def run_with_delayed_end(seconds: float, held_back: int) -> tuple[list[float], list[TranscriptionEvent]]:
    """Speech whose last `held_back` bytes arrive when the engine has been called once."""
    engine = CountingEngine()
    batcher = WindowBatcher(engine, batch=4)
    try:
        listener = create_job(engine, batcher)
        data = encode_pcm(np.tile(load_speech(), int(seconds / 18) + 1)[: int(seconds * SAMPLE_RATE)])
        await listener.pipe.feed(data[: len(data) - held_back])
        if not held_back:
            listener.pipe.finish()
        events = asyncio.ensure_future(collect_events(listener.stream_events(), []))
        if held_back:
            assert await asyncio.to_thread(engine.called.wait, 20)
        await listener.pipe.feed(data[len(data) - held_back :])
        listener.pipe.finish()
        return engine.decoded_s, await events
    finally:
        await asyncio.to_thread(batcher.close)


def test_a_clip_that_is_all_here_is_cut_whole_before_it_is_decoded() -> None:
    decoded_s, events = asyncio.run(run_with_delayed_end(29.0, 0))
    assert decoded_s[0] == pytest.approx(29.0)
    assert isinstance(events[-1], TranscriptionSummary)
    assert events[-1].windows > 2


def test_what_is_still_arriving_is_decoded_as_it_comes() -> None:
    decoded_s, events = asyncio.run(run_with_delayed_end(29.0, 2))
    assert decoded_s[0] < 29.0
    assert isinstance(events[-1], TranscriptionSummary)


def test_times_and_warnings_are_those_of_the_container() -> None:
    """A recorder that paused for 30 s, and a file that breaks off."""
    engine = CountingEngine()
    batcher = WindowBatcher(engine, batch=4)
    data = shift_timestamps(encode_speech("webm"), "webm", lambda at: at if at < 6 else at + 30)

    async def run() -> list[TranscriptionEvent]:
        engine.listener = TranscriptionJob(
            TranscriptionRequest(), batcher=batcher, vad=VadModel(), cutting=SegmenterConfig(max_s=10), max_seconds=3600
        )
        await engine.listener.pipe.feed(data[: len(data) * 9 // 10])
        engine.listener.pipe.finish()
        return await collect_events(engine.listener.stream_events(), [])

    try:
        events = asyncio.run(run())
    finally:
        batcher.close()
    starts = [event.start for event in events if isinstance(event, Segment)]
    assert min(starts) < 0.3
    assert not [start for start in starts if 6 <= start < 35.6]
    assert max(starts) > 36
    summary = events[-1]
    assert isinstance(summary, TranscriptionSummary)
    assert summary.duration == pytest.approx(46, abs=1.5)
    assert [warning[:20] for warning in summary.warnings] == ["There is no audio fr", "The file breaks off "]


def test_a_gap_of_hours_costs_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    def count(stream: VadStream, samples: Audio) -> SpeechProbabilities:
        nonlocal looked_at
        looked_at += len(samples)
        return look(stream, samples)

    look = VadStream.__call__
    monkeypatch.setattr(VadStream, "__call__", count)
    engine = CountingEngine()
    batcher = WindowBatcher(engine, batch=4)
    data = shift_timestamps(encode_speech("webm"), "webm", lambda at: at if at < 6 else at + 3 * 3600)

    async def run() -> list[TranscriptionEvent]:
        engine.listener = TranscriptionJob(
            TranscriptionRequest(), batcher=batcher, vad=VadModel(), cutting=SegmenterConfig(max_s=10), max_seconds=86_400
        )
        await engine.listener.pipe.feed(data)
        engine.listener.pipe.finish()
        return await collect_events(engine.listener.stream_events(), [])

    try:
        events = asyncio.run(run())
    finally:
        batcher.close()
    assert looked_at < 60 * SAMPLE_RATE
    summary = events[-1]
    assert isinstance(summary, TranscriptionSummary)
    assert summary.duration == pytest.approx(3 * 3600 + 18, abs=0.5)
    assert [event.start for event in events if isinstance(event, Segment)][-1] > 3 * 3600 + 6


def test_a_clip_that_breaks_off_gives_what_was_heard_of_it() -> None:
    """Windows held back are decoded before the error is told."""
    engine = CountingEngine()
    batcher = WindowBatcher(engine, batch=4)

    async def run() -> list[TranscriptionEvent]:
        engine.listener = TranscriptionJob(
            RAW, batcher=batcher, vad=VadModel(), cutting=SegmenterConfig(max_s=10), max_seconds=20
        )
        await engine.listener.pipe.feed(encode_pcm(np.tile(load_speech(), 2)[: 29 * SAMPLE_RATE]))
        engine.listener.pipe.finish()
        events: list[TranscriptionEvent] = []
        with pytest.raises(AudioError, match="longer than"):
            await collect_events(engine.listener.stream_events(), events)
        return events

    try:
        assert [type(event) for event in asyncio.run(run())].count(Segment) >= 1
    finally:
        batcher.close()


class PolyglotEngine(CountingEngine):
    """An engine that is not one: hears English in the first window, Dutch in the last, German between."""

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """A language by the time."""
        return [EngineResult([Segment(0.0, window.seconds, "heard")], self._language(window)) for window in windows]

    def _language(self, window: Window) -> str:
        return "en" if window.start < 1 else "nl" if window.start > 24 else "de"


def test_the_language_is_that_of_most_of_the_speech() -> None:
    engine = PolyglotEngine()
    batcher = WindowBatcher(engine, batch=1)

    async def run() -> list[TranscriptionEvent]:
        listener = create_job(engine, batcher)
        events = asyncio.ensure_future(collect_events(listener.stream_events(), []))
        await listener.pipe.feed(encode_pcm(np.tile(load_speech(), 2)[: 33 * SAMPLE_RATE]))
        listener.pipe.finish()
        return await events

    try:
        events = asyncio.run(run())
    finally:
        batcher.close()
    summary = events[-1]
    assert isinstance(summary, TranscriptionSummary)
    assert summary.language == "de"


def test_windows_with_languages_of_their_own_are_not_packed() -> None:
    packed = SegmenterConfig(max_s=30, pack=True, silence_s=2.0, padding_s=1.0)
    assert adjust_config(packed, TranscriptionRequest()) == packed
    apart = adjust_config(packed, TranscriptionRequest(multilingual=True))
    assert (apart.pack, apart.silence_s) == (False, 1.0)
    assert adjust_config(packed, TranscriptionRequest(multilingual=True, language="de")) == packed
    assert adjust_config(packed, TranscriptionRequest(multilingual=True, vad_silence_s=0.4)).silence_s == 0.4


async def detect_language(audio: Audio, engine: PolyglotEngine) -> TranscriptionSummary:
    """Ask for the language alone, of audio whose end never comes."""
    batcher = WindowBatcher(engine, batch=1)
    try:
        request = TranscriptionRequest(raw_pcm=True, language_only=True)
        engine.listener = job = TranscriptionJob(
            request, batcher=batcher, vad=VadModel(), cutting=SegmenterConfig(max_s=10), max_seconds=3600
        )
        sending = asyncio.ensure_future(job.pipe.feed(encode_pcm(audio)))
        async with asyncio.timeout(60):
            summary = (await collect_events(job.stream_events(), []))[-1]
        await sending
        assert isinstance(summary, TranscriptionSummary)
        return summary
    finally:
        await asyncio.to_thread(batcher.close)


class DetectingEngine(PolyglotEngine):
    """The same, and declares that it detects languages."""

    capabilities = Capabilities(detects_language=True, max_window_s=10, max_batch=8)


def test_half_a_minute_of_speech_decides_the_language() -> None:
    engine = DetectingEngine()
    summary = asyncio.run(detect_language(np.tile(load_speech(), 10), engine))
    assert summary.language == "nl"
    assert summary.language_probability == pytest.approx(0.41, abs=0.03)
    assert summary.duration < 60


def test_an_engine_that_detects_no_language_refuses() -> None:
    with pytest.raises(UnsupportedFeatureError, match="does not detect languages"):
        asyncio.run(detect_language(load_speech(), PolyglotEngine()))


class ContextEngine(CountingEngine):
    """Not a model: its text names the audio and the text before, as a model with memory would."""

    sequential = True
    capabilities = Capabilities(max_window_s=10, max_batch=1)

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        (window,) = windows
        context = window.context
        text = f"{window.start:.2f} after {context.text or 'nothing'}"
        self.decoded_s.append(window.start)
        context.text, context.unheard = f"{window.start:.2f}", context.unheard + 1
        context.votes["en"] = context.votes.get("en", 0.0) + window.seconds
        return [EngineResult([Segment(0.0, window.seconds, text)], "en")]


async def transcribe_from(
    resume: WindowCheckpoint | None, stop_after: int = 1000
) -> tuple[ContextEngine, list[TranscriptionEvent]]:
    """Transcribe 58 s of speech behind a checkpoint, and stop after so many more."""
    engine = ContextEngine()
    batcher = WindowBatcher(engine, batch=1)
    try:
        request = TranscriptionRequest(raw_pcm=True, checkpoints=True, resume=resume)
        job = TranscriptionJob(request, batcher=batcher, vad=VadModel(), cutting=SegmenterConfig(max_s=10), max_seconds=3600)

        async def feed() -> None:
            await job.pipe.feed(encode_pcm(np.tile(load_speech(), 4)[: 58 * SAMPLE_RATE]))
            job.pipe.finish()

        feeding = asyncio.create_task(feed())
        seen: list[TranscriptionEvent] = []
        async with aclosing(job.stream_events()) as events:
            async for event in events:
                seen.append(event)
                if sum(isinstance(one, WindowCheckpoint) for one in seen) >= stop_after:
                    break
        feeding.cancel()
        return engine, seen
    finally:
        await asyncio.to_thread(batcher.close)


def test_a_request_that_continues_behind_a_checkpoint_gives_the_rest_and_nothing_twice() -> None:
    whole_engine, whole = asyncio.run(transcribe_from(None))
    checkpoints = [event for event in whole if isinstance(event, WindowCheckpoint)]
    assert len(checkpoints) == len(whole_engine.decoded_s) > 5
    assert [checkpoint.windows for checkpoint in checkpoints] == list(range(1, len(checkpoints) + 1))
    for cut in (1, 3, len(checkpoints)):
        _, first = asyncio.run(transcribe_from(None, stop_after=cut))
        saved = [event for event in first if isinstance(event, WindowCheckpoint)][-1]
        sent = json.dumps(TranscriptionRequest(resume=saved).to_json())
        assert TranscriptionRequest.from_json(json.loads(sent)).resume == saved == checkpoints[cut - 1]
        engine, rest = asyncio.run(transcribe_from(saved))
        assert engine.decoded_s == whole_engine.decoded_s[cut:]
        texts = [event for event in first + rest if isinstance(event, Segment)]
        assert texts == [event for event in whole if isinstance(event, Segment)]
        assert isinstance(whole[-1], TranscriptionSummary)
        assert isinstance(rest[-1], TranscriptionSummary)
        for name in ("language", "duration", "windows", "language_probability"):
            assert getattr(rest[-1], name) == getattr(whole[-1], name), name


def test_checkpoints_are_sent_only_where_they_are_wanted() -> None:
    _, events = asyncio.run(run_with_delayed_end(29.0, 0))
    assert not [event for event in events if isinstance(event, WindowCheckpoint)]


async def split_arriving(data: bytes, portion: int) -> list[Audio]:
    """The blocks of raw samples that arrive in portions of so many bytes."""
    pipe = BytePipe()
    for at in range(0, len(data), portion):
        await pipe.feed(data[at : at + portion])
    pipe.finish()
    return list(split_blocks(AudioDecoder(pipe, raw_pcm=True, max_seconds=60)))


def test_a_recording_is_split_alike_however_its_bytes_arrive() -> None:
    """Another process, which continues behind a checkpoint, gets them faster, and has to cut the same windows."""
    data = encode_pcm(np.tile(load_speech(), 2)[: 30 * SAMPLE_RATE + 5])
    at_once = asyncio.run(split_arriving(data, len(data)))
    assert [len(block) for block in at_once] == [BLOCK_SAMPLES] * 6 + [512 * 2]
    for portion in (3_200, 65_537, 200_000):
        blocks = asyncio.run(split_arriving(data, portion))
        assert [len(block) for block in blocks] == [len(block) for block in at_once]
        assert (np.concatenate(blocks) == np.concatenate(at_once)).all()


class PanickyEngine(CountingEngine):
    """It cannot even tell which windows may share a batch."""

    def batch_key(self, window: Window) -> Hashable:
        raise RuntimeError("no key")


@pytest.mark.parametrize("seconds", [5.0, 59.0], ids=["clip", "file"])
def test_an_engine_that_fails_when_a_window_is_queued_ends_the_request(seconds: float) -> None:
    async def run() -> None:
        engine = PanickyEngine()
        batcher = WindowBatcher(engine, batch=4)
        try:
            job = create_job(engine, batcher)
            feeding = asyncio.create_task(job.pipe.feed(encode_pcm(np.tile(load_speech(), 4)[: int(seconds * SAMPLE_RATE)])))
            await asyncio.sleep(0)
            job.pipe.finish()
            async with asyncio.timeout(20), aclosing(job.stream_events()) as events:
                await collect_events(events, [])
        finally:
            feeding.cancel()
            await asyncio.to_thread(batcher.close)

    with pytest.raises(AudioError, match="no key"):
        asyncio.run(run())
