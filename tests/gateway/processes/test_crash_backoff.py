"""Who dies in a row is left alone for longer and longer."""

from __future__ import annotations

from eardrum.gateway.processes.crashes import BACKOFF_S, CrashBackoff


def get_pause(crashes: CrashBackoff, now: float) -> float:
    row = crashes.find_pause("m", now)
    return row.retry_at - now if row else 0.0


def test_the_first_deaths_are_made_good_at_once_and_the_next_ones_not() -> None:
    crashes, pauses = CrashBackoff(), []
    for _ in range(6):
        crashes.record_crash("m", "The command of m ended.", 100.0)
        pauses.append(get_pause(crashes, 100.0))
    assert pauses == [*BACKOFF_S, BACKOFF_S[-1]]


def test_a_pause_ends() -> None:
    crashes = CrashBackoff()
    for _ in range(3):
        crashes.record_crash("m", "The command of m ended.", 100.0)
    row = crashes.find_pause("m", 100.0)
    assert row
    assert (row.crashes, row.exit_description) == (3, "The command of m ended.")
    assert crashes.find_pause("other", 100.0) is None
    assert crashes.find_pause("m", row.retry_at) is None


def test_one_request_that_is_served_is_the_end_of_the_row() -> None:
    crashes = CrashBackoff()
    for _ in range(2):
        crashes.record_crash("m", "The command of m ended.", 100.0)
    crashes.reset("m")
    crashes.record_crash("m", "The command of m ended.", 100.0)
    assert crashes.find_pause("m", 100.0) is None
