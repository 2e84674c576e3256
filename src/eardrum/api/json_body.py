"""JSON that clients send: read in bounds and parsed in a time that the event loop can spare.

The parser holds the interpreter from its first byte to its last, in whichever thread it runs. So what may be long is bounded:
values, names and brackets by number, text by size, and what is left, audio and images in base64, is mostly copied.
"""

from __future__ import annotations

import gc
import json
import re
import secrets
from collections.abc import Callable
from typing import Any

from eardrum.api.asgi import Receive, Scope, header
from eardrum.api.multipart import Body
from eardrum.config import Limits
from eardrum.errors import InvalidRequestError, TooLargeError

SMALL = 64 << 10
"""Bytes that are parsed without a look at what is in them: 3 ms at worst."""

SHORT = 1 << 20
"""Bytes of a body that says how something is to be done."""

DEEPEST = 128
"""Brackets within brackets. JSON schemas of tools, the deepest that clients send, have a tenth of it."""

MOST = {"brackets": 200_000, "names": 100_000, "values": 1_000_000}
"""How much of each a text may hold: 0.2 s of the parser at worst. A thousand turns of a chat have 10,000 names."""

BASE64 = re.compile(rb"[A-Za-z0-9+/=_-]{64,}")
"""A line of base64. No text has words of this length."""

PLAIN = re.compile(rb'(?<!\\)"([A-Za-z0-9+/=:;,._-]{262144,})"(?=\s*[,}\]])')
"""A long string that needs no decoding, where a value can be. Parsed in its place, beside one character of a foreign script,
it would take four times its size for a while."""

LARGE = 1 << 20
"""Bytes from which on that is worth the search."""

MARKED = 36
"""Characters of what stands in the place of such a string meanwhile."""


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


def parsed(data: str | bytes | bytearray, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value that JSON stands for.

    Raises:
        TooLargeError: it holds more than can be parsed in passing.
        InvalidRequestError: its brackets are nested too deep.
        ValueError: it is not JSON.
    """
    if len(data) <= DEEPEST:
        return json.loads(data, parse_constant=parse_constant)
    content = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    brackets = content.count(b"[") + content.count(b"{")
    if len(content) > SMALL:
        _check(brackets, "brackets")
        _check(content.count(b":") - content.count(b'\\":'), "names")  # less those of JSON in a string
        _check(content.count(b","), "values")
    collecting = gc.isenabled()
    gc.disable()  # it would look through all that is new again and again, and find nothing to free
    try:
        found, cut = _without_long_strings(content, parse_constant)
    except RecursionError:
        raise _too_deep() from None
    finally:
        if collecting:
            gc.enable()
    if cut or brackets > DEEPEST:
        _finish(found, cut)
    return found


def _check(number: int, what: str) -> None:
    if number > MOST[what]:
        raise TooLargeError(f"The JSON holds more than {MOST[what]:,} {what}: send less in one request.")


def _too_deep() -> InvalidRequestError:
    return InvalidRequestError(f"The JSON is nested more than {DEEPEST} levels deep.")


def _without_long_strings(data: bytes | bytearray, parse_constant: Callable[[str], Any] | None) -> tuple[Any, dict[str, str]]:
    """The value, and what belongs in it where its strings are keys here."""
    if len(data) <= LARGE or data.isascii():
        return json.loads(data, parse_constant=parse_constant), {}
    mark, cut = secrets.token_hex(16), dict[str, str]()

    def keep(match: re.Match[bytes]) -> bytes:
        name = f"{mark}{len(cut):04x}"
        cut[name] = match[1].decode("ascii")
        return b'"' + name.encode() + b'"'

    return json.loads(PLAIN.sub(keep, data), parse_constant=parse_constant), cut


def _finish(root: Any, cut: dict[str, str]) -> None:
    """Put back what was cut out, and see how deep it is."""
    level = [root]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for node in level:
            for at, child in node.items() if isinstance(node, dict) else enumerate(node):
                if isinstance(child, dict | list):
                    below.append(child)
                elif cut and isinstance(child, str) and len(child) == MARKED and child in cut:
                    node[at] = cut[child]
        if not below:
            return
        level = below
    raise _too_deep()
