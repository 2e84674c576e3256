"""Reads fields that several of Ollama's requests share, and formats times as Ollama does. Pure.

Times are Go durations, nanoseconds, or RFC 3339.

`context` of `/api/generate` holds the conversation so far as numbers that clients keep and send with their next prompt. In
Ollama these are tokens. An upstream with OpenAI's API takes messages and reports no tokens, so here the numbers hold the
messages themselves, packed; to clients both are just numbers.
"""

from __future__ import annotations

import json
import re
import zlib
from datetime import UTC, datetime
from typing import Any

from eardrum import bounded_json
from eardrum.errors import InvalidRequestError


def read_model_name(wish: dict[str, Any]) -> str:
    """The model's name in a request.

    Raises:
        InvalidRequestError: there is none.
    """
    name = wish.get("model") or wish.get("name")
    if not isinstance(name, str) or not name.strip():
        raise InvalidRequestError("model is required", param="model")
    return name.strip()


def is_streaming(wish: dict[str, Any]) -> bool:
    """Whether the answer comes in lines, which it does unless the client says no.

    Raises:
        InvalidRequestError: it says neither.
    """
    stream = wish.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequestError(f"stream must be true or false, not {str(stream)[:40]!r}.", param="stream")
    return stream is not False


def read_text(given: dict[str, Any], name: str, where: str = "") -> str:
    """A field that holds text, or nothing.

    Raises:
        InvalidRequestError: it holds something else.
    """
    value = given.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{f'{where}.' if where else ''}{name} must be a string.", param=name)
    return value


FOR_EVER_S = 292 * 365.25 * 86_400
"""What Ollama shows for models that stay. A year 1 instead breaks clients that parse it and count back from it."""

MIN_TTL_S = 1e-3
"""The shortest time to live; to the scheduler 0 is never."""

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
DURATION = re.compile(rf"[+-]?(?:{DURATION_PART.pattern})+", re.ASCII)


def parse_keep_alive(keep_alive: Any, default: float) -> float:
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
    seconds = _parse_seconds(keep_alive)
    if seconds < 0 or seconds >= FOR_EVER_S:
        return 0.0
    return max(seconds, MIN_TTL_S)


def _parse_seconds(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value == value:  # noqa: PLR0124 -- NaN is not
        return float(min(max(value, -1), FOR_EVER_S))
    if isinstance(value, str):
        text = value.strip()
        if DURATION.fullmatch(text):
            return (-1 if text.startswith("-") else 1) * sum(float(n) * UNITS[unit] for n, unit in DURATION_PART.findall(text))
        try:
            return _parse_seconds(float(text))
        except ValueError:
            pass
    raise InvalidRequestError(
        f'keep_alive must be seconds or a duration such as "5m", "1h30m" or "-1s", not {str(value)[:80]!r}.', param="keep_alive"
    )


def to_nanoseconds(seconds: float) -> int:
    """A duration on the wire."""
    return round(seconds * 1e9)


def format_timestamp(unix: float) -> str:
    """A moment on the wire: RFC 3339 in UTC with nanoseconds."""
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"


ChatTurns = tuple[tuple[str, str], ...]
"""Roles and texts, the oldest first."""

CONTEXT_MARK = 0xEA2D01
"""The first number, by which ours are known."""

NUMBER_BYTES = 3
"""Bytes in a number: it then fits whatever integer a client's language has."""

MAX_CONTEXT_BYTES = 16 << 20
"""Bytes that a conversation may have unpacked."""


def pack_context(turns: ChatTurns) -> list[int]:
    """A conversation as numbers."""
    data = zlib.compress(json.dumps(turns, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"))
    words = (data[at : at + NUMBER_BYTES].ljust(NUMBER_BYTES, b"\0") for at in range(0, len(data), NUMBER_BYTES))
    return [CONTEXT_MARK, len(data), *(int.from_bytes(word, "big") for word in words)]


def unpack_context(numbers: Any) -> ChatTurns | None:
    """The conversation in a client's numbers; None if they are another server's, or not all there.

    Raises:
        InvalidRequestError: they are no list of whole numbers.
    """
    if numbers is None:
        return ()
    if not isinstance(numbers, list) or not all(isinstance(number, int) for number in numbers):
        raise InvalidRequestError("context must be a list of whole numbers.", param="context")
    if not numbers:
        return ()
    if len(numbers) < 2 or numbers[0] != CONTEXT_MARK or not all(0 <= number < 1 << 8 * NUMBER_BYTES for number in numbers):
        return None
    data = b"".join(number.to_bytes(NUMBER_BYTES, "big") for number in numbers[2:])
    return _parse_turns(data[: numbers[1]]) if 0 <= len(data) - numbers[1] < NUMBER_BYTES else None


def _parse_turns(data: bytes) -> ChatTurns | None:
    reader = zlib.decompressobj()
    try:
        found = bounded_json.parse_json(reader.decompress(data, MAX_CONTEXT_BYTES))
        return tuple((str(role), str(text)) for role, text in found) if reader.eof else None
    except (zlib.error, ValueError, TypeError):
        return None
