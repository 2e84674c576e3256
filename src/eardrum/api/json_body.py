"""Reads JSON request bodies within limits, and parses them without blocking the event loop for long.

The parser holds the GIL from the first byte to the last, in whichever thread it runs. So the number of values, names and
brackets and the size of the text are limited. Audio and images in base64 are not: they are mostly copied.

JSON escapes can name half a surrogate pair (U+D800 to U+DFFF). UTF-8 cannot encode that, so it would break the response, the
log line or the upstream request that repeats it: `check_surrogates` refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from eardrum import bounded_json
from eardrum.api.asgi import Receive, Scope, get_header
from eardrum.api.uploads import RequestBody
from eardrum.config import LimitSettings
from eardrum.errors import InvalidRequestError, TooLargeError

SMALL_BODY_BYTES = 1 << 20
"""Bytes of a body of settings, without audio or long text."""

BASE64 = re.compile(rb"[A-Za-z0-9+/=_-]{64,}")
"""A line of base64. Text has no words of this length."""


def open_body(scope: Scope, receive: Receive, limits: LimitSettings) -> RequestBody:
    """Open a JSON request's body.

    Raises:
        TooLargeError: the content length exceeds the limit.
    """
    return RequestBody(scope, receive, limits, limit="json_bytes", param=None)


def limit_small_body(limits: LimitSettings) -> LimitSettings:
    """Return the limits for a body of settings, which holds neither audio nor long text."""
    return limits.model_copy(update={"json_bytes": min(limits.json_bytes, SMALL_BODY_BYTES)})


async def read_body(scope: Scope, body: RequestBody, limits: LimitSettings) -> bytes:
    """Read the whole body.

    Raises:
        TooLargeError: the body, or the part of it that is not base64, exceeds its limit.
        EardrumError, ClientGoneError: as `RequestBody.read`.
    """
    length = get_header(scope, b"content-length")
    counts_text = not length.isdigit() or int(length) > limits.json_text_bytes
    first = await body.read() or b""
    if body.received.is_set() and not counts_text:
        return bytes(first)
    data, text = bytearray(), 0
    chunk: bytes | None = first
    while chunk is not None:
        data += chunk
        if counts_text:
            text += len(chunk) - sum(map(len, BASE64.findall(chunk)))
            if text > limits.json_text_bytes:
                raise TooLargeError(
                    f"The request has more than {limits.json_text_bytes:,} bytes of text (limits.json_text_bytes), "
                    "not counting audio and images in base64."
                )
        chunk = await body.read()
    return bytes(data)


def parse_json_body(data: bytes) -> Any:
    """Parse a body as JSON. A caller that decodes or logs its strings must also call `check_surrogates`.

    Raises:
        InvalidRequestError: the body is not valid JSON.
        TooLargeError: the body holds too many values.
    """
    try:
        return bounded_json.parse_json(data)
    except ValueError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None


def parse_object(
    source: str | bytes,
    *,
    not_json: str = "The body is not valid JSON: {error}.",
    not_object: str = "The body must be a JSON object.",
    param: str | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Parse a body or a message as a JSON object with whole characters.

    Args:
        source: The JSON text.
        not_json: The error's message for invalid JSON; `{error}` in it stands for the parser's explanation.
        not_object: The error's message for JSON of another type.
        param: The field that JSON of another type is blamed on.
        parse_constant: Converts NaN and Infinity, which Python parses and JSON does not allow.

    Raises:
        InvalidRequestError: the text is not a JSON object, or a string holds half a surrogate pair.
        TooLargeError: the text holds too many values.
    """
    try:
        found = bounded_json.parse_json(source, parse_constant=parse_constant)
    except ValueError as error:
        raise InvalidRequestError(not_json.replace("{error}", str(error))) from None
    if not isinstance(found, dict):
        raise InvalidRequestError(not_object, param=param)
    check_surrogates(source, found)
    return found


def check_surrogates(source: str | bytes | bytearray, parsed: Any) -> None:
    """Check that strings in JSON hold whole characters. `source` is the JSON text: nearly always it has no such escape, and
    `parsed` need not be searched.

    Raises:
        InvalidRequestError: a string holds half a surrogate pair.
    """
    if _may_have_surrogates(source) and _has_surrogates(parsed):
        raise InvalidRequestError(
            "A string in the JSON holds half a character (a lone surrogate such as \\ud800): send whole characters."
        )


def _may_have_surrogates(source: str | bytes | bytearray) -> bool:
    if isinstance(source, str):
        return "\\ud" in source or "\\uD" in source
    return b"\\ud" in source or b"\\uD" in source


def _has_surrogates(root: Any) -> bool:
    pending = [root]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if not value.isascii() and _is_unencodable(value):  # isascii() is free: base64 is not searched
                return True
        elif isinstance(value, dict):
            pending += value.keys()
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return False


def _is_unencodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
