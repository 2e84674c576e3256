"""Token times from attention."""

from __future__ import annotations

import numpy as np
import pytest

from eardrum.engines.shared.torch_tools import find_cheapest_path, find_token_starts, pad_features


def test_the_cheapest_way_follows_the_cheap_cells() -> None:
    cost = np.ones((3, 6))
    for row, column in ((0, 0), (0, 1), (1, 2), (1, 3), (1, 4), (2, 5)):
        cost[row, column] = 0.0
    assert find_cheapest_path(cost) == [0, 2, 5]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (4, 9), (9, 4)])
def test_the_way_is_as_cheap_as_the_cheapest_of_all(shape: tuple[int, int]) -> None:
    cost = np.random.default_rng(5).normal(size=shape)
    entered = find_cheapest_path(cost)
    assert entered[0] == 0
    assert entered == sorted(entered)
    assert _find_cheapest_cost(cost, entered) == pytest.approx(_find_cheapest_cost(cost, None))


def _find_cheapest_cost(cost: np.ndarray, entered: list[int] | None) -> float:
    """What the cheapest way costs, of those that enter each row in the given column, or of all: cell by cell."""
    total = np.full(cost.shape, np.inf)
    for row, column in np.ndindex(cost.shape):
        before = [
            total[row - 1, column - 1] if row and column else np.inf,
            total[row - 1, column] if row else np.inf,
            total[row, column - 1] if column else np.inf,
        ]
        if entered and column <= entered[row]:
            before[2] = np.inf
            if column < entered[row]:
                continue
        total[row, column] = cost[row, column] + (0.0 if row == column == 0 else min(before))
    return float(total[-1, -1])


def test_tokens_begin_where_they_are_attended_to() -> None:
    weights = np.full((2, 6, 60), 1e-4, np.float32)  # one token before, three of text, the end, and one more
    for row, (begin, end) in enumerate([(0, 10), (10, 30), (30, 45), (45, 60)], start=1):
        weights[:, row, begin:end] = 1.0
    assert find_token_starts(weights, before=1) == pytest.approx([0.0, 0.2, 0.6, 0.9], abs=0.05)


def test_frames_nobody_attends_to_do_no_harm() -> None:
    weights = np.zeros((1, 4, 20), np.float32)
    weights[0, 1, :8] = 1.0
    assert all(np.isfinite(find_token_starts(weights, before=1)))


def test_short_features_are_filled_up_with_silence() -> None:
    rows = [np.full((2, 3000), 0.5, np.float32), np.full((2, 100), 0.9, np.float32)]
    batch = pad_features(rows)
    assert batch.shape == (2, 2, 3000)
    assert (batch[0] == 0.5).all()
    assert (batch[1, :, :100] == np.float32(0.9)).all()
    assert batch[1, :, 100:].max() == pytest.approx(-1.1)
