"""ASGI types and helpers for code that speaks ASGI without a framework.

Also formats header values that repeat client input: bounded in length, and limited to characters that a header can hold.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, quote

from eardrum.connection_limits import StallTimer
from eardrum.errors import EardrumError, MethodNotAllowedError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
ErrorBodyBuilder = Callable[[EardrumError], dict[str, Any]]
"""Builds the JSON object with which a protocol reports an error."""

HEADERS_KEY = "eardrum.headers"
"""Scope key of the headers by name, built once per request: several callers read one, and clients send many."""


def build_error_headers(error: EardrumError) -> dict[str, str]:
    """Build the headers that an error has in every protocol: when to try again, and which methods a path takes."""
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    return headers | {"allow": ", ".join(error.allow)} if isinstance(error, MethodNotAllowedError) else headers


class RequestGuard(Protocol):
    """Refuses some of the requests, in plain ASGI."""

    def concerns(self, path: str) -> bool:
        """Whether HTTP requests for this path need to be asked about: it may depend on nothing else."""

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return the application that refuses this request, or None to pass it on."""


class RequestRouter(Protocol):
    """Serves the requests for some paths, in plain ASGI."""

    @property
    def paths(self) -> Collection[str]:
        """The paths. `/name/` stands for all paths below it."""

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return the application that serves this request for one of the paths, or None to pass it on."""


class ClientGoneError(Exception):
    """The client disconnected, so no answer can be sent."""


def get_header(scope: Scope, name: bytes) -> str:
    """Return the first header with this lower-case name, or an empty string."""
    by_name: dict[bytes, bytes] | None = scope.get(HEADERS_KEY)
    if by_name is None:
        by_name = scope[HEADERS_KEY] = dict(reversed(scope["headers"]))
    return by_name[name].decode("latin-1") if name in by_name else ""


def has_query_flag(scope: Scope, name: str) -> bool:
    """Whether the query has `?name`, `?name=1` or `?name=true`."""
    values = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True).get(name, ["0"])
    return values[-1].lower() in ("", "1", "true")


def get_transport(scope: Scope) -> asyncio.Transport:
    """Return the connection's transport, for operations that ASGI does not offer."""
    # A cast, because uvloop's transports do not derive from asyncio's.
    return cast(asyncio.Transport, scope["extensions"]["eardrum.connection"]["transport"])


def get_stall_timer(scope: Scope) -> StallTimer | None:
    """Return the timer that disconnects a client which stops reading; None under a server other than our own."""
    stall: StallTimer | None = (scope.get("extensions") or {}).get("eardrum.connection", {}).get("stall")
    return stall


async def hang_up(scope: Scope, receive: Receive) -> None:
    """Abort the connection, discard unsent data, and wait until the connection is closed."""
    get_transport(scope).abort()
    while (await receive())["type"] != "http.disconnect":
        pass


class CutOffError(Exception):
    """Makes the server close the connection in the middle of a response."""


async def abort_response(scope: Scope, receive: Receive) -> None:
    """Close the connection in the middle of the response, so that no client takes the response for complete.

    Raises:
        CutOffError: the server has no extension for this.
    """
    hang_up = scope.get("extensions", {}).get("eardrum.hang_up")
    if not hang_up:
        raise CutOffError
    hang_up["call"]()
    while (await receive())["type"] != "http.disconnect":
        pass


async def receive_disconnect() -> Message:
    """A `receive` for responses that are sent after the request's body was read elsewhere."""
    return {"type": "http.disconnect"}


def build_stream_headers(media_type: str) -> list[tuple[bytes, bytes]]:
    """Headers of a streamed response. They keep proxies in between from caching or buffering it."""
    return [
        (b"content-type", media_type.encode()),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx buffers otherwise
    ]


class StreamedResponse:
    """Sends a response in pieces. The first piece begins it: an error before that can still be a separate response."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]):
        self.headers = headers
        self.has_begun = False
        self._send = send

    async def send(self, data: bytes, *, last: bool = False) -> None:
        """Send a piece of the body."""
        if not self.has_begun:
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})


def encode_event(data: str, *, event: str = "") -> bytes:
    """Encode a server-sent event. `data` is a single line, as JSON is."""
    return (f"event: {event}\ndata: {data}\n\n" if event else f"data: {data}\n\n").encode()


MAX_NAMES, MAX_NAME_CHARS = 20, 80
"""Limits of a list of names in a header. Many clients refuse a header of 8 kB."""

MAX_TEXT_CHARS = 2000

UNQUOTED_CHARS = "!#$&'()*+/:;=?@[]^`{|}~"
"""Characters, besides letters, digits and `_.-`, that stay unquoted. The comma is not one: it separates names."""


def format_names(names: Iterable[str]) -> str:
    """Join names with commas. Special characters are percent-encoded; a long list is cut, and the rest counted."""
    unique = list(dict.fromkeys(names))
    shown = [_quote_name(name) for name in unique[:MAX_NAMES]]
    more = len(unique) - len(shown)
    return ", ".join([*shown, f"and {more} more"] if more else shown)


def format_sentence(text: str) -> str:
    """Format a text for people as one line of ASCII."""
    text = text[:MAX_TEXT_CHARS].encode("ascii", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def _quote_name(name: str) -> str:
    shown = quote(name[:MAX_NAME_CHARS], safe=UNQUOTED_CHARS, errors="replace")
    return f"{shown}..." if len(name) > MAX_NAME_CHARS else shown
