"""How cores are shared out, and how many windows share a batch."""

from __future__ import annotations

import pytest

from eardrum.engines.shared.ctranslate2_whisper import (
    MIN_GAIN,
    SLOWER,
    choose_batch_size,
    choose_thread_count,
    list_thread_counts,
)


@pytest.mark.parametrize(
    ("cores", "tried"), [(1, [1]), (2, [2, 1]), (3, [3, 2, 1]), (4, [4, 2, 1]), (6, [6, 4, 2, 1]), (16, [16, 8, 4, 2, 1])]
)
def test_powers_of_two_are_tried(cores: int, tried: list[int]) -> None:
    assert list(list_thread_counts(cores)) == tried


def test_one_thread_each_where_threads_only_wait_for_each_other() -> None:
    assert choose_thread_count(4, {4: 3.0, 2: 2.0, 1: 1.0}.__getitem__) == 1


def test_a_lone_window_may_take_a_little_longer() -> None:
    assert choose_thread_count(4, {4: 1.0, 2: SLOWER - 0.1, 1: SLOWER + 0.1}.__getitem__) == 2


def test_a_large_model_keeps_its_threads_and_fewer_are_not_even_tried() -> None:
    tried: list[int] = []

    def seconds(threads: int) -> float:
        tried.append(threads)
        return 16.0 / threads

    assert choose_thread_count(16, seconds) == 16
    assert tried == [16, 8]


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        ({1: 1.0, 4: 0.7, 8: 0.5}, 8),
        ({1: 1.0, 4: 0.7, 8: 0.7}, 4),
        ({1: 1.0, 4: 1 / MIN_GAIN + 0.01, 8: 0.1}, 1),
        ({1: 1.0, 4: 1 / MIN_GAIN - 0.01}, 4),
        ({1: 1.0}, 1),
    ],
)
def test_batches_grow_while_a_window_becomes_cheaper_by_enough(costs: dict[int, float], chosen: int) -> None:
    assert choose_batch_size(list(costs)[1:], costs.__getitem__) == chosen
