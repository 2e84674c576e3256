"""How many cases tests with generated data try: a share of them in each run, all of them in `make test-hostile`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SHARE = float(os.environ.get("EARDRUM_CASES", "0.25"))
"""Cases are new ones in each run, so that many runs with few find as much as few with many."""


def count_cases(all_cases: int) -> int:
    """Cases to try of so many."""
    return max(1, round(all_cases * SHARE))


def load_profile() -> None:
    """Settings of all tests that have none of their own. On a busy machine a case may take any time."""
    profile = settings(max_examples=count_cases(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("eardrum", profile)
    settings.load_profile("eardrum")
