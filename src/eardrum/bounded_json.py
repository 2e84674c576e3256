"""Parses JSON of clients and upstreams within bounds, without blocking the event loop for long.

The parser holds the interpreter from its first byte to its last, in whichever thread it runs. So the number of values, names and
brackets is limited.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from typing import Any

from eardrum.errors import EardrumError, InvalidRequestError, TooLargeError
from eardrum.garbage_collection import pause_garbage_collection

SMALL_BYTES = 64 << 10
"""Bytes that are parsed without a look at what is in them: 3 ms at worst."""

MAX_DEPTH = 128
"""Brackets within brackets. JSON schemas of tools, the deepest that clients send, have a tenth of it."""

MAX_COUNTS = {"brackets": 200_000, "names": 100_000, "values": 1_000_000}
"""How much of each a text may hold: 0.2 s of the parser at worst. A thousand turns of a chat have 10,000 names."""

UPSTREAM_FACTOR = 10
"""How many times as much servers may send as clients: the words of a day are a million, each with times."""

LONG_PLAIN_STRING = re.compile(rb'(?<!\\)"([A-Za-z0-9+/=:;,._-]{262144,})"(?=\s*[,}\]])')
"""A long string that needs no decoding, where a value can be. Parsed in its place, beside one character of a foreign script,
it would take four times its size for a while."""

LARGE_BYTES = 1 << 20
"""Bytes from which on that is worth the search."""

PLACEHOLDER_LENGTH = 36
"""Characters of what stands in the place of such a string meanwhile."""


def parse_json(data: str | bytes | bytearray, parse_constant: Callable[[str], Any] | None = None, *, times: int = 1) -> Any:
    """The value that JSON stands for. It may hold so many times as much as that of clients.

    Raises:
        TooLargeError: it holds more than can be parsed in passing.
        InvalidRequestError: its brackets are nested too deep.
        ValueError: it is not JSON.
    """
    if len(data) <= MAX_DEPTH:
        return json.loads(data, parse_constant=parse_constant)
    content = data.encode(errors="surrogatepass") if isinstance(data, str) else data
    brackets = content.count(b"[") + content.count(b"{")
    if len(content) > SMALL_BYTES:
        _check_counts(content, brackets, times)
    elif brackets <= MAX_DEPTH:
        return json.loads(content, parse_constant=parse_constant)
    try:
        with pause_garbage_collection():
            found, cut = _parse_without_long_strings(content, parse_constant)
    except RecursionError:
        raise _build_depth_error() from None
    if cut or brackets > MAX_DEPTH:
        _restore_strings(found, cut)
    return found


def parse_upstream_json(data: str | bytes | bytearray) -> Any:
    """The value that JSON of a server behind a model stands for.

    Raises:
        ValueError: it is not JSON, is nested too deep, or holds more than can be parsed in passing.
    """
    try:
        return parse_json(data, times=UPSTREAM_FACTOR)
    except EardrumError as error:  # the client has no part in it
        raise ValueError(error.message) from None


def check_upstream_json(data: str) -> None:
    """See that JSON of a server behind a model, which another parser is to read, does not hold too much for that.

    Raises:
        ValueError: it does.
    """
    try:
        content = data.encode(errors="surrogatepass")
        if len(content) > SMALL_BYTES:
            _check_counts(content, content.count(b"[") + content.count(b"{"), UPSTREAM_FACTOR)
    except TooLargeError as error:
        raise ValueError(error.message) from None


def _check_counts(content: bytes | bytearray, brackets: int, times: int) -> None:
    """See that there is not too much in it.

    Raises:
        TooLargeError: there is.
    """
    names = content.count(b":") - content.count(b'\\":')  # less those of JSON in a string
    found = {"brackets": brackets, "names": names, "values": content.count(b",")}
    for what, number in found.items():
        if number > (most := MAX_COUNTS[what] * times):
            raise TooLargeError(f"The JSON holds more than {most:,} {what}: send less in one request.")


def _build_depth_error() -> InvalidRequestError:
    return InvalidRequestError(f"The JSON is nested more than {MAX_DEPTH} levels deep.")


def _parse_without_long_strings(
    data: bytes | bytearray, parse_constant: Callable[[str], Any] | None
) -> tuple[Any, dict[str, str]]:
    """The value, and what belongs in it where its strings are keys here."""
    if len(data) <= LARGE_BYTES or data.isascii():
        return json.loads(data, parse_constant=parse_constant), {}
    mark, cut = secrets.token_hex(16), dict[str, str]()

    def keep(match: re.Match[bytes]) -> bytes:
        name = f"{mark}{len(cut):04x}"
        cut[name] = match[1].decode("ascii")
        return b'"' + name.encode() + b'"'

    return json.loads(LONG_PLAIN_STRING.sub(keep, data), parse_constant=parse_constant), cut


def _restore_strings(root: Any, cut: dict[str, str]) -> None:
    """Put back what was cut out, and see how deep it is."""
    level = [root]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for node in level:
            for at, child in node.items() if isinstance(node, dict) else enumerate(node):
                if isinstance(child, dict | list):
                    below.append(child)
                elif cut and isinstance(child, str) and len(child) == PLACEHOLDER_LENGTH and child in cut:
                    node[at] = cut[child]
        if not below:
            return
        level = below
    raise _build_depth_error()
