"""Very quiet speech is noticed and raised; nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from eardrum.engines.base import Engine, EngineOptions, EngineResult, Window
from eardrum.live import EndpointingSettings, FinalTranscript, FinishCommand, LiveEvent, SessionSettings
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.live.driver import LiveSessionDriver
from eardrum.runner.segmenter import SegmenterConfig
from eardrum.runner.transcription import TranscriptionJob
from eardrum.runner.vad import FRAME_SAMPLES, MAX_GAIN_DB, MAX_LIVE_START_DB, AutoGain, VadModel, amplify_quiet
from eardrum.transcription import Capabilities, Segment, TranscriptionRequest
from tests.recordings import Samples, create_noise, create_silence, encode_pcm, load_speech

pytestmark = pytest.mark.slow


BLOCK = FRAME_SAMPLES * 156
VAD = VadModel()


def set_level(level: float, samples: Samples) -> Samples:
    """The samples with this mean level in dBFS, as a file with 16 bits holds them."""
    scaled = samples * 10 ** (level / 20) / samples.std()
    return np.asarray(np.round(scaled * 32768) / 32768, np.float32)


def cut_to_frames(samples: Samples) -> Samples:
    return samples[: len(samples) - len(samples) % FRAME_SAMPLES]


def measure_level(samples: Samples) -> float:
    return float(20 * np.log10(samples.std()))


def detect_speech(samples: Samples, *, gain: AutoGain | None = None, step: int = BLOCK) -> np.ndarray:
    """Where the voice activity model hears speech, with a gain or without."""
    vad, samples = VAD.open_stream(), cut_to_frames(samples)
    blocks = (samples[start : start + step] for start in range(0, len(samples), step))
    return np.concatenate([vad(gain(block) if gain else block) for block in blocks]) > 0.4


def test_what_is_loud_enough_is_not_touched() -> None:
    samples = cut_to_frames(load_speech())
    assert AutoGain()(samples) is samples
    assert amplify_quiet(samples) is samples
    assert np.array_equal(detect_speech(samples), detect_speech(samples, gain=AutoGain()))


@pytest.mark.parametrize("loudness", [-60, -70, -75, -80])
def test_quiet_speech_is_noticed(loudness: int) -> None:
    expected = detect_speech(load_speech())
    found = detect_speech(set_level(loudness, load_speech()), gain=AutoGain())
    assert (found & expected).sum() > 0.9 * expected.sum()


@pytest.mark.parametrize("loudness", [-60, -70])
def test_quiet_live_speech_is_noticed_without_looking_ahead(loudness: int) -> None:
    expected = detect_speech(load_speech())
    found = detect_speech(set_level(loudness, load_speech()), gain=AutoGain(MAX_LIVE_START_DB), step=FRAME_SAMPLES)
    assert (found & expected).sum() > 0.9 * expected.sum()


@pytest.mark.parametrize("loudness", [-30, -60, -70, -80, -90])
def test_noise_does_not_become_speech(loudness: int) -> None:
    white = create_noise(20)
    hum = sum(np.sin(2 * np.pi * 50 * k * np.arange(len(white)) / 16_000) / k for k in range(1, 12))
    for sound in (white, np.asarray(hum, np.float32), create_silence(20)):
        quiet = set_level(loudness, sound) if sound.any() else sound
        assert not detect_speech(quiet, gain=AutoGain()).any()
        assert not detect_speech(quiet, gain=AutoGain(MAX_LIVE_START_DB), step=FRAME_SAMPLES).any()


def test_an_offset_is_no_sound() -> None:
    quiet = set_level(-70, load_speech())
    assert measure_level(AutoGain()(cut_to_frames(quiet + np.float32(0.1)))) > measure_level(quiet) + 20


def test_what_comes_loud_after_a_long_silence_is_not_raised_at_all() -> None:
    begin = int(np.abs(load_speech()).argmax()) - FRAME_SAMPLES // 2
    loud = cut_to_frames(load_speech()[begin : begin + 8_000])
    gain = AutoGain()
    assert measure_level(gain(cut_to_frames(set_level(-75, create_noise(30))))) > -45
    assert np.array_equal(gain(loud), loud)


def test_quiet_speech_after_a_loud_beginning_is_raised_in_time() -> None:
    loud, quiet = cut_to_frames(load_speech()[:32_000]), cut_to_frames(set_level(-70, np.tile(load_speech(), 3)))
    found = AutoGain()(np.concatenate([loud, quiet]))
    assert np.array_equal(found[: len(loud)], loud)
    assert measure_level(found[-len(load_speech()) :]) > -50


def test_no_gain_is_larger_than_the_bound() -> None:
    for quiet in (set_level(-89, create_noise(5)), set_level(-70, create_noise(5))):
        for found in (AutoGain()(cut_to_frames(quiet)), amplify_quiet(quiet)):
            assert np.abs(found).max() <= np.abs(quiet).max() * 10 ** (MAX_GAIN_DB / 20) * 1.001


def test_a_window_is_raised_as_a_whole() -> None:
    quiet = set_level(-70, load_speech())
    np.testing.assert_allclose(amplify_quiet(quiet) / amplify_quiet(quiet).std(), quiet / quiet.std(), rtol=1e-5)
    assert measure_level(amplify_quiet(quiet)) > -50


@pytest.mark.parametrize("size", [0, 1, 100, FRAME_SAMPLES, FRAME_SAMPLES + 1])
def test_windows_of_any_length(size: int) -> None:
    for samples in (create_silence(1)[:size], set_level(-70, load_speech())[16_000 : 16_000 + size]):
        assert len(amplify_quiet(samples)) == size
        assert np.isfinite(amplify_quiet(samples)).all()


class WindowKeepingEngine(Engine):
    """Not a model: keeps the windows."""

    capabilities = Capabilities(max_window_s=10, max_batch=8)

    def __init__(self) -> None:
        self.windows: list[Window] = []

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        raise NotImplementedError

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        self.windows += windows
        return [EngineResult([Segment(0.0, window.seconds, "heard")], "en") for window in windows]

    def close(self) -> None:
        """Nothing to let go of."""


async def list_windows(samples: Samples) -> list[Window]:
    engine = WindowKeepingEngine()
    batcher = WindowBatcher(engine, batch=4)
    try:
        listener = TranscriptionJob(
            TranscriptionRequest(raw_pcm=True), batcher=batcher, vad=VAD, cutting=SegmenterConfig(max_s=10), max_seconds=3600
        )
        await listener.pipe.feed(encode_pcm(samples))
        listener.pipe.finish()
        async for _ in listener.stream_events():
            pass
        return engine.windows
    finally:
        await asyncio.to_thread(batcher.close)


async def test_an_engine_gets_quiet_speech_whole_and_raised() -> None:
    loud, quiet = await list_windows(load_speech()), await list_windows(set_level(-72, load_speech()))
    assert len(quiet) == len(loud)
    assert sum(w.seconds for w in quiet) > 0.95 * sum(w.seconds for w in loud)
    assert all(measure_level(window.audio) > -50 for window in quiet)


async def collect_finals(samples: Samples) -> tuple[list[FinalTranscript], list[Window]]:
    engine = WindowKeepingEngine()
    batcher = WindowBatcher(engine, batch=4)
    settings = SessionSettings(partials=False, endpointing=EndpointingSettings(silence_s=0.3))
    driver = LiveSessionDriver(settings, batcher=batcher, vad=VAD, capabilities=engine.capabilities, max_seconds=60)
    try:
        taking = asyncio.ensure_future(_send_audio(driver, encode_pcm(samples)))
        events: list[LiveEvent] = [event async for event in driver.stream_events()]
        await taking
        return [event for event in events if isinstance(event, FinalTranscript)], engine.windows
    finally:
        await driver.close()
        await asyncio.to_thread(batcher.close)


async def _send_audio(driver: LiveSessionDriver, data: bytes) -> None:
    for start in range(0, len(data), 3200):
        await driver.take_message(data[start : start + 3200])
    await driver.take_message(FinishCommand())


async def test_a_live_session_hears_quiet_speech() -> None:
    loud, _ = await collect_finals(load_speech())
    quiet, windows = await collect_finals(set_level(-70, load_speech()))
    seconds = [sum(final.end - final.start for final in said) for said in (loud, quiet)]
    assert seconds[1] > 0.85 * seconds[0]
    assert all(measure_level(window.audio) > -52 for window in windows)
