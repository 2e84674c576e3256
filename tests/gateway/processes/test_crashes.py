"""Who dies in a row is left alone for longer and longer."""

from __future__ import annotations

from eardrum.gateway.processes.crashes import PAUSES_S, Crashes


def pause(crashes: Crashes, now: float) -> float:
    row = crashes.pausing("m", now)
    return row.again_at - now if row else 0.0


def test_the_first_deaths_are_made_good_at_once_and_the_next_ones_not() -> None:
    crashes, pauses = Crashes(), []
    for _ in range(6):
        crashes.died("m", "The command of m ended.", 100.0)
        pauses.append(pause(crashes, 100.0))
    assert pauses == [*PAUSES_S, PAUSES_S[-1]]


def test_a_pause_ends() -> None:
    crashes = Crashes()
    for _ in range(3):
        crashes.died("m", "The command of m ended.", 100.0)
    row = crashes.pausing("m", 100.0)
    assert row
    assert (row.deaths, row.ending) == (3, "The command of m ended.")
    assert crashes.pausing("other", 100.0) is None
    assert crashes.pausing("m", row.again_at) is None


def test_one_request_that_is_served_is_the_end_of_the_row() -> None:
    crashes = Crashes()
    for _ in range(2):
        crashes.died("m", "The command of m ended.", 100.0)
    crashes.forget("m")
    crashes.died("m", "The command of m ended.", 100.0)
    assert crashes.pausing("m", 100.0) is None
