"""Reads JSON request bodies within limits, and parses them without blocking the event loop for long.

The parser holds the GIL from the first byte to the last, in whichever thread it runs. So everything that may be long is
bounded: values, names and brackets by count, text by size. The rest, audio and images in base64, is mostly copied.

JSON escapes can name half a surrogate pair (U+D800 to U+DFFF). UTF-8 cannot encode that, so it would break the response, the
log line or the upstream request that repeats it: `check_surrogates` refuses it.
"""

from __future__ import annotations

import re
from typing import Any

from eardrum.api.asgi import Receive, Scope, get_header
from eardrum.api.uploads import RequestBody
from eardrum.config import LimitSettings
from eardrum.errors import InvalidRequestError, TooLargeError

SMALL_BODY_BYTES = 1 << 20
"""Bytes of a body that says how something is to be done."""

BASE64 = re.compile(rb"[A-Za-z0-9+/=_-]{64,}")
"""A line of base64. No text has words of this length."""


def open_body(scope: Scope, receive: Receive, limits: LimitSettings) -> RequestBody:
    """The body of a request in JSON.

    Raises:
        TooLargeError: it announces more bytes than allowed.
    """
    return RequestBody(scope, receive, limits, limit="json_bytes")


def limit_small_body(limits: LimitSettings) -> LimitSettings:
    """The limits of a body that carries neither audio nor pages of text."""
    return limits.model_copy(update={"json_bytes": min(limits.json_bytes, SMALL_BODY_BYTES)})


async def read_body(scope: Scope, body: RequestBody, limits: LimitSettings) -> bytes:
    """All of it.

    Raises:
        TooLargeError: it has more of them than allowed, or more that are no base64.
        EardrumError, ClientGoneError: as `Body.read`.
    """
    announced = get_header(scope, b"content-length")
    counts = not announced.isdigit() or int(announced) > limits.json_text_bytes
    first = await body.read() or b""
    if body.received.is_set() and not counts:
        return bytes(first)
    data, text = bytearray(), 0
    chunk: bytes | None = first
    while chunk is not None:
        data += chunk
        if counts:
            text += len(chunk) - sum(map(len, BASE64.findall(chunk)))
            if text > limits.json_text_bytes:
                most = f"{limits.json_text_bytes:,} bytes (limits.json_text_bytes)"
                raise TooLargeError(f"The request holds more than {most} beside audio and images in base64.")
        chunk = await body.read()
    return bytes(data)


def check_surrogates(written: str | bytes | bytearray, found: Any) -> None:
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
