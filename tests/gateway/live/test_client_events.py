"""Events of several processes are those of one session."""

from __future__ import annotations

import pytest

from eardrum.errors import InvalidRequestError, RunnerCrashedError
from eardrum.gateway.live.client_events import SessionEventMerger
from eardrum.live import (
    CommandRefused,
    FinalTranscript,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.transcription import Segment, Word

DIED = RunnerCrashedError("The process died.")


def merge_events(telling: SessionEventMerger, *events: LiveEvent) -> list[LiveEvent]:
    return [told for event in events if (told := telling.merge_event(event))]


def create_interrupted(*events: LiveEvent, clock: list[tuple[float, float]]) -> SessionEventMerger:
    """One that heard these, after which another process took over."""
    telling = SessionEventMerger()
    merge_events(telling, *events)
    telling.start_process(clock)
    return telling


def test_one_process_is_told_as_it_is() -> None:
    events = [
        SpeechStarted(1, 0.5),
        PartialTranscript(1, "one", " two", 0.5, 1.0, (Word("one", 0.6, 0.8, 0.9),)),
        SpeechStopped(1, 1.5),
        UtteranceCommitted(1, 0.5, 2.0),
        FinalTranscript(1, 0.5, 2.0, "one two", (Segment(0.5, 1.5, "one two"),)),
        SpeechStarted(2, 3.0),
        UtteranceCleared(2),
        CommandRefused(InvalidRequestError("No.")),
        SessionEnded(5.0),
    ]
    assert merge_events(SessionEventMerger(), *events) == events


def test_numbers_and_times_go_on_with_the_next_process() -> None:
    telling = create_interrupted(
        SpeechStarted(1, 0.5), UtteranceCommitted(1, 0.5, 2.0), FinalTranscript(1, 0.5, 2.0, "one"), clock=[(0.0, 10.0)]
    )
    word, segment = Word("two", 0.5, 1.0, 0.9), Segment(0.5, 1.0, "two", words=[Word("two", 0.5, 1.0, 0.9)])
    shifted = Segment(10.5, 11.0, "two", words=[Word("two", 10.5, 11.0, 0.9)])
    assert merge_events(
        telling,
        SpeechStarted(1, 0.5),
        PartialTranscript(1, "two", "", 0.5, 1.0, (word,)),
        SpeechStopped(1, 1.5),
        UtteranceCommitted(1, 0.5, 2.0),
        FinalTranscript(1, 0.5, 2.0, "two", (segment,)),
        SessionEnded(3.0),
    ) == [
        SpeechStarted(2, 10.5),
        PartialTranscript(2, "two", "", 10.5, 11.0, (Word("two", 10.5, 11.0, 0.9),)),
        SpeechStopped(2, 11.5),
        UtteranceCommitted(2, 10.5, 12.0),
        FinalTranscript(2, 10.5, 12.0, "two", (shifted,)),
        SessionEnded(13.0),
    ]


def test_an_utterance_in_progress_begins_only_once() -> None:
    telling = create_interrupted(SpeechStarted(1, 0.5), PartialTranscript(1, "one", "", 0.5, 1.0), clock=[(0.0, 0.4)])
    assert merge_events(telling, SpeechStarted(1, 0.1), PartialTranscript(1, "one", " two", 0.1, 1.6)) == [
        PartialTranscript(1, "one", " two", 0.5, 2.0)
    ]


def test_an_utterance_that_has_had_its_end_gets_its_text_and_nothing_else_again() -> None:
    telling = create_interrupted(
        SpeechStarted(1, 0.5),
        UtteranceCommitted(1, 0.5, 2.0),
        SpeechStarted(2, 3.0),
        clock=[(0.0, 0.5), (1.5, 2.0)],
    )
    told = merge_events(
        telling,
        PartialTranscript(1, "one", "", 0.0, 1.0),
        UtteranceCommitted(1, 0.0, 1.5),
        SpeechStarted(2, 2.5),
        FinalTranscript(1, 0.0, 1.5, "one"),
        UtteranceCommitted(2, 2.5, 4.0),
        FinalTranscript(2, 2.5, 4.0, "two"),
    )
    assert told == [FinalTranscript(1, 0.5, 2.0, "one"), UtteranceCommitted(2, 3.0, 4.5), FinalTranscript(2, 3.0, 4.5, "two")]
    assert not telling.open_utterances


def test_stable_text_is_not_taken_back_by_another_process() -> None:
    telling = create_interrupted(
        SpeechStarted(1, 0.0), PartialTranscript(1, "Mr. Dashwood", " had", 0.0, 1.0), clock=[(0.0, 0.0)]
    )
    told = merge_events(
        telling,
        PartialTranscript(1, "Mister", " Dashwood", 0.0, 1.0),
        UtteranceCommitted(1, 0.0, 2.0),
        FinalTranscript(1, 0.0, 2.0, "Mister Dashwood had leisure"),
    )
    assert told == [UtteranceCommitted(1, 0.0, 2.0), FinalTranscript(1, 0.0, 2.0, "Mr. Dashwood had leisure")]


def test_a_repeated_commit_that_is_refused_leaves_its_utterance_without_text() -> None:
    error = InvalidRequestError("There is no audio.")
    telling = create_interrupted(UtteranceCommitted(1, 0.0, 2.0), clock=[(0.0, 0.0), (2.0, 2.0)])
    assert merge_events(telling, CommandRefused(error), CommandRefused(error)) == [
        UtteranceFailed(1, error),
        CommandRefused(error),
    ]


def test_what_cannot_be_heard_again_has_failed() -> None:
    telling = SessionEventMerger()
    merge_events(telling, SpeechStarted(1, 0.5), UtteranceCommitted(1, 0.5, 2.0), SpeechStarted(2, 3.0))
    assert telling.fail_lost(1.0, 2.0, DIED, manual=False) == [UtteranceFailed(1, DIED)]
    assert telling.fail_lost(4.0, 2.0, DIED, manual=False) == [UtteranceCommitted(2, 3.0, 4.0), UtteranceFailed(2, DIED)]
    telling.start_process([(0.0, 4.0)])
    assert merge_events(telling, SpeechStarted(1, 0.0)) == [SpeechStarted(3, 4.0)]


def test_silence_that_is_not_kept_is_no_loss() -> None:
    telling = SessionEventMerger()
    merge_events(telling, SpeechStarted(1, 0.5), UtteranceCommitted(1, 0.5, 2.0), FinalTranscript(1, 0.5, 2.0, "one"))
    assert telling.fail_lost(50.0, 2.0, DIED, manual=False) == []


def test_with_ends_by_hand_all_audio_since_the_last_one_belongs_to_an_utterance() -> None:
    telling = SessionEventMerger()
    merge_events(telling, UtteranceCommitted(1, 0.0, 2.0), FinalTranscript(1, 0.0, 2.0, "one"))
    assert telling.fail_lost(2.0, 2.0, DIED, manual=True) == []
    assert telling.fail_lost(5.0, 2.0, DIED, manual=True) == [UtteranceCommitted(2, 2.0, 5.0), UtteranceFailed(2, DIED)]


def test_an_utterance_that_was_cleared_leaves_nothing_behind() -> None:
    telling = create_interrupted(
        SpeechStarted(1, 0.5), PartialTranscript(1, "one", "", 0.5, 1.0), UtteranceCleared(1), clock=[(0.0, 5.0)]
    )
    assert merge_events(telling, SpeechStarted(1, 0.0), UtteranceCommitted(1, 0.0, 1.0), FinalTranscript(1, 0.0, 1.0, "two")) == [
        SpeechStarted(2, 5.0),
        UtteranceCommitted(2, 5.0, 6.0),
        FinalTranscript(2, 5.0, 6.0, "two"),
    ]


def test_nothing_is_remembered_of_what_is_over() -> None:
    telling = SessionEventMerger()
    for number in range(1, 1000):
        at = float(number)
        merge_events(
            telling,
            SpeechStarted(number, at),
            PartialTranscript(number, "x", "", at, at),
            UtteranceCommitted(number, at, at + 0.5),
        )
        merge_events(telling, FinalTranscript(number, at, at + 0.5, "x"))
    assert (telling.open_utterances, telling._numbers, telling._stable) == ({}, {}, {})


def test_the_times_of_an_utterance_stay_in_its_stretch_although_its_window_begins_a_frame_before() -> None:
    telling = create_interrupted(
        UtteranceCommitted(1, 10.0, 11.0), UtteranceCommitted(2, 50.0, 52.0), clock=[(0.0, 10.0), (1.0, 50.0), (3.0, 60.0)]
    )
    one, two = merge_events(
        telling,
        UtteranceCommitted(1, 0.0, 0.999),
        UtteranceCommitted(2, 0.999, 2.999),
        FinalTranscript(1, 0.0, 0.999, "one", (Segment(0.0, 1.0000000001, "one"),)),
        FinalTranscript(2, 0.999, 2.999, "two", (Segment(0.992, 2.999, "two", words=[Word("two", 0.992, 1.5, 0.9)]),)),
    )
    assert isinstance(one, FinalTranscript)
    assert isinstance(two, FinalTranscript)
    assert (one.segments[0].start, one.segments[0].end) == (10.0, pytest.approx(11.0))
    (segment,) = two.segments
    times = (segment.start, segment.end, segment.words[0].start, segment.words[0].end)
    assert times == pytest.approx((49.992, 51.999, 49.992, 50.5))
    began, said, ended = merge_events(
        telling,
        SpeechStarted(3, 2.999),
        PartialTranscript(3, "three", "", 2.999, 4.0, (Word("three", 2.992, 3.5, 0.9),)),
        UtteranceCommitted(3, 2.999, 5.0),
    )
    assert isinstance(began, SpeechStarted)
    assert isinstance(said, PartialTranscript)
    assert isinstance(ended, UtteranceCommitted)
    assert (began.at, said.start, said.end) == pytest.approx((59.999, 59.999, 61.0))
    assert (said.words[0].start, ended.start, ended.end) == pytest.approx((59.992, 59.999, 62.0))


def test_a_repeated_commit_that_is_refused_does_not_shift_the_texts_of_the_others() -> None:
    error = InvalidRequestError("There is no audio.")
    telling = create_interrupted(
        UtteranceCommitted(1, 0.0, 0.1), UtteranceCommitted(2, 0.1, 2.0), clock=[(0.0, 0.0), (0.1, 0.1), (2.0, 2.0)]
    )
    assert merge_events(telling, CommandRefused(error), UtteranceCommitted(1, 0.0, 2.0), FinalTranscript(1, 0.0, 2.0, "two")) == [
        UtteranceFailed(1, error),
        FinalTranscript(2, 0.1, 2.0, "two"),
    ]
    assert not telling.open_utterances


def test_what_only_the_first_process_heard_of_is_cleared_for_good() -> None:
    telling = create_interrupted(SpeechStarted(1, 0.5), clock=[(0.0, 0.0)])
    assert merge_events(telling, UtteranceCleared(0), SpeechStarted(1, 3.0)) == [UtteranceCleared(1), SpeechStarted(2, 3.0)]
