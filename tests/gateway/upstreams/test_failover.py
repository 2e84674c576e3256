"""The events of a recording that several replicas transcribe, one after the other."""

from __future__ import annotations

import pytest

from eardrum.errors import RunnerCrashedError, RunnerUnavailableError
from eardrum.gateway.upstreams.failover import MAX_FAILURES, MAX_REFUSALS, AttemptCounter, ResumableTranscription
from eardrum.transcription import (
    AudioOpened,
    DroppedText,
    Segment,
    TranscriptionEvent,
    TranscriptionRequest,
    TranscriptionSummary,
    WindowCheckpoint,
)


def segment(n: int) -> Segment:
    return Segment(n, n + 1, str(n))


def drop(n: int) -> DroppedText:
    return DroppedText(n, n + 1, "thanks for watching", "credits")


def feed(progress: ResumableTranscription, *events: TranscriptionEvent) -> list[str]:
    """The texts of the segments, and the kinds of the other events."""
    came = [own for event in events for own in progress.add_event(event)]
    return [event.text if isinstance(event, Segment) else type(event).__name__ for event in came]


def test_a_window_comes_once_it_is_finished() -> None:
    progress = ResumableTranscription(TranscriptionRequest(language="en"))
    request = progress.build_request()
    assert (request.language, request.checkpoints, request.resume) == ("en", True, None)
    assert feed(progress, AudioOpened(9.0), segment(0), segment(1)) == ["AudioOpened"]
    assert feed(progress, WindowCheckpoint(1, 2.0)) == ["0", "1"], "who asked for no checkpoints gets none"
    assert feed(progress, segment(2), TranscriptionSummary("en", 9.0)) == ["2", "TranscriptionSummary"]


def test_the_next_replica_goes_on_behind_the_last_finished_window() -> None:
    progress = ResumableTranscription(TranscriptionRequest(checkpoints=True))
    progress.build_request()
    first = WindowCheckpoint(1, 1.0, text="so far", dropped=(drop(0),))
    assert feed(progress, AudioOpened(9.0), segment(0), first, segment(1)) == ["AudioOpened", "0", "WindowCheckpoint"]
    request = progress.build_request()
    assert request.resume == WindowCheckpoint(1, 1.0, text="so far"), "segment 1 had not been finished"
    assert progress.windows == 1
    last = WindowCheckpoint(2, 2.0, dropped=(drop(1),))
    assert feed(progress, AudioOpened(9.0), segment(1), last) == ["1", "WindowCheckpoint"]
    (summary,) = progress.add_event(TranscriptionSummary("en", 9.0, dropped=[drop(1)], windows=2))
    assert isinstance(summary, TranscriptionSummary)
    assert summary.dropped == [drop(0), drop(1)], "those of both replicas, each once"


def test_a_job_that_is_resumed_keeps_its_own_checkpoint() -> None:
    before = WindowCheckpoint(7, 70.0)
    progress = ResumableTranscription(TranscriptionRequest(checkpoints=True, resume=before))
    assert progress.build_request().resume == before
    feed(progress, AudioOpened(None), segment(7))
    assert progress.build_request().resume == before


def test_a_recording_that_ends_every_replica_is_given_up() -> None:
    attempts, error = AttemptCounter(), RunnerCrashedError("The connection broke.")
    for _ in range(MAX_FAILURES - 1):
        attempts.count_failure(error, has_progress=False)
    for _ in range(10):
        attempts.count_failure(error, has_progress=True)
    attempts.count_failure(error, has_progress=False)
    with pytest.raises(RunnerCrashedError, match="The connection broke"):
        attempts.count_failure(error, has_progress=False)


def test_a_replica_that_took_nothing_is_no_victim() -> None:
    attempts, refusal = AttemptCounter(), RunnerUnavailableError("It is about to end.")
    for _ in range(MAX_REFUSALS - 1):
        attempts.count_failure(refusal, has_progress=False)
    with pytest.raises(RunnerUnavailableError):
        attempts.count_failure(refusal, has_progress=False)
