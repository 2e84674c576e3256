"""Labels of speakers: every word stays, and belongs to one of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from eardrum.api.transcript_formats import format_text
from eardrum.gateway.speaker_labels import label_segments, spell_number
from eardrum.speakers import SpeakerTurn
from eardrum.transcription import Segment, Token, Word


def build_segment(text: str, start: float = 0.0, *, timed: bool = True, word_s: float = 0.5) -> Segment:
    """A segment that says a word every half second."""
    texts = text.split()
    words = [Word(f" {word}", start + at * word_s, start + (at + 1) * word_s, 0.9) for at, word in enumerate(texts)]
    return Segment(start, start + len(texts) * word_s, text, words=words if timed else [])


def label(segments: list[Segment], *turns: tuple[float, float, int], **names: str) -> list[tuple[str, str]]:
    found = label_segments(segments, [SpeakerTurn(*turn) for turn in turns], {int(k[1:]): v for k, v in names.items()})
    return [(segment.speaker, segment.text) for segment in found]


def test_a_segment_is_split_where_the_speaker_changes() -> None:
    segment = build_segment("How are you today? Fine, thank you.")
    assert label([segment], (0.0, 2.0, 0), (2.0, 3.5, 1)) == [("A", "How are you today?"), ("B", "Fine, thank you.")]


def test_words_and_times_go_with_their_part() -> None:
    first, second = label_segments(
        [build_segment("How are you? Fine.", 10.0)], [SpeakerTurn(10.0, 11.4, 0), SpeakerTurn(11.5, 12.0, 1)], {}
    )
    assert [word.word for word in first.words] == [" How", " are", " you?"]
    assert [word.word for word in second.words] == [" Fine."]
    assert (first.start, first.end, second.start, second.end) == (10.0, 11.5, 11.5, 12.0)


def test_a_change_in_the_middle_of_a_word_splits_none() -> None:
    assert label([build_segment("incomprehensibly long", word_s=2.0)], (0.0, 1.2, 0), (1.2, 4.0, 1)) == [
        ("A", "incomprehensibly"),
        ("B", "long"),
    ]


def test_without_times_of_words_the_change_comes_at_the_end_of_a_sentence() -> None:
    segment = build_segment("How are you today, my dear old friend? Fine, thank you.", timed=False)
    turns = (0.0, 3.4, 0), (3.6, 5.5, 1)
    assert label([segment], *turns) == [("A", "How are you today, my dear old friend?"), ("B", "Fine, thank you.")]


def test_pauses_count_for_nothing_where_times_are_guessed() -> None:
    segment = replace(build_segment("one two three four. five six seven eight.", timed=False), start=0.0, end=20.0)
    assert label([segment], (0.0, 2.0, 0), (18.0, 20.0, 1)) == [("A", "one two three four."), ("B", "five six seven eight.")]


def test_a_word_between_two_turns_goes_to_the_nearest() -> None:
    segments = [build_segment("yes", 4.0), build_segment("no", 7.0)]
    assert label(segments, (0.0, 3.0, 1), (9.0, 10.0, 0)) == [("A", "yes"), ("B", "no")]


def test_letters_follow_the_appearance_in_the_text() -> None:
    assert label([build_segment("hello", 5.0), build_segment("bye", 9.0)], (0.0, 1.0, 0), (5.0, 6.0, 2), (9.0, 10.0, 1)) == [
        ("A", "hello"),
        ("B", "bye"),
    ]


def test_names_of_known_speakers() -> None:
    turns = [SpeakerTurn(0.0, 0.5, 0), SpeakerTurn(0.5, 1.0, 1)]
    segments = [build_segment("hello"), build_segment("bye", 0.5)]
    assert [s.speaker for s in label_segments(segments, turns, {1: "Anna"}, ["Anna"])] == ["A", "Anna"]
    assert [s.speaker for s in label_segments(segments, turns, {}, ["A"])] == ["B", "C"], "A is somebody else"


def test_without_speech_there_is_one_speaker() -> None:
    assert label([build_segment("hello there")]) == [("A", "hello there")]
    assert label([Segment(0.0, 1.0, "")]) == [("A", "")]


def test_tokens_of_a_divided_segment_are_left_out() -> None:
    segment = replace(build_segment("yes no"), tokens=[1, 2], token_logprobs=[Token("yes", -0.1)])
    parts = label_segments([segment], [SpeakerTurn(0.0, 0.5, 0), SpeakerTurn(0.5, 1.0, 1)], {})
    assert [(part.text, part.tokens, part.token_logprobs) for part in parts] == [("yes", [], []), ("no", [], [])]


@pytest.mark.parametrize(
    ("number", "spelled"), [(0, "A"), (25, "Z"), (26, "AA"), (51, "AZ"), (52, "BA"), (701, "ZZ"), (702, "AAA")]
)
def test_letters(number: int, spelled: str) -> None:
    assert spell_number(number) == spelled


TEXTS = st.lists(
    st.sampled_from(["yes", "no.", "don't", "Mr.", "—", "你好", "東京hello", "3,5", "¿qué?", "naïve", '"so"']), max_size=12
)
TIMES = st.floats(0, 20, allow_nan=False)


@given(
    segments=st.lists(st.tuples(TEXTS, TIMES, TIMES, st.booleans()), max_size=4),
    turns=st.lists(st.tuples(TIMES, TIMES, st.integers(0, 3)), max_size=6),
)
def test_no_word_is_lost_split_or_moved(segments: list[tuple], turns: list[tuple]) -> None:
    given_ = []
    for texts, start, length, timed in sorted(segments, key=lambda item: item[1]):
        segment = build_segment(" ".join(texts), start, timed=timed, word_s=length / max(len(texts), 1))
        given_.append(segment)
    made = [SpeakerTurn(min(a, b), max(a, b), number) for a, b, number in turns]
    ordered = sorted(made, key=lambda turn: turn.start)
    found = label_segments(given_, ordered, {})
    assert format_text(found) == " ".join(format_text(given_).split())
    assert [word for segment in found for word in segment.words] == [word for segment in given_ for word in segment.words]
    assert all(segment.speaker and segment.end >= segment.start for segment in found)
