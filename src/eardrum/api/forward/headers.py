"""Which headers cross the gateway, in either direction."""

from __future__ import annotations

from collections.abc import Iterable

from eardrum.api.asgi import Scope

HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
"""They speak of one connection, and ours to the upstream is another."""

NOT_SENT_BACK = HOP_BY_HOP | {b"date"}
"""Our own answer has a date already."""

COMMON = frozenset((b"close", b"keep-alive"))
"""What a `connection` header mostly says, and is no header."""

NOT_SENT_ON = HOP_BY_HOP | {b"content-length", b"expect", b"host", b"x-forwarded-for"}
"""The length is that of the body that is sent, which may be another."""

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


def sent_on(scope: Scope, *, host: bool, without: frozenset[bytes] = frozenset()) -> list[tuple[bytes, bytes]]:
    """The request's headers for the upstream. `host` keeps the client's, which pages of an upstream compare with their own.

    `without` names what is left out besides.
    """
    headers: list[tuple[bytes, bytes]] = []
    came_by: list[bytes] = []
    dropped = _dropped(scope["headers"], NOT_SENT_ON | without if without else NOT_SENT_ON)
    for name, value in scope["headers"]:
        if name not in dropped or (host and name == b"host"):
            headers.append((name, value))
        elif name == b"x-forwarded-for":
            came_by.append(value)
    if client := scope.get("client"):
        came_by.append(client[0].encode("latin-1"))
    if came_by:
        headers.append((b"x-forwarded-for", b", ".join(came_by)))
    return headers


def sent_back(raw: Raw) -> list[tuple[bytes, bytes]]:
    """The upstream's headers, in lower case, for the client. Events are kept from being buffered by proxies in front of us."""
    dropped = _dropped(raw, NOT_SENT_BACK)
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


def _dropped(headers: Raw, always: frozenset[bytes]) -> frozenset[bytes]:
    """What does not cross: what never does, and what a `connection` header names."""
    for key, value in headers:
        if key == b"connection" and (named := frozenset(part.strip().lower() for part in value.split(b","))) - COMMON:
            always |= named
    return always
