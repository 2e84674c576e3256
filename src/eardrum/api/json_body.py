"""JSON that clients send: read in bounds and parsed in a time that the event loop can spare.

Values, names and brackets are bounded by number (`json_text`), text by size, and what is left, audio and images in base64, is
mostly copied.
"""

from __future__ import annotations

import re

from eardrum.api.asgi import Receive, Scope, header
from eardrum.api.multipart import Body
from eardrum.config import Limits
from eardrum.errors import TooLargeError

SHORT = 1 << 20
"""Bytes of a body that says how something is to be done."""

BASE64 = re.compile(rb"[A-Za-z0-9+/=_-]{64,}")
"""A line of base64. No text has words of this length."""


def opened(scope: Scope, receive: Receive, limits: Limits) -> Body:
    """The body of a request in JSON.

    Raises:
        TooLargeError: it announces more bytes than allowed.
    """
    return Body(scope, receive, limits, limit="json_bytes")


def small(limits: Limits) -> Limits:
    """The limits of a body that carries neither audio nor pages of text."""
    return limits.model_copy(update={"json_bytes": min(limits.json_bytes, SHORT)})


async def received(scope: Scope, body: Body, limits: Limits) -> bytes:
    """All of it.

    Raises:
        TooLargeError: it has more of them than allowed, or more that are no base64.
        EardrumError, ClientGoneError: as `Body.read`.
    """
    announced = header(scope, b"content-length")
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
