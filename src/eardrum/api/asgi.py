"""ASGI in types, and the few replies that edges written without a framework need."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol, cast
from urllib.parse import parse_qs

from eardrum.stalling import StallTimer

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


BY_NAME = "eardrum.headers"
"""Where a scope keeps its headers for those who ask for one: several do, and clients send many."""


class Edge(Protocol):
    """What serves some of the requests, in plain ASGI, or refuses them."""

    def route(self, scope: Scope) -> App | None:
        """What serves this request, if it is for this edge."""


class ClientGoneError(Exception):
    """The client hung up; nobody is left to answer."""


def header(scope: Scope, name: bytes) -> str:
    """The first header of this lower-case name; empty when there is none."""
    by_name: dict[bytes, bytes] | None = scope.get(BY_NAME)
    if by_name is None:
        by_name = scope[BY_NAME] = dict(reversed(scope["headers"]))
    return by_name[name].decode("latin-1") if name in by_name else ""


def flagged(scope: Scope, name: str) -> bool:
    """Whether the query says `?name`, `?name=1` or `?name=true`."""
    values = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get(name, ["0"])
    return values[-1].lower() in ("", "1", "true")


def transport(scope: Scope) -> asyncio.Transport:
    """The connection itself, for what ASGI has no words for."""
    return cast(
        asyncio.Transport, scope["extensions"]["eardrum.connection"]["transport"]
    )  # uvloop's derive from nothing of asyncio's


def stall_timer(scope: Scope) -> StallTimer | None:
    """What bounds how long the client may take nothing in; None with a server that is not ours."""
    found = (scope.get("extensions") or {}).get("eardrum.connection", {}).get("stall")
    return cast(StallTimer | None, found)


async def hang_up(scope: Scope, receive: Receive) -> None:
    """Break the connection off at once, whatever is still to be sent, and wait until it is gone."""
    transport(scope).abort()
    while (await receive())["type"] != "http.disconnect":
        pass
