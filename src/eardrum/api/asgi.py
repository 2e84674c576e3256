"""ASGI types, and helpers for code that speaks ASGI without a framework.

Also formats header values that repeat what a client sent: bounded in length, and limited to the characters a header can hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, quote

from eardrum.connection_limits import StallTimer

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


HEADERS_KEY = "eardrum.headers"
"""Where a scope keeps its headers for those who ask for one: several do, and clients send many."""


class RequestRouter(Protocol):
    """What serves some of the requests, in plain ASGI, or refuses them."""

    def route(self, scope: Scope) -> ASGIApp | None:
        """What serves this request, if it is for this edge."""


class ClientGoneError(Exception):
    """The client hung up; nobody is left to answer."""


def get_header(scope: Scope, name: bytes) -> str:
    """The first header of this lower-case name; empty when there is none."""
    by_name: dict[bytes, bytes] | None = scope.get(HEADERS_KEY)
    if by_name is None:
        by_name = scope[HEADERS_KEY] = dict(reversed(scope["headers"]))
    return by_name[name].decode("latin-1") if name in by_name else ""


def has_query_flag(scope: Scope, name: str) -> bool:
    """Whether the query says `?name`, `?name=1` or `?name=true`."""
    values = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get(name, ["0"])
    return values[-1].lower() in ("", "1", "true")


def get_transport(scope: Scope) -> asyncio.Transport:
    """The connection itself, for what ASGI has no words for."""
    return cast(
        asyncio.Transport, scope["extensions"]["eardrum.connection"]["transport"]
    )  # uvloop's derive from nothing of asyncio's


def get_stall_timer(scope: Scope) -> StallTimer | None:
    """What bounds how long the client may take nothing in; None with a server that is not ours."""
    found = (scope.get("extensions") or {}).get("eardrum.connection", {}).get("stall")
    return cast(StallTimer | None, found)


async def hang_up(scope: Scope, receive: Receive) -> None:
    """Break the connection off at once, whatever is still to be sent, and wait until it is gone."""
    get_transport(scope).abort()
    while (await receive())["type"] != "http.disconnect":
        pass


MAX_NAMES, MAX_NAME_CHARS = 20, 80
"""So much is named: a header has an end, and many clients refuse one of 8 kB."""

MAX_TEXT_CHARS = 2000

UNQUOTED_CHARS = "!#$&'()*+/:;=?@[]^`{|}~"
"""Besides letters, digits and `_.-`, what a name may hold as it is: no comma, which stands between two names."""


def format_names(names: Iterable[str]) -> str:
    """Names with commas between. What is not plain in one is percent-encoded; of many names the first are told, and how many more
    there are."""
    unique = list(dict.fromkeys(names))
    shown = [_quote_name(name) for name in unique[:MAX_NAMES]]
    more = len(unique) - len(shown)
    return ", ".join([*shown, f"and {more} more"] if more else shown)


def format_sentence(text: str) -> str:
    """A text for people: one line of ASCII."""
    text = text[:MAX_TEXT_CHARS].encode("ascii", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _quote_name(name: str) -> str:
    shown = quote(name[:MAX_NAME_CHARS], safe=UNQUOTED_CHARS, errors="replace")
    return f"{shown}..." if len(name) > MAX_NAME_CHARS else shown
