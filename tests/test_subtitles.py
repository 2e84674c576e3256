"""Cues of a wanted shape: nothing is lost, limits hold, breaks are where a reader expects them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from eardrum.subtitles import BROADCAST_RULES, Cue, SubtitleRules, build_cues, build_highlights, measure_width, split_pieces
from eardrum.text import join_texts
from eardrum.transcription import Segment, Word
from tests.generated_cases import count_cases

LONG = (
    "The beach was empty, and the wind had died down before the sun went below the hills. "
    "Nobody, not even the old man with his dog, had stayed to watch it; they were all at the fair in the village."
)


def create_segment(text: str, *, start: float = 0.0, rate: float = 3.0, gap: float = 0.0) -> Segment:
    """A segment with words as an engine would time them, `rate` a second."""
    words, at = [], start
    for word in text.split():
        words.append(Word(word, at, at + 1 / rate, 1.0))
        at += 1 / rate + gap
    return Segment(start, words[-1].end if words else start, text, words=words)


def list_lines(found: list[Cue]) -> list[list[str]]:
    return [cue.texts for cue in found]


def join_text(found: list[Cue]) -> str:
    return join_texts(line for cue in found for line in cue.texts)


def test_without_rules_a_segment_is_a_cue() -> None:
    assert SubtitleRules().is_unrestricted
    found = build_cues([Segment(0.5, 12, LONG), Segment(13, 13.1, "Yes.")], SubtitleRules())
    assert list_lines(found) == [[LONG], ["Yes."]]
    assert [(cue.start, cue.end) for cue in found] == [(0.5, 12), (13, 13.1)]


def test_a_width_alone_wraps_a_segment_and_leaves_it_one_cue() -> None:
    (cue,) = build_cues([Segment(0, 12, LONG)], SubtitleRules(max_line_width=30))
    assert all(len(line) <= 30 for line in cue.texts)
    assert " ".join(cue.texts) == LONG
    assert (cue.start, cue.end) == (0, 12)


def test_words_per_line_alone_makes_a_cue_of_each_line() -> None:
    found = build_cues([create_segment("one two three four five", rate=2)], SubtitleRules(max_words_per_line=2))
    assert all(len(cue.texts) == 1 and len(cue.texts[0].split()) <= 2 for cue in found)
    assert len(found) == 3
    assert (found[0].start, found[-1].end) == (0.0, 2.5)


def test_words_per_line_beside_a_count_of_lines() -> None:
    found = build_cues([create_segment("one two three four five", rate=2)], SubtitleRules(max_words_per_line=2, max_line_count=2))
    assert all(len(cue.texts) <= 2 and all(len(line.split()) <= 2 for line in cue.texts) for cue in found)
    assert len(found) == 2


def test_cues_end_with_sentences_and_clauses() -> None:
    found = build_cues([create_segment(LONG)], BROADCAST_RULES)
    assert all(cue.texts[-1][-1] in ".,;" for cue in found), list_lines(found)
    assert join_text(found) == LONG


def test_lines_of_a_cue_are_about_equally_long() -> None:
    (cue,) = build_cues(
        [create_segment("the quick brown fox jumps over the lazy dog tonight")],
        SubtitleRules(max_line_width=42, max_line_count=2),
    )
    assert cue.texts == ["the quick brown fox jumps", "over the lazy dog tonight"]


def test_a_pause_is_a_place_to_break() -> None:
    segment = create_segment("we go to the house and then we turn to the left and come to the lake at last", rate=4)
    words = [replace(word, start=word.start + 1.5, end=word.end + 1.5) for word in segment.words[8:]]
    paused = replace(segment, end=segment.end + 1.5, words=segment.words[:8] + words)
    assert build_cues([paused], BROADCAST_RULES)[0].texts[-1].endswith("we")


def test_times_are_those_of_the_words() -> None:
    segment = create_segment("one two three four", start=1.0, rate=1.0)
    found = build_cues([segment], SubtitleRules(max_line_width=9, max_line_count=1))
    assert [(cue.texts[0], cue.start, cue.end) for cue in found] == [
        ("one two", 1.0, 3.0),
        ("three", 3.0, 4.0),
        ("four", 4.0, 5.0),
    ]


def test_without_words_time_is_shared_out_by_length() -> None:
    found = build_cues([Segment(10.0, 20.0, "aaaa bbbb cccc dddd eeee")], SubtitleRules(max_line_width=4, max_line_count=1))
    assert [(cue.start, cue.end) for cue in found] == [(10, 12), (12, 14), (14, 16), (16, 18), (18, 20)]


@pytest.mark.parametrize(
    "words",
    [
        [("hello", 1.0), ("big", 2.0), ("wide", 3.0), ("world", 4.0)],  # OpenAI's are without marks
        [("Hello", 1.0), (",", 1.5), ("big-", 2.0), ("wide", 3.0), ("world", 4.0), (".", 4.4)],
        [("HELLO,", 1.0), ("bi", 2.0), ("g-", 2.5), ("wide", 3.0), ("world.", 4.0)],
    ],
)
def test_words_are_found_in_the_text_however_they_are_spelled(words: list[tuple[str, float]]) -> None:
    segment = Segment(0.5, 5.0, "Hello, big-wide world.", words=[Word(word, at, at + 0.5, 1.0) for word, at in words])
    assert [(piece.text, piece.start) for piece in split_pieces(segment)] == [("Hello,", 1.0), ("big-wide", 2.0), ("world.", 4.0)]


def test_words_that_are_missing_or_others_are_given_the_time_between() -> None:
    segment = Segment(0.0, 8.0, "one 2 three four", words=[Word("one", 0, 1, 1), Word("two", 2, 3, 1), Word("three", 4, 5, 1)])
    assert [(piece.text, piece.start, piece.end) for piece in split_pieces(segment)] == [
        ("one", 0, 1),
        ("2", 1, 4),
        ("three", 4, 5),
        ("four", 5, 8),
    ]


def test_a_short_cue_stays_as_long_as_there_is_room() -> None:
    shape = SubtitleRules(min_duration=1.0, min_gap=0.1)
    found = build_cues([Segment(0, 0.3, "Yes."), Segment(5, 5.3, "No."), Segment(7.5, 7.8, "Oh.")], shape, duration=8.0)
    assert [(cue.start, cue.end) for cue in found] == [(0, 1.0), (5, 6.0), (7.25, 8.0)]


def test_cues_too_short_are_put_together() -> None:
    found = build_cues(
        [Segment(0, 0.3, "Yes."), Segment(0.35, 0.6, "No."), Segment(0.7, 1.4, "Oh.")], SubtitleRules(min_duration=0.8)
    )
    assert list_lines(found) == [["Yes. No. Oh."]]
    apart = build_cues([Segment(0, 0.3, "Yes."), Segment(5.0, 5.3, "No.")], SubtitleRules(min_duration=0.8))
    assert len(apart) == 2


def test_dense_text_stays_longer() -> None:
    found = build_cues([Segment(0, 1, "a" * 40), Segment(10, 11, "b")], SubtitleRules(max_characters_per_second=20))
    assert [(cue.start, cue.end) for cue in found] == [(0, 2.0), (10, 11)]


def test_a_gap_is_made_between_cues() -> None:
    found = build_cues([Segment(0, 1, "a"), Segment(1, 2, "b"), Segment(3, 4, "c")], SubtitleRules(min_gap=0.1))
    assert [(cue.start, cue.end) for cue in found] == [(0, 0.9), (1, 2), (3, 4)]


def test_no_cue_is_longer_than_allowed() -> None:
    found = build_cues([create_segment(LONG, rate=1.0), Segment(100, 130, "Ohm")], SubtitleRules(max_duration=5))
    assert max(cue.end - cue.start for cue in found) <= 5
    assert join_text(found) == f"{LONG} Ohm"


@pytest.mark.parametrize(
    "text",
    [
        "今天天气很好，我们一起去公园散步吧。明天可能会下雨，所以最好带上雨伞，不要忘记了。",
        "今日はとても良い天気ですから、公園を散歩しましょう。明日は雨が降るかもしれません。",
    ],
)
def test_text_without_spaces_is_divided(text: str) -> None:
    found = build_cues([Segment(0, 12, text)], BROADCAST_RULES)
    assert len(found) > 1
    assert "".join(line for cue in found for line in cue.texts) == text
    assert all(measure_width(line) <= 42 for cue in found for line in cue.texts)
    assert not any(line[0] in "，。、吧" for cue in found for line in cue.texts), list_lines(found)
    assert all(cue.texts[-1][-1] in "，。、" for cue in found), list_lines(found)


def test_thai_marks_stay_with_their_letters() -> None:
    text = "สวัสดีครับวันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะกันเถอะ"
    found = build_cues([Segment(0, 9, text)], SubtitleRules(max_line_width=12, max_line_count=1))
    assert "".join(line for cue in found for line in cue.texts) == text
    assert all(measure_width(line) <= 12 for cue in found for line in cue.texts)
    assert not any(line[0] in "ะาำัิีึืุู็่้๊๋์" or line[-1] in "เแโใไ" for cue in found for line in cue.texts)


def test_scripts_are_joined_across_segments_as_they_are_written() -> None:
    shape = SubtitleRules(min_duration=2.0)
    assert list_lines(build_cues([Segment(0, 0.5, "今天"), Segment(0.5, 1, "很好。")], shape)) == [["今天很好。"]]
    assert list_lines(build_cues([Segment(0, 0.5, "all"), Segment(0.5, 1, "well.")], shape)) == [["all well."]]


def test_each_word_is_highlighted_once() -> None:
    (cue,) = build_cues([create_segment("one two", start=1.0, rate=2.0, gap=0.2)], SubtitleRules(highlight_words=True))
    steps = [(start, end, piece.text if piece else "") for start, end, piece in build_highlights(replace(cue, end=3.0))]
    assert steps == [
        (1.0, 1.5, "one"),
        (1.5, pytest.approx(1.7), ""),
        (pytest.approx(1.7), pytest.approx(2.2), "two"),
        (pytest.approx(2.2), 3.0, ""),
    ]


def test_a_preset_and_what_is_said_beside_it() -> None:
    assert SubtitleRules().with_changes({"preset": "broadcast"}) == BROADCAST_RULES
    assert SubtitleRules().with_changes({"preset": "broadcast", "max_line_width": 37}) == replace(
        BROADCAST_RULES, max_line_width=37
    )
    assert BROADCAST_RULES.with_changes({"max_duration": 0.0}) == replace(BROADCAST_RULES, max_duration=0.0)
    assert BROADCAST_RULES.with_changes({"preset": "none"}).is_unrestricted


def test_a_duration_that_is_set_wins_over_the_other_one_of_the_preset() -> None:
    for before, wishes in ((SubtitleRules(), {"preset": "broadcast"}), (BROADCAST_RULES, {})):
        assert before.with_changes({**wishes, "max_duration": 0.5}) == replace(
            BROADCAST_RULES, min_duration=0.5, max_duration=0.5
        )
        assert before.with_changes({**wishes, "min_duration": 9.0}) == replace(
            BROADCAST_RULES, min_duration=9.0, max_duration=9.0
        )
    assert SubtitleRules().with_changes({"min_duration": 3.0, "max_duration": 2.0}) == SubtitleRules(
        min_duration=3.0, max_duration=2.0
    )


@pytest.mark.slow
def test_a_long_segment_without_times_is_divided_soon() -> None:
    found = build_cues([Segment(0, 0, "word " * 3_000)], SubtitleRules(max_duration=7))
    assert sum(len(line.split()) for cue in found for line in cue.texts) == 3_000


LETTERS = st.sampled_from("abcdé.,!?-—'\"«»()今日天。、「」はーぁกิาเ한국😀 \t\n")
TEXTS = st.text(LETTERS, max_size=80)
TIMES = st.floats(0, 50, allow_nan=False)


@st.composite
def draw_segments(draw: st.DrawFn) -> list[Segment]:
    found, at = [], 0.0
    for text in draw(st.lists(TEXTS, max_size=5)):
        start = at + draw(st.floats(0, 3))
        at = start + draw(st.floats(0, 12))
        words = []
        if draw(st.booleans()):
            marks = sorted(draw(st.lists(st.floats(start, at), min_size=2, max_size=12)))
            said = draw(st.sampled_from([text.split(), list(text.replace(" ", ""))]))
            words = [Word(word, a, b, 1.0) for word, (a, b) in zip(said, pairwise(marks), strict=False)]
        found.append(Segment(start, at, text, words=words))
    return found


SHAPES = st.builds(
    SubtitleRules,
    max_line_width=st.sampled_from([0, 1, 5, 20, 42]),
    max_line_count=st.sampled_from([0, 1, 2, 3]),
    max_words_per_line=st.sampled_from([0, 1, 3]),
    min_duration=st.sampled_from([0.0, 0.8, 2.0]),
    max_duration=st.sampled_from([0.0, 2.0, 7.0]),
    min_gap=st.sampled_from([0.0, 0.08, 0.5]),
    max_characters_per_second=st.sampled_from([0.0, 12.0, 20.0]),
)


@settings(deadline=None, max_examples=count_cases(300))
@given(draw_segments(), SHAPES)
def test_whatever_is_said_and_asked(given_: list[Segment], shape: SubtitleRules) -> None:
    found = build_cues(given_, shape, duration=60.0)
    # Nothing is lost or moved.
    squeezed = "".join("".join(line.split()) for cue in found for line in cue.texts)
    assert squeezed == "".join("".join(segment.text.split()) for segment in given_)
    for cue in found:
        assert cue.lines
        assert all(cue.texts)
        for line in cue.lines:
            if (
                shape.max_line_width
                and measure_width("".join(piece.space + piece.text for piece in line).strip()) > shape.max_line_width
            ):
                assert len(line) == 1, "only what cannot be divided is longer than a line"
            if shape.max_words_per_line:
                assert len(line) <= shape.max_words_per_line
        if shape.max_lines and (shape.max_line_width or shape.max_words_per_line):
            assert len(cue.lines) <= shape.max_lines
        assert cue.end >= cue.start >= 0
        if shape.max_duration:
            assert cue.end - cue.start <= shape.max_duration + 1e-9
    for before, after in pairwise(found):
        assert before.start <= after.start
        assert before.end <= after.start + 1e-9 or before.end - before.start <= 0.021, "cues do not overlap"


@settings(deadline=None, max_examples=count_cases(100))
@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.floats(1.5, 4.0))
def test_ordinary_speech_keeps_all_rules_of_broadcasts(lengths: list[int], rate: float) -> None:
    text = " ".join("x" * length for length in lengths)
    found = build_cues([create_segment(text, rate=rate)], BROADCAST_RULES, duration=100.0)
    assert join_text(found) == text
    for cue in found:
        assert len(cue.texts) <= 2
        assert all(len(line) <= 42 for line in cue.texts)
        assert cue.end - cue.start <= 7.0
        assert cue.end - cue.start >= BROADCAST_RULES.min_duration - 1e-9
    assert all(after.start - before.end >= BROADCAST_RULES.min_gap - 1e-9 for before, after in pairwise(found))
