"""Counting transcriptions and loads."""

from __future__ import annotations

import asyncio

import pytest

from eardrum.config import Settings
from eardrum.errors import AudioError, BusyError, CancelledRequestError, ModelLoadError, ModelNotFoundError
from eardrum.gateway.live import open_session
from eardrum.gateway.metrics import GatewayMetrics, ValueHistogram
from eardrum.gateway.models.download import MAY_FETCH
from eardrum.gateway.service import Service
from eardrum.gateway.speech import stream_speech
from eardrum.live import SessionSettings
from eardrum.speech import SpeechRequest
from eardrum.transcription import TranscriptionRequest, TranscriptionSummary


def test_a_value_at_a_bound_belongs_to_its_bucket() -> None:
    histogram = ValueHistogram((1.0, 5.0))
    for value in (0.5, 1.0, 1.1, 5.0, 9.0):
        histogram.add_value(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.total == pytest.approx(16.6)


def test_a_transcript_counts_with_all_its_totals() -> None:
    metrics = GatewayMetrics()
    with metrics.measure_transcription("first") as timer:
        timer.model = "fallback"
        timer.record_text()
        timer.record_text()
        timer.record_summary(TranscriptionSummary("en", 42.0, windows=6, queue_s=0.3, decode_s=1.5, batches=1.5))
    assert metrics.transcriptions == {("fallback", "success"): 1}
    assert metrics.audio["fallback"].total == 42.0
    assert metrics.queue_waits["fallback"].total == pytest.approx(0.3)
    assert sum(metrics.first_texts["fallback"].counts) == sum(metrics.durations["fallback"].counts) == 1
    assert (metrics.decode_seconds["fallback"], metrics.windows["fallback"], metrics.batches["fallback"]) == (1.5, 6, 1.5)
    assert "first" not in metrics.durations


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (AudioError("The file has no audio."), "error"),
        (ModelLoadError("tiny could not be loaded."), "error"),
        (BusyError("tiny is busy.", retry_after=1.0), "rejected"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (CancelledRequestError("The server's operator cancelled the request."), "cancelled"),
    ],
)
def test_a_failure_counts_by_its_kind_and_has_no_length(error: BaseException, outcome: str) -> None:
    metrics = GatewayMetrics()

    def fail() -> None:
        with metrics.measure_transcription("tiny"):
            raise error

    with pytest.raises(type(error)):
        fail()
    assert metrics.transcriptions == {("tiny", outcome): 1}
    assert not metrics.audio
    assert not metrics.durations


def test_a_client_that_leaves_after_the_last_event_got_its_transcript() -> None:
    metrics = GatewayMetrics()

    def leave() -> None:
        with metrics.measure_transcription("tiny") as timer:
            timer.record_summary(TranscriptionSummary("en", 1.0))
            raise GeneratorExit

    with pytest.raises(GeneratorExit):
        leave()
    assert metrics.transcriptions == {("tiny", "success"): 1}


def test_loads_are_counted_and_the_last_one_is_timed() -> None:
    metrics = GatewayMetrics()
    metrics.record_load("tiny", 3.0)
    metrics.record_load("tiny", 2.0)
    assert metrics.loads["tiny"] == 2
    assert metrics.load_seconds == {"tiny": 2.0}


async def test_the_names_of_models_that_are_not_here_are_no_labels() -> None:
    """With `pull_missing` a client may name any number of them: each would be a time series for ever."""
    service, request = Service(Settings(pull_missing=True)), TranscriptionRequest()
    MAY_FETCH.set(False)
    for name in ("Systran/of-nobody", "Systran/of-nobody-else"):
        model = service.find_model(name)
        assert (model.id, model.needs_download) == (name, True)
        with service.create_spool() as spool:
            spool.finish()
            with pytest.raises(ModelNotFoundError):
                await service.transcribe(model, request, spool)
        with pytest.raises(ModelNotFoundError):
            await anext(stream_speech(service, model, SpeechRequest(), "Hello"))
        async with open_session(service, model, SessionSettings(request)) as session:
            with pytest.raises(ModelNotFoundError):
                await anext(session.stream_events())
    numbers = service.metrics
    assert dict(numbers.transcriptions) == dict(numbers.speeches) == {("unknown", "error"): 2}
    assert dict(numbers.live_sessions) == {"unknown": 2}
    assert set(numbers.live_audio) == {"unknown"}
