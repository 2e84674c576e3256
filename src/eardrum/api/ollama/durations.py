"""Times as Ollama writes them: Go's durations, nanoseconds, RFC 3339."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from eardrum.errors import InvalidRequestError

FOR_EVER_S = 292 * 365.25 * 86_400
"""What Ollama shows for models that stay. A year 1 instead breaks clients that parse it and count back from it."""

AT_ONCE_S = 1e-3
"""The shortest time to live; to the scheduler 0 is never."""

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
WHOLE = re.compile(rf"[+-]?(?:{PART.pattern})+", re.ASCII)


def ttl(keep_alive: Any, default: float) -> float:
    """The time to live that a request's `keep_alive` means, in seconds as the scheduler takes it: 0 is never.

    Numbers are seconds, strings durations as Go writes them or numbers; below 0 is for ever, 0 is right after the request.

    Args:
        keep_alive: as it came; None and "" take the default.
        default: what the model's config says.

    Raises:
        InvalidRequestError: neither a number nor a duration.
    """
    if keep_alive in (None, ""):
        return default
    seconds = _seconds(keep_alive)
    if seconds < 0 or seconds >= FOR_EVER_S:
        return 0.0
    return max(seconds, AT_ONCE_S)


def _seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # noqa: PLR0124 -- NaN is not
        return float(min(max(value, -1), FOR_EVER_S))
    if isinstance(value, str):
        text = value.strip()
        if WHOLE.fullmatch(text):
            return (-1 if text.startswith("-") else 1) * sum(float(n) * UNITS[unit] for n, unit in PART.findall(text))
        try:
            return _seconds(float(text))
        except ValueError:
            pass
    raise InvalidRequestError(
        f'keep_alive must be seconds or a duration such as "5m", "1h30m" or "-1s", not {str(value)[:80]!r}.', param="keep_alive"
    )


def nanoseconds(seconds: float) -> int:
    """A duration on the wire."""
    return round(seconds * 1e9)


def timestamp(unix: float) -> str:
    """A moment on the wire: RFC 3339 in UTC with nanoseconds."""
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"
