"""Each word has some time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eardrum.runner.postprocessing import MIN_WORD_S, lengthen_words
from eardrum.transcription import Word


def create_words(*times: tuple[float, float]) -> list[Word]:
    return [Word(str(number), start, end, 1.0) for number, (start, end) in enumerate(times)]


def list_times(found: list[Word]) -> list[tuple[float, float]]:
    return [(word.start, word.end) for word in found]


@pytest.mark.parametrize(
    ("given_", "found"),
    [
        ([(0.0, 0.5), (0.5, 1.0)], [(0.0, 0.5), (0.5, 1.0)]),
        ([(0.0, 0.5), (0.5, 0.5), (0.9, 1.0)], [(0.0, 0.5), (0.5, 0.54), (0.9, 1.0)]),  # the silence behind it
        ([(0.0, 0.5), (0.8, 0.8), (0.8, 1.0)], [(0.0, 0.5), (0.76, 0.8), (0.8, 1.0)]),  # the silence before it
        ([(0.0, 0.5), (0.5, 0.5), (0.5, 1.0)], [(0.0, 0.5), (0.5, 0.54), (0.54, 1.0)]),  # the next word
        ([(0.0, 0.5), (0.5, 1.0), (1.0, 1.0)], [(0.0, 0.5), (0.5, 0.96), (0.96, 1.0)]),  # the word before
        ([(0.0, 0.0), (0.0, 0.0), (0.0, 0.04)], [(0.0, 1 / 75), (1 / 75, 2 / 75), (2 / 75, 0.04)]),  # no more than there is
    ],
)
def test_words_without_time_get_some(given_: list[tuple[float, float]], found: list[tuple[float, float]]) -> None:
    end = max(end for _, end in given_)
    assert list_times(lengthen_words(create_words(*given_), 0.0, end)) == [pytest.approx(pair) for pair in found]


def test_without_any_time_there_is_none_to_give() -> None:
    assert list_times(lengthen_words(create_words((1.0, 1.0), (1.0, 1.0)), 1.0, 1.0)) == [(1.0, 1.0), (1.0, 1.0)]
    assert lengthen_words([], 0.0, 1.0) == []


@settings(deadline=None)
@given(st.lists(st.floats(0, 3), min_size=2, max_size=24), st.booleans())
def test_order_and_bounds_are_kept_and_every_word_has_time(marks: list[float], apart: bool) -> None:
    pairs = list(pairwise(sorted(marks)))
    before = create_words(*(pairs[::2] if apart else pairs))
    after = lengthen_words(before, 0.0, 3.0)
    assert [word.word for word in after] == [word.word for word in before]
    assert all(0.0 <= word.start <= word.end <= 3.0 + 1e-9 for word in after)
    assert all(one.end <= other.start + 1e-9 for one, other in pairwise(after))
    assert all(word.end - word.start >= MIN_WORD_S - 1e-9 for word in after), "24 words of 20 ms have room in 3 s"
    for was, is_ in zip(before, after, strict=True):
        assert abs(was.start - is_.start) <= 0.04 * len(before) + 1e-9
