"""Times as Ollama writes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from eardrum.api.ollama.common_fields import FOR_EVER_S, MIN_TTL_S, format_timestamp, parse_keep_alive
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
        ("5 m", 300.0),
        ("1d", 86_400.0),
        (0, MIN_TTL_S),
        ("0", MIN_TTL_S),
        ("0s", MIN_TTL_S),
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
    assert parse_keep_alive(keep_alive, default=7.0) == pytest.approx(seconds)


@pytest.mark.parametrize("keep_alive", ["m", "5x", "soon", "1h-5m", True, [], {}, float("nan"), "nan", "\u0661s"])
def test_what_is_no_duration(keep_alive: Any) -> None:
    with pytest.raises(InvalidRequestError, match="keep_alive must be"):
        parse_keep_alive(keep_alive, default=7.0)


def test_moments_can_be_read_back_and_never_lie_in_the_year_1() -> None:
    moment = format_timestamp(1_700_000_000.25)
    assert moment == "2023-11-14T22:13:20.250000000Z"
    assert datetime.fromisoformat(moment) == datetime.fromtimestamp(1_700_000_000.25, UTC)
    assert datetime.fromisoformat(format_timestamp(1_700_000_000 + FOR_EVER_S)).year == 2315
