"""The words of the protocol, both ways."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from eardrum.api.live_ws.protocol import AUDIO_BYTES, TEXT_BYTES, ConfigMessage, build_message, compute_confidence, parse_message
from eardrum.api.openai.responses import build_error_body
from eardrum.errors import InvalidRequestError, RunnerCrashedError, TooLargeError
from eardrum.live import (
    ClearCommand,
    CommandRefused,
    CommitCommand,
    FinalTranscript,
    FinishCommand,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SessionPaused,
    SpeechIdle,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.transcription import Segment, Word


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        (b"\x01\x02", b"\x01\x02"),
        (b"", b""),
        (b"xEOS", b"xEOS"),
        (b"EOS", FinishCommand()),
        ("EOS", FinishCommand()),
        ('{"type": "finish"}', FinishCommand()),
        ('{"type": "stop"}', FinishCommand()),
        ('{"type": "commit"}', CommitCommand()),
        ('{"type": "clear"}', ClearCommand()),
        ('{"type": "config", "language": "en"}', ConfigMessage({"language": "en"})),
        ('{"type": "config"}', ConfigMessage({})),
        ('{"language": "en"}', ConfigMessage({"language": "en"})),
    ],
)
def test_every_message_has_a_meaning(message: str | bytes, meaning: object) -> None:
    assert parse_message(message) == meaning


@pytest.mark.parametrize("message", ["", "hello", "{", "[1]", '"commit"', "{}", '{"type": "sing"}', '{"type": 1}', "[" * 60_000])
def test_what_has_none_is_refused_with_what_would_have(message: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"JSON|config, commit, clear and finish"):
        parse_message(message)


@pytest.mark.parametrize("message", [b"x" * (AUDIO_BYTES + 1), "x" * (TEXT_BYTES + 1)])
def test_messages_have_a_largest_size(message: str | bytes) -> None:
    with pytest.raises(TooLargeError):
        parse_message(message)


WORD = Word("hello", 0.12345, 0.4, 0.98765)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (SpeechStarted(1, 0.25), {"type": "speech_started", "utterance": 1, "start": 0.25}),
        (
            PartialTranscript(1, "hello", " wor", 0.25, 1.0, (WORD,)),
            {
                "type": "partial",
                "utterance": 1,
                "text": "hello wor",
                "stable": "hello",
                "tentative": " wor",
                "start": 0.25,
                "end": 1.0,
                "is_final": False,
                "words": [{"word": "hello", "start": 0.123, "end": 0.4, "probability": 0.988}],
            },
        ),
        (SpeechStopped(1, 1.5), {"type": "speech_stopped", "utterance": 1, "end": 1.5}),
        (
            FinalTranscript(1, 0.25, 1.5, " hello world", (Segment(0.25, 1.5, " hello world", avg_logprob=math.log(0.5)),), "en"),
            {
                "type": "final",
                "utterance": 1,
                "text": "hello world",
                "start": 0.25,
                "end": 1.5,
                "language": "en",
                "confidence": 0.5,
                "is_final": True,
            },
        ),
        (UtteranceCleared(2), {"type": "cleared", "utterance": 2}),
        (SpeechIdle(9.0), {"type": "idle", "at": 9.0}),
        (SessionPaused(60.0), {"type": "rested", "after": 60.0}),
        (SessionEnded(12.3456, "en"), {"type": "done", "duration": 12.346, "language": "en"}),
        (SessionEnded(1.0, warnings=("A.",)), {"type": "done", "duration": 1.0, "language": None, "warnings": ["A."]}),
        (SessionEnded(0.0), {"type": "done", "duration": 0.0, "language": None}),
    ],
)
def test_every_event_has_its_message(event: LiveEvent, message: dict[str, Any]) -> None:
    assert build_message(event, build_error_body) == message
    json.dumps(message)


def test_a_commit_needs_no_message_because_a_final_follows() -> None:
    assert build_message(UtteranceCommitted(1, 0.0, 1.0), build_error_body) is None


def test_errors_have_openais_shape_and_the_utterance_they_are_about() -> None:
    failed = build_message(UtteranceFailed(3, RunnerCrashedError("dead")), build_error_body)
    error = {"message": "dead", "type": "server_error", "param": None, "code": "model_crashed"}
    assert failed == {"type": "error", "error": error, "utterance": 3}
    refused = build_message(CommandRefused(InvalidRequestError("empty", param="x")), build_error_body)
    assert refused
    assert refused["error"]["type"] == "invalid_request_error"
    assert "utterance" not in refused


def test_confidence_is_of_the_segments_that_tell_it_by_their_length() -> None:
    sure, unsure = Segment(0, 3, "a", avg_logprob=math.log(0.9)), Segment(3, 4, "b", avg_logprob=math.log(0.3))
    assert compute_confidence([sure, unsure]) == round(math.exp(0.75 * math.log(0.9) + 0.25 * math.log(0.3)), 3)
    assert compute_confidence([Segment(0, 1, "x")]) is None
    assert compute_confidence([]) is None
