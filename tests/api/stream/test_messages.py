"""The words of the protocol, both ways."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from eardrum.api.openai.answers import worded
from eardrum.api.stream.messages import AUDIO_BYTES, TEXT_BYTES, Configured, confidence, said, told
from eardrum.errors import InvalidRequestError, RunnerCrashedError, TooLargeError
from eardrum.live import (
    Clear,
    Cleared,
    Commit,
    Committed,
    Ended,
    Failed,
    Final,
    Finish,
    Idle,
    LiveEvent,
    Partial,
    Refused,
    Rested,
    SpeechStarted,
    SpeechStopped,
)
from eardrum.types import Segment, Word


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        (b"\x01\x02", b"\x01\x02"),
        (b"", b""),
        (b"xEOS", b"xEOS"),
        (b"EOS", Finish()),
        ("EOS", Finish()),
        ('{"type": "finish"}', Finish()),
        ('{"type": "stop"}', Finish()),
        ('{"type": "commit"}', Commit()),
        ('{"type": "clear"}', Clear()),
        ('{"type": "config", "language": "en"}', Configured({"language": "en"})),
        ('{"type": "config"}', Configured({})),
        ('{"language": "en"}', Configured({"language": "en"})),
    ],
)
def test_every_message_has_a_meaning(message: str | bytes, meaning: object) -> None:
    assert said(message) == meaning


@pytest.mark.parametrize("message", ["", "hello", "{", "[1]", '"commit"', "{}", '{"type": "sing"}', '{"type": 1}', "[" * 60_000])
def test_what_has_none_is_refused_with_what_would_have(message: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"JSON|config, commit, clear and finish"):
        said(message)


@pytest.mark.parametrize("message", [b"x" * (AUDIO_BYTES + 1), "x" * (TEXT_BYTES + 1)])
def test_messages_have_a_largest_size(message: str | bytes) -> None:
    with pytest.raises(TooLargeError):
        said(message)


WORD = Word("hello", 0.12345, 0.4, 0.98765)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (SpeechStarted(1, 0.25), {"type": "speech_started", "utterance": 1, "start": 0.25}),
        (
            Partial(1, "hello", " wor", 0.25, 1.0, (WORD,)),
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
            Final(1, 0.25, 1.5, " hello world", (Segment(0.25, 1.5, " hello world", avg_logprob=math.log(0.5)),), "en"),
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
        (Cleared(2), {"type": "cleared", "utterance": 2}),
        (Idle(9.0), {"type": "idle", "at": 9.0}),
        (Rested(60.0), {"type": "rested", "after": 60.0}),
        (Ended(12.3456, "en"), {"type": "done", "duration": 12.346, "language": "en"}),
        (Ended(1.0, warnings=("A.",)), {"type": "done", "duration": 1.0, "language": None, "warnings": ["A."]}),
        (Ended(0.0), {"type": "done", "duration": 0.0, "language": None}),
    ],
)
def test_every_event_has_its_message(event: LiveEvent, message: dict[str, Any]) -> None:
    assert told(event, worded) == message
    json.dumps(message)


def test_a_commit_needs_no_message_because_a_final_follows() -> None:
    assert told(Committed(1, 0.0, 1.0), worded) is None


def test_errors_have_openais_shape_and_the_utterance_they_are_about() -> None:
    failed = told(Failed(3, RunnerCrashedError("dead")), worded)
    error = {"message": "dead", "type": "server_error", "param": None, "code": "model_crashed"}
    assert failed == {"type": "error", "error": error, "utterance": 3}
    refused = told(Refused(InvalidRequestError("empty", param="x")), worded)
    assert refused
    assert refused["error"]["type"] == "invalid_request_error"
    assert "utterance" not in refused


def test_confidence_is_of_the_segments_that_tell_it_by_their_length() -> None:
    sure, unsure = Segment(0, 3, "a", avg_logprob=math.log(0.9)), Segment(3, 4, "b", avg_logprob=math.log(0.3))
    assert confidence([sure, unsure]) == round(math.exp(0.75 * math.log(0.9) + 0.25 * math.log(0.3)), 3)
    assert confidence([Segment(0, 1, "x")]) is None
    assert confidence([]) is None
