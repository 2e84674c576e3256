"""A session's events as those of the protocol."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.api.wyoming.protocol import TranscriptEncoder, WyomingEvent
from eardrum.errors import InvalidRequestError, RunnerCrashedError
from eardrum.live import (
    CommandRefused,
    FinalTranscript,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)

ENDED = SessionEnded(2.0, "en")


def create_partial(stable: str, tentative: str = "", *, utterance: int = 1) -> PartialTranscript:
    return PartialTranscript(utterance, stable, tentative, 0.0, 1.0)


def create_final(text: str, *, utterance: int = 1, language: str = "en") -> FinalTranscript:
    return FinalTranscript(utterance, 0.0, 2.0, text, language=language)


def encode_events(events: Sequence[LiveEvent], *, streaming: bool = True, language: str | None = None) -> list[WyomingEvent]:
    telling = TranscriptEncoder(language, streaming=streaming)
    return [event for one in events for event in telling.feed(one)]


def list_chunks(events: list[WyomingEvent]) -> list[str]:
    return [event.data["text"] for event in events if event.type == "transcript-chunk"]


def test_text_goes_out_as_soon_as_it_stays() -> None:
    events = encode_events(
        [
            create_partial("", "turn"),
            create_partial("turn", " of"),
            create_partial("turn", " off"),
            create_partial("turn off", " the"),
            create_final("turn off the light."),
            ENDED,
        ]
    )
    assert events == [
        WyomingEvent("transcript-start", {}),
        WyomingEvent("transcript-chunk", {"text": "turn"}),
        WyomingEvent("transcript-chunk", {"text": " off"}),
        WyomingEvent("transcript-chunk", {"text": " the light."}),
        WyomingEvent("transcript", {"text": "turn off the light.", "language": "en"}),
        WyomingEvent("transcript-stop"),
    ]


def test_a_language_that_was_asked_for_is_known_from_the_start() -> None:
    assert encode_events([create_partial("ja")], language="de")[0] == WyomingEvent("transcript-start", {"language": "de"})


def test_silence_is_an_empty_transcript_without_chunks() -> None:
    events = encode_events([UtteranceCommitted(1, 0.0, 1.0), create_final("", language=""), SessionEnded(1.0)])
    assert events == [
        WyomingEvent("transcript-start", {}),
        WyomingEvent("transcript", {"text": ""}),
        WyomingEvent("transcript-stop"),
    ]


def test_without_streaming_there_is_the_transcript_and_nothing_else() -> None:
    events = encode_events([create_partial("a"), create_final("a b"), ENDED], streaming=False)
    assert events == [WyomingEvent("transcript", {"text": "a b", "language": "en"})]


def test_endless_speech_is_one_transcript() -> None:
    events = encode_events(
        [
            create_final("One."),
            create_partial("Two", utterance=2),
            create_final("Two.", utterance=2),
            create_final("", utterance=3),
            ENDED,
        ]
    )
    assert list_chunks(events) == ["One.", " Two", "."]
    assert events[-2].data["text"] == "One. Two."


@given(st.lists(st.text(alphabet="ab 你.", max_size=8).map(str.strip)), st.data())
def test_chunks_joined_are_the_transcript(texts: list[str], data: st.DataObject) -> None:
    session: list[LiveEvent] = []
    for number, text in enumerate(texts, 1):
        stable = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
        session += [create_partial(text[:length], utterance=number) for length in stable]
        session.append(create_final(text, utterance=number))
    events = encode_events([*session, ENDED])
    assert [event.type for event in events[-2:]] == ["transcript", "transcript-stop"]
    assert "".join(list_chunks(events)) == events[-2].data["text"]
    assert [event.type for event in events].count("transcript-start") == 1


@pytest.mark.parametrize(
    "event", [UtteranceFailed(1, RunnerCrashedError("It died.")), CommandRefused(InvalidRequestError("No."))]
)
def test_what_failed_is_raised(event: LiveEvent) -> None:
    with pytest.raises((RunnerCrashedError, InvalidRequestError)):
        TranscriptEncoder().feed(event)


def test_what_is_of_no_interest_is_not_told() -> None:
    assert encode_events([UtteranceCommitted(1, 0.0, 1.0), UtteranceCleared()]) == []
