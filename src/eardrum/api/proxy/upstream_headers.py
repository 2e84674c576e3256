"""Decides which headers pass between client and upstream, and builds the upstream's request."""

from __future__ import annotations

from collections.abc import Iterable

from eardrum.api.asgi import Scope, get_header
from eardrum.api.auth import KEY_SUBPROTOCOL
from eardrum.gateway.models.inventory import COMMAND, Model
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.external import CREDENTIAL_HEADERS
from eardrum.gateway.upstreams.http_client import BodyStream, OutgoingRequest
from eardrum.request_ids import RAW_REQUEST_ID_HEADER, get_request_id

HOP_BY_HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade"),
    )
)
"""Headers of one connection. The connection to the upstream is another."""

RESPONSE_DROPPED = HOP_BY_HOP | {b"date"}
"""The server adds a date itself."""

FORWARDED_FOR = b"x-forwarded-for"

REQUEST_DROPPED = HOP_BY_HOP | {b"content-length", b"expect", FORWARDED_FOR}
"""The forwarded body has its own length."""

REMOTE_REQUEST_DROPPED = REQUEST_DROPPED | {b"host"}
NO_NAMES: frozenset[bytes] = frozenset()

WEBSOCKET_HEADERS = frozenset(
    (
        b"sec-websocket-key",
        b"sec-websocket-version",
        b"sec-websocket-extensions",
        b"sec-websocket-protocol",
        b"sec-websocket-accept",
    )
)

RawHeaders = Iterable[tuple[bytes, bytes]]


def filter_request_headers(scope: Scope, *, host: bool, without: frozenset[bytes] = NO_NAMES) -> list[tuple[bytes, bytes]]:
    """Filter the client's headers for the upstream. `host` keeps the client's `host`, which an upstream's pages compare with
    their origin; `without` names further headers to drop.
    """
    dropped = REQUEST_DROPPED if host else REMOTE_REQUEST_DROPPED
    if without:
        dropped |= without
    if get_header(scope, b"connection"):
        dropped |= _parse_connection(scope["headers"]) - ({b"host"} if host else NO_NAMES)
    headers: list[tuple[bytes, bytes]] = []
    addresses: list[bytes] = []
    for item in scope["headers"]:
        if item[0] not in dropped:
            headers.append(item)
        elif item[0] == FORWARDED_FOR:
            addresses.append(item[1])
    if client := scope.get("client"):
        addresses.append(client[0].encode("latin-1"))
    if addresses:
        headers.append((FORWARDED_FOR, b", ".join(addresses)))
    return headers


def filter_response_headers(raw: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Filter the upstream's headers, in lower case, for the client. Adds a header that keeps proxies from buffering events."""
    dropped = RESPONSE_DROPPED | _parse_connection(raw) if b"connection" in dict(raw) else RESPONSE_DROPPED
    own_id = RAW_REQUEST_ID_HEADER, get_request_id().encode()  # some upstreams return it, and the response has it already
    headers = [item for item in raw if item[0] not in dropped and item != own_id]
    if get_content_type(headers) == b"text/event-stream":
        headers = [item for item in headers if item[0] != b"x-accel-buffering"]
        headers.append((b"x-accel-buffering", b"no"))
    return headers


def get_content_type(headers: RawHeaders) -> bytes:
    """Return the media type in lower case and without parameters, or an empty string."""
    for name, value in headers:
        if name == b"content-type":
            return value.partition(b";")[0].strip().lower()
    return b""


def _parse_connection(headers: RawHeaders) -> frozenset[bytes]:
    """Return the header names in `connection`, which are hop-by-hop too."""
    values = [value for name, value in headers if name == b"connection"]
    return frozenset(part.strip().lower() for value in values for part in value.split(b","))


WITHHELD_HEADERS = frozenset(CREDENTIAL_HEADERS)


def build_request(service: Service, model: Model, scope: Scope, path: str, body: bytes | BodyStream | None) -> OutgoingRequest:
    """Build the request for the model's upstream. A command's process gets it as if there were no gateway."""
    return OutgoingRequest(scope["method"], path, build_headers(service, model, scope), body)


def build_headers(
    service: Service, model: Model, scope: Scope, *, without: frozenset[bytes] = NO_NAMES
) -> list[tuple[bytes, bytes]]:
    """Build the headers for the model's upstream. This server's API keys are sent to processes on this machine only."""
    dropped = WITHHELD_HEADERS | without if _withholds_keys(service, model) else without
    return filter_request_headers(scope, host=model.engine == COMMAND, without=dropped)


def select_subprotocols(service: Service, model: Model, scope: Scope) -> list[str]:
    """Return the client's WebSocket subprotocols, without the one with an API key unless the upstream may have it."""
    offered: list[str] = scope.get("subprotocols", [])
    return [name for name in offered if not name.startswith(KEY_SUBPROTOCOL)] if _withholds_keys(service, model) else offered


def _withholds_keys(service: Service, model: Model) -> bool:
    return bool(service.settings.api_keys) and model.engine != COMMAND
