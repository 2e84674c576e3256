"""Parses fields that several of Ollama's requests share, and formats times as Ollama does. Pure.

Times are durations, nanoseconds, or RFC 3339.

`context` of `/api/generate` holds the conversation so far as numbers that clients keep and send with their next prompt. In
Ollama these are tokens. An upstream with OpenAI's API takes messages and reports no tokens, so here the numbers hold the
messages themselves, packed; to clients both are just numbers.
"""

from __future__ import annotations

import json
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field

from eardrum import bounded_json, units
from eardrum.api.fields import UNSET_IF_EMPTY, UNSET_IF_NULL, RequestModel, Text, show_value
from eardrum.errors import InvalidRequestError

Verbatim = Annotated[str, UNSET_IF_NULL]
"""Text with the spaces around it; null is empty."""


class ModelRequest(RequestModel):
    """Fields of all requests for a model."""

    model: Text = ""
    name: Text = ""
    """The older name of `model`."""
    stream: Annotated[bool, Field(strict=True), UNSET_IF_EMPTY] = True
    """Stream the response as lines of JSON, which is Ollama's default."""
    keep_alive: Any = None

    @property
    def model_name(self) -> str:
        """The model's name.

        Raises:
            InvalidRequestError: the request names no model.
        """
        if not (name := self.model or self.name):
            raise InvalidRequestError("model is required", param="model")
        return name


FOR_EVER_S = 292 * 365.25 * 86_400
"""The time to live that Ollama reports for models that stay loaded. The year 1 would break clients that subtract from it."""

MIN_TTL_S = 1e-3
"""The shortest time to live. The scheduler takes 0 for "never unload", so an immediate unload needs a positive value."""


def parse_keep_alive(keep_alive: Any, default: float) -> float:
    """Convert a request's `keep_alive` into the scheduler's time to live, in seconds; 0 never unloads the model.

    A number is in seconds; a string is a number or a duration, as in the config. A negative value keeps the model for ever;
    0 unloads it right after the request.

    Args:
        keep_alive: the field of the request; None and "" take the default.
        default: the time to live of the model's config.

    Raises:
        InvalidRequestError: the value is neither a number nor a duration.
    """
    if keep_alive in (None, ""):
        return default
    seconds = _parse_seconds(keep_alive)
    if seconds < 0 or seconds >= FOR_EVER_S:
        return 0.0
    return max(seconds, MIN_TTL_S)


def _parse_seconds(value: Any) -> float:
    seconds = value
    if isinstance(value, str):
        with suppress(ValueError):
            seconds = units.parse_seconds(value.strip().removeprefix("+"))
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds == seconds:  # noqa: PLR0124 -- NaN is not
        return float(min(max(seconds, -1), FOR_EVER_S))
    raise InvalidRequestError(
        f'keep_alive must be seconds or a duration such as "5m", "1h30m" or "-1s", not {show_value(value)}.', param="keep_alive"
    )


def to_nanoseconds(seconds: float) -> int:
    """Convert a duration into the nanoseconds of the wire format."""
    return round(seconds * 1e9)


def format_timestamp(unix: float) -> str:
    """Format a Unix time as RFC 3339 in UTC, with nanoseconds."""
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%dT%H:%M:%S.%f}000Z"


ChatTurns = tuple[tuple[str, str], ...]
"""Pairs of role and text, the oldest first."""

CONTEXT_MARK = 0xEA2D01
"""The first number of a packed context; marks it as packed by this server."""

NUMBER_BYTES = 3
"""Bytes per number, few enough for the integers of any client's language."""

MAX_CONTEXT_BYTES = 16 << 20
"""The largest unpacked conversation, in bytes."""


def pack_context(turns: ChatTurns) -> list[int]:
    """Pack a conversation into numbers."""
    data = zlib.compress(json.dumps(turns, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"))
    words = (data[at : at + NUMBER_BYTES].ljust(NUMBER_BYTES, b"\0") for at in range(0, len(data), NUMBER_BYTES))
    return [CONTEXT_MARK, len(data), *(int.from_bytes(word, "big") for word in words)]


def unpack_context(numbers: Any) -> ChatTurns | None:
    """Unpack a conversation; None if another server packed it, or if it is truncated.

    Raises:
        InvalidRequestError: `context` is not a list of whole numbers.
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
