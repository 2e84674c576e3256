"""Events of several processes are those of one session."""

from __future__ import annotations

from eardrum.errors import InvalidRequestError, RunnerCrashedError
from eardrum.gateway.live.telling import Telling
from eardrum.live import (
    Cleared,
    Committed,
    Ended,
    Failed,
    Final,
    LiveEvent,
    Partial,
    Refused,
    SpeechStarted,
    SpeechStopped,
)
from eardrum.types import Segment, Word

DIED = RunnerCrashedError("The process died.")


def heard(telling: Telling, *events: LiveEvent) -> list[LiveEvent]:
    return [told for event in events if (told := telling.hear(event))]


def interrupted(*events: LiveEvent, clock: list[tuple[float, float]]) -> Telling:
    """One that heard these, after which another process took over."""
    telling = Telling()
    heard(telling, *events)
    telling.begin(clock)
    return telling


def test_one_process_is_told_as_it_is() -> None:
    events = [
        SpeechStarted(1, 0.5),
        Partial(1, "one", " two", 0.5, 1.0, (Word("one", 0.6, 0.8, 0.9),)),
        SpeechStopped(1, 1.5),
        Committed(1, 0.5, 2.0),
        Final(1, 0.5, 2.0, "one two", (Segment(0.5, 1.5, "one two"),)),
        SpeechStarted(2, 3.0),
        Cleared(2),
        Refused(InvalidRequestError("No.")),
        Ended(5.0),
    ]
    assert heard(Telling(), *events) == events


def test_numbers_and_times_go_on_with_the_next_process() -> None:
    telling = interrupted(SpeechStarted(1, 0.5), Committed(1, 0.5, 2.0), Final(1, 0.5, 2.0, "one"), clock=[(0.0, 10.0)])
    word, segment = Word("two", 0.5, 1.0, 0.9), Segment(0.5, 1.0, "two", words=[Word("two", 0.5, 1.0, 0.9)])
    shifted = Segment(10.5, 11.0, "two", words=[Word("two", 10.5, 11.0, 0.9)])
    assert heard(
        telling,
        SpeechStarted(1, 0.5),
        Partial(1, "two", "", 0.5, 1.0, (word,)),
        SpeechStopped(1, 1.5),
        Committed(1, 0.5, 2.0),
        Final(1, 0.5, 2.0, "two", (segment,)),
        Ended(3.0),
    ) == [
        SpeechStarted(2, 10.5),
        Partial(2, "two", "", 10.5, 11.0, (Word("two", 10.5, 11.0, 0.9),)),
        SpeechStopped(2, 11.5),
        Committed(2, 10.5, 12.0),
        Final(2, 10.5, 12.0, "two", (shifted,)),
        Ended(13.0),
    ]


def test_an_utterance_in_progress_begins_only_once() -> None:
    telling = interrupted(SpeechStarted(1, 0.5), Partial(1, "one", "", 0.5, 1.0), clock=[(0.0, 0.4)])
    assert heard(telling, SpeechStarted(1, 0.1), Partial(1, "one", " two", 0.1, 1.6)) == [Partial(1, "one", " two", 0.5, 2.0)]


def test_an_utterance_that_has_had_its_end_gets_its_text_and_nothing_else_again() -> None:
    telling = interrupted(
        SpeechStarted(1, 0.5),
        Committed(1, 0.5, 2.0),
        SpeechStarted(2, 3.0),
        clock=[(0.0, 0.5), (1.5, 2.0)],
    )
    told = heard(
        telling,
        Partial(1, "one", "", 0.0, 1.0),
        Committed(1, 0.0, 1.5),
        SpeechStarted(2, 2.5),
        Final(1, 0.0, 1.5, "one"),
        Committed(2, 2.5, 4.0),
        Final(2, 2.5, 4.0, "two"),
    )
    assert told == [Final(1, 0.5, 2.0, "one"), Committed(2, 3.0, 4.5), Final(2, 3.0, 4.5, "two")]
    assert not telling.open


def test_stable_text_is_not_taken_back_by_another_process() -> None:
    telling = interrupted(SpeechStarted(1, 0.0), Partial(1, "Mr. Dashwood", " had", 0.0, 1.0), clock=[(0.0, 0.0)])
    told = heard(
        telling,
        Partial(1, "Mister", " Dashwood", 0.0, 1.0),
        Committed(1, 0.0, 2.0),
        Final(1, 0.0, 2.0, "Mister Dashwood had leisure"),
    )
    assert told == [Committed(1, 0.0, 2.0), Final(1, 0.0, 2.0, "Mr. Dashwood had leisure")]


def test_a_repeated_commit_that_is_refused_leaves_its_utterance_without_text() -> None:
    error = InvalidRequestError("There is no audio.")
    telling = interrupted(Committed(1, 0.0, 2.0), clock=[(0.0, 0.0), (2.0, 2.0)])
    assert heard(telling, Refused(error), Refused(error)) == [Failed(1, error), Refused(error)]


def test_what_cannot_be_heard_again_has_failed() -> None:
    telling = Telling()
    heard(telling, SpeechStarted(1, 0.5), Committed(1, 0.5, 2.0), SpeechStarted(2, 3.0))
    assert telling.lose(1.0, 2.0, DIED, manual=False) == [Failed(1, DIED)]
    assert telling.lose(4.0, 2.0, DIED, manual=False) == [Committed(2, 3.0, 4.0), Failed(2, DIED)]
    telling.begin([(0.0, 4.0)])
    assert heard(telling, SpeechStarted(1, 0.0)) == [SpeechStarted(3, 4.0)]


def test_silence_that_is_not_kept_is_no_loss() -> None:
    telling = Telling()
    heard(telling, SpeechStarted(1, 0.5), Committed(1, 0.5, 2.0), Final(1, 0.5, 2.0, "one"))
    assert telling.lose(50.0, 2.0, DIED, manual=False) == []


def test_with_ends_by_hand_all_audio_since_the_last_one_belongs_to_an_utterance() -> None:
    telling = Telling()
    heard(telling, Committed(1, 0.0, 2.0), Final(1, 0.0, 2.0, "one"))
    assert telling.lose(2.0, 2.0, DIED, manual=True) == []
    assert telling.lose(5.0, 2.0, DIED, manual=True) == [Committed(2, 2.0, 5.0), Failed(2, DIED)]


def test_an_utterance_that_was_cleared_leaves_nothing_behind() -> None:
    telling = interrupted(SpeechStarted(1, 0.5), Partial(1, "one", "", 0.5, 1.0), Cleared(1), clock=[(0.0, 5.0)])
    assert heard(telling, SpeechStarted(1, 0.0), Committed(1, 0.0, 1.0), Final(1, 0.0, 1.0, "two")) == [
        SpeechStarted(2, 5.0),
        Committed(2, 5.0, 6.0),
        Final(2, 5.0, 6.0, "two"),
    ]


def test_nothing_is_remembered_of_what_is_over() -> None:
    telling = Telling()
    for number in range(1, 1000):
        at = float(number)
        heard(telling, SpeechStarted(number, at), Partial(number, "x", "", at, at), Committed(number, at, at + 0.5))
        heard(telling, Final(number, at, at + 0.5, "x"))
    assert (telling.open, telling._numbers, telling._stable) == ({}, {}, {})
