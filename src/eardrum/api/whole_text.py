"""Refuses JSON with halves of characters in it.

An escape in JSON may name one half of a pair of UTF-16 alone, U+D800 to U+DFFF. No text in UTF-8 can hold that: it would break
the answer, the log line or the request to a model that repeats it.
"""

from __future__ import annotations

from typing import Any

from eardrum.errors import InvalidRequestError


def check_whole(written: str | bytes | bytearray, found: Any) -> None:
    """See that what JSON says is whole characters. `written` is the JSON, which nearly always has nothing to look for.

    Raises:
        InvalidRequestError: half a character is in it.
    """
    if _may_hold_half(written) and _holds_half(found):
        raise InvalidRequestError(
            "A text in the JSON holds half a character (a lone surrogate such as \\ud800): send whole ones."
        )


def _may_hold_half(written: str | bytes | bytearray) -> bool:
    if isinstance(written, str):
        return "\\ud" in written or "\\uD" in written
    return b"\\ud" in written or b"\\uD" in written


def _holds_half(root: Any) -> bool:
    left = [root]
    while left:
        value = left.pop()
        if isinstance(value, str):
            if not value.isascii() and _is_half(value):  # of base64 that is known without a look at it
                return True
        elif isinstance(value, dict):
            left += value.keys()
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False


def _is_half(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
