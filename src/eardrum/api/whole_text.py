"""Refuses JSON with halves of characters in it.

An escape in JSON may name one half of a pair of UTF-16 alone, U+D800 to U+DFFF. No text in UTF-8 can hold that: it would break
the answer, the log line or the request to a model that repeats it.
"""

from __future__ import annotations

import json
from typing import Any

from eardrum.errors import InvalidRequestError


def check_whole(written: str | bytes | bytearray, found: Any) -> None:
    """See that what JSON says is whole characters. `written` is the JSON, which nearly always has nothing to look for.

    Raises:
        InvalidRequestError: half a character is in it.
    """
    if not _has_half_pairs(written):
        return
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "A text in the JSON holds half a character (a lone surrogate such as \\ud800): send whole ones."
        ) from None
    except (ValueError, RecursionError):  # what else is wrong with it is for others to say
        return


def _has_half_pairs(written: str | bytes | bytearray) -> bool:
    if isinstance(written, str):
        return "\\ud" in written or "\\uD" in written
    return b"\\ud" in written or b"\\uD" in written
