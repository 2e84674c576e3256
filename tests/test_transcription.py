"""Records cross process boundaries as JSON and come back equal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eardrum.transcription import (
    AudioOpened,
    Capabilities,
    DroppedText,
    JsonRecord,
    Priority,
    Segment,
    SpeechTask,
    Token,
    TranscriptionRequest,
    TranscriptionSummary,
    Word,
)

SEGMENT = Segment(
    1.0,
    2.5,
    "Hé.",
    avg_logprob=-0.25,
    tokens=[1, 2],
    token_logprobs=[Token("H", -0.5)],
    words=[Word("Hé.", 1.0, 2.0, 0.5)],
)

RECORDS = [
    Word("a", 0.0, 1.0, 0.5),
    Token("a", -1.0),
    SEGMENT,
    Segment(0.0, 1.0, ""),
    AudioOpened(None),
    AudioOpened(3.5),
    DroppedText(0.0, 1.0, "♪", "only music notes"),
    TranscriptionSummary("en", 3.0, [DroppedText(0.0, 1.0, "♪", "only music notes")], windows=2, queue_s=0.1, decode_s=0.2),
    TranscriptionSummary("", 0.0),
    Capabilities(),
    Capabilities(languages=("en", "de"), translate=True, max_window_s=10.0, max_batch=8),
]


def round_trip(record: JsonRecord) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(record.to_json()))
    return data


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_equal(record: JsonRecord) -> None:
    assert type(record).from_json(round_trip(record)) == record


def test_a_request_crosses_the_wire() -> None:
    request = TranscriptionRequest(
        SpeechTask.TRANSLATE,
        "de",
        "p",
        ("a", "b"),
        0.5,
        words=True,
        priority=Priority.BULK,
        vad_threshold=0.3,
        extra=(("a", "b"),),
    )
    data = round_trip(request)
    assert (data["task"], data["priority"], data["hotwords"]) == ("translate", "bulk", ["a", "b"])
    again = TranscriptionRequest.from_json(data)
    assert again == request
    assert again.task is not None


@pytest.mark.parametrize(
    "record",
    [
        Word("a", 0.0, 1.0, 0.5),
        AudioOpened(1.0),
        TranscriptionRequest(),
        *(pytest.param(record) for record in (SEGMENT, TranscriptionSummary("en", 1.0), Capabilities())),
    ],
    ids=lambda record: type(record).__name__,
)
def test_what_a_newer_peer_adds_is_dropped(record: JsonRecord) -> None:
    assert type(record).from_json(record.to_json() | {"added_later": 1}) == record


def test_moving_a_segment_moves_its_words_and_leaves_the_original() -> None:
    moved = SEGMENT.map_times(lambda position, *, ending=False: position + 10)
    assert (moved.start, moved.end) == (11.0, 12.5)
    assert moved.words == [Word("Hé.", 11.0, 12.0, 0.5)]
    assert (moved.text, moved.tokens, moved.avg_logprob) == (SEGMENT.text, SEGMENT.tokens, SEGMENT.avg_logprob)
    assert SEGMENT.words[0].start == 1.0
