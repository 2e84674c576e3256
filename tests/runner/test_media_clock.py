"""Timestamps to gaps, without any audio."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from eardrum.runner.integrity import Gap, MediaClock


@dataclass(frozen=True)
class ClockedFrame:
    """A second of sound."""

    time: float | None
    samples: int = 16_000
    sample_rate: int = 16_000


def list_gaps(*times: float | None, origin: float | None = 0.0, longest: float = 1e9) -> list[tuple[float, float] | float | None]:
    """Gaps as pairs, frames by their timestamps."""
    clock = MediaClock[ClockedFrame](origin, lambda gap: gap.end - gap.start <= longest)
    said = list(clock.insert_gaps([ClockedFrame(time) for time in times]))
    gaps = sum(item.end - item.start for item in said if isinstance(item, Gap))
    assert clock.position == pytest.approx(len(times) + gaps)
    return [(item.start, item.end) if isinstance(item, Gap) else item.time for item in said]


def test_a_clock_that_runs_with_the_sound_leaves_no_gaps() -> None:
    assert list_gaps(0, 1, 2, 3) == [0, 1, 2, 3]
    assert list_gaps(0, None, None, 3) == [0, None, None, 3]
    assert list_gaps(None, None) == [None, None]
    assert list_gaps(0, 1.09, 2.02, 2.92) == [0, 1.09, 2.02, 2.92]


def test_without_an_origin_it_begins_with_the_first_timestamp() -> None:
    assert list_gaps(95_000, 95_001, origin=None) == [95_000, 95_001]
    assert list_gaps(None, 95_001, 95_002, origin=None) == [None, 95_001, 95_002]


def test_sound_may_begin_late() -> None:
    assert list_gaps(5, 6) == [(0, 5), 5, 6]
    assert list_gaps(6.4, 7.4, origin=1.4) == [(0, 5), 6.4, 7.4]
    assert list_gaps(0.5, 1.5) == [(0, 0.5), 0.5, 1.5]
    assert list_gaps(-0.05, 0.95) == [-0.05, 0.95]


def test_small_gaps_are_filled_once_they_add_up() -> None:
    assert list_gaps(0, 1.06, 2.12, 3.18) == [0, 1.06, (2, pytest.approx(2.12)), 2.12, 3.18]


def test_long_gaps_are_believed_when_the_next_timestamp_agrees() -> None:
    assert list_gaps(0, 1, 62, 63) == [0, 1, (2, 62), 62, 63]
    assert list_gaps(0, 1, 62, 100) == [0, 1, (2, 62), 62, (63, 100), 100]
    assert list_gaps(0, 1, 62, None, 64) == [0, 1, (2, 62), 62, None, 64]


def test_a_single_timestamp_that_is_wrong_moves_nothing() -> None:
    assert list_gaps(0, 1, 5000, 3, 4) == [0, 1, 5000, 3, 4]
    assert list_gaps(0, 1, -700, 3, 4) == [0, 1, -700, 3, 4]
    assert list_gaps(7000, 1, 2) == [7000, 1, 2]


def test_at_the_very_end_only_short_leaps_are_believed() -> None:
    assert list_gaps(0, 1, 30) == [0, 1, (2, 30), 30]
    assert list_gaps(0, 1, 5000) == [0, 1, 5000]


def test_a_clock_that_goes_back_begins_anew() -> None:
    assert list_gaps(0, 1, 2, 0, 1, 2) == [0, 1, 2, 0, 1, 2]
    assert list_gaps(0, 1, 2, 0, 1, 12, 13) == [0, 1, 2, 0, 1, (5, 15), 12, 13]
    assert list_gaps(8, 9, 0, 1, 2) == [(0, 8), 8, 9, 0, 1, 2]


def test_a_leap_that_is_not_believed_begins_anew() -> None:
    assert list_gaps(0, 1, 5000, 5001, 5012, longest=20) == [0, 1, 5000, 5001, (4, pytest.approx(14)), 5012]
