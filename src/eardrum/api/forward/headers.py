"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

from collections.abc import Iterable

from eardrum.api.asgi import Scope, header

HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
"""They speak of one connection, and ours to the upstream is another."""

NOT_SENT_BACK = HOP_BY_HOP | {b"date"}
"""Our own answer has a date already."""

FORWARDED_FOR = b"x-forwarded-for"

NOT_SENT_ON = HOP_BY_HOP | {b"content-length", b"expect", FORWARDED_FOR}
"""The length is that of the body that is sent, which may be another."""

NOT_SENT_ON_ELSEWHERE = NOT_SENT_ON | {b"host"}
NONE: frozenset[bytes] = frozenset()

WEB_SOCKET = frozenset(
    (
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"sec-websocket-accept",
    )
)

Raw = Iterable[tuple[bytes, bytes]]


def sent_on(scope: Scope, *, host: bool, without: frozenset[bytes] = NONE) -> list[tuple[bytes, bytes]]:
    """The request's headers for the upstream. `host` keeps the client's, which pages of an upstream compare with their own.

    `without` names what is left out besides.
    """
    dropped = (NOT_SENT_ON if host else NOT_SENT_ON_ELSEWHERE) | without
    if header(scope, b"connection"):
        dropped |= _named(scope["headers"]) - ({b"host"} if host else NONE)
    headers = [item for item in scope["headers"] if item[0] not in dropped]
    came_by = [value for name, value in scope["headers"] if name == FORWARDED_FOR]
    if client := scope.get("client"):
        came_by.append(client[0].encode("latin-1"))
    if came_by:
        headers.append((FORWARDED_FOR, b", ".join(came_by)))
    return headers


def sent_back(raw: Raw) -> list[tuple[bytes, bytes]]:
    """The upstream's headers, in lower case, for the client. Events are kept from being buffered by proxies in front of us."""
    dropped = NOT_SENT_BACK | _named(raw)
    headers = [item for item in raw if item[0] not in dropped]
    if content_type(headers) == b"text/event-stream":
        headers = [item for item in headers if item[0] != b"x-accel-buffering"]
        headers.append((b"x-accel-buffering", b"no"))
    return headers


def content_type(headers: Raw) -> bytes:
    """The media type without its parameters, in lower case; empty if none is said."""
    for name, value in headers:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower()
    return b""


def _named(headers: Raw) -> frozenset[bytes]:
    """What a `connection` header names: it does not cross either."""
    values = [value for name, value in headers if name == b"connection"]
    return frozenset(part.strip().lower() for value in values for part in value.split(b",")) if values else NONE
