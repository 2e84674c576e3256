"""Times as Ollama writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from eardrum.api.ollama.durations import AT_ONCE_S, FOR_EVER_S, timestamp, ttl
from eardrum.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("keep_alive", "seconds"),
    [
        (None, 7.0),
        ("", 7.0),
        (300, 300.0),
        (0.5, 0.5),
        ("300", 300.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("100ms", 0.1),
        ("+2s", 2.0),
        (0, AT_ONCE_S),
        ("0", AT_ONCE_S),
        ("0s", AT_ONCE_S),
        (-1, 0.0),
        ("-1", 0.0),
        ("-1s", 0.0),
        ("-1h5m", 0.0),
        (10**400, 0.0),
        (float("inf"), 0.0),
        (float("-inf"), 0.0),
        ("999999999h", 0.0),
    ],
)
def test_keep_alive(keep_alive: Any, seconds: float) -> None:
    assert ttl(keep_alive, default=7.0) == pytest.approx(seconds)


@pytest.mark.parametrize("keep_alive", ["5 m", "m", "5x", "soon", "1h-5m", True, [], {}, float("nan"), "nan", "\u0661s"])
def test_what_is_no_duration(keep_alive: Any) -> None:
    with pytest.raises(InvalidRequestError, match="keep_alive must be"):
        ttl(keep_alive, default=7.0)


def test_moments_can_be_read_back_and_never_lie_in_the_year_1() -> None:
    moment = timestamp(1_700_000_000.25)
    assert moment == "2023-11-14T22:13:20.250000000Z"
    assert datetime.fromisoformat(moment) == datetime.fromtimestamp(1_700_000_000.25, UTC)
    assert datetime.fromisoformat(timestamp(1_700_000_000 + FOR_EVER_S)).year == 2315
