"""`context` of `/api/generate`: what was said so far, as numbers that clients keep and send with their next prompt. Pure.

Ollama's numbers are tokens. An upstream behind OpenAI's API takes messages and tells no tokens, so these hold the messages
themselves, packed; to clients both are just numbers.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from eardrum import json_text
from eardrum.errors import InvalidRequestError

Turns = tuple[tuple[str, str], ...]
"""Roles and texts, the oldest first."""

MARK = 0xEA2D01
"""The first number, by which ours are known."""

WIDTH = 3
"""Bytes in a number: it then fits whatever integer a client's language has."""

LARGEST = 16 << 20
"""Bytes that a conversation may have unpacked."""


def packed(turns: Turns) -> list[int]:
    """A conversation as numbers."""
    data = zlib.compress(json.dumps(turns, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"))
    words = (data[at : at + WIDTH].ljust(WIDTH, b"\0") for at in range(0, len(data), WIDTH))
    return [MARK, len(data), *(int.from_bytes(word, "big") for word in words)]


def unpacked(numbers: Any) -> Turns | None:
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
    if len(numbers) < 2 or numbers[0] != MARK or not all(0 <= number < 1 << 8 * WIDTH for number in numbers):
        return None
    data = b"".join(number.to_bytes(WIDTH, "big") for number in numbers[2:])
    return _turns(data[: numbers[1]]) if 0 <= len(data) - numbers[1] < WIDTH else None


def _turns(data: bytes) -> Turns | None:
    reader = zlib.decompressobj()
    try:
        found = json_text.parsed(reader.decompress(data, LARGEST))
        return tuple((str(role), str(text)) for role, text in found) if reader.eof else None
    except (zlib.error, ValueError, TypeError):
        return None
