from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.engines.beside import compute_percentiles
from bench.engines.errors_in_text import compute_word_error_rate
from bench.engines.folder import Recording
from bench.mixed_load import draw_arrivals


def create_recording(text: str, language: str) -> Recording:
    return Recording(Path("x.wav"), 1.0, text, language)


def test_percentiles_lie_between_the_nearest_values() -> None:
    assert compute_percentiles([float(number) for number in range(101)]) == (50.0, 95.0)
    assert compute_percentiles([3.0, 1.0]) == pytest.approx((2.0, 2.9))
    assert compute_percentiles([4.0]) == (4.0, 4.0)


def test_english_is_compared_by_english_rules() -> None:
    said = create_recording("Mr. Brown's colour is twenty-one!", "en")
    assert compute_word_error_rate([said], ["mister brown is color is 21"]) == 0
    assert compute_word_error_rate([create_recording("one two three four", "en")], ["one two three"]) > 0


def test_other_languages_keep_their_words_and_each_character_counts_where_there_are_no_spaces() -> None:
    assert compute_word_error_rate([create_recording("Grüß Gott, Welt.", "de")], ["grüß gott welt"]) == 0
    assert compute_word_error_rate([create_recording("今日は天気", "ja")], ["今日は電気"]) == pytest.approx(1 / 5)


def test_errors_are_summed_over_all_recordings_whatever_their_language() -> None:
    said = [create_recording("eins zwei drei", "de"), create_recording("yes", "en")]
    assert compute_word_error_rate(said, ["eins zwei vier", "yes"]) == pytest.approx(1 / 4)


def test_clips_arrive_in_order_over_the_whole_span() -> None:
    moments = draw_arrivals(10, 20.0, random.Random(1))
    assert [int(moment / 2) for moment in moments] == list(range(10))
