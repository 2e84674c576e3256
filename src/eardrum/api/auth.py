"""API key authentication with the config's `api_keys`. Pure ASGI, in front of every route."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from urllib.parse import unquote

from starlette.responses import Response

from eardrum.api.asgi import ASGIApp, Scope, get_header
from eardrum.api.key_scopes import MAX_ROUTE_CHARS, PUBLIC_LISTS, PUBLIC_PATHS, find_need, recall_need
from eardrum.api.request_log import get_record
from eardrum.config.api_keys import KeyScope
from eardrum.errors import EardrumError, InsufficientScopeError, KeyLimitError, UnauthorizedError
from eardrum.gateway.key_usage import CURRENT_KEY, KeyRegistry, KeyUsage

CHALLENGE = {"www-authenticate": 'Basic realm="eardrum"'}
QUIET_CHALLENGE = {"www-authenticate": 'Bearer realm="eardrum"'}
"""For scripts of web pages, which send `x-requested-with`: at Basic, the browser itself asks for a password, and the page gets no
answer before the user has given one."""

MISSING_KEY = (
    "This server requires an API key: send it as `Authorization: Bearer KEY`, as `x-api-key: KEY`, or as the password of Basic."
)
WRONG_KEY = "The API key is not valid: check the client's settings, or `api_keys` in the server's config."

KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""Prefix of the subprotocol in which a web page sends a key: browsers cannot set headers for a WebSocket."""


SOCKET_METHOD = "SOCKET"
"""Stands for the method of a WebSocket, which ASGI does not name. It is not GET: a list needs no key, but a WebSocket at the same
path reaches a model's server."""

MAX_CLIENT_WAIT_S = 120.0
"""OpenAI's clients do not wait longer, and repeat the request at once: they are told not to repeat it."""


class ApiKeyGuard:
    """Refuses requests and WebSockets that no key allows. Without keys in the config, which may change, all are served.

    `build_error_response` formats an error for a path. `find_owner` finds the API key behind another value that authorises this
    one request: a client secret's creator.
    """

    def __init__(
        self,
        keys: KeyRegistry,
        build_error_response: Callable[[str, EardrumError], Response],
        find_owner: Callable[[Scope, str], KeyUsage | None] = lambda *_: None,
    ):
        self._keys = keys
        self._build_error_response = build_error_response
        self._find_owner = find_owner

    def concerns(self, path: str) -> bool:
        """Whether a path may need a key."""
        return path not in PUBLIC_PATHS

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return the refusal, or None for an authorised request."""
        if self._keys.is_empty:
            return None
        path = scope["path"]
        find = recall_need if len(path) <= MAX_ROUTE_CHARS else find_need
        needed, counts = find(scope.get("method", SOCKET_METHOD), path)
        if not needed and path not in PUBLIC_LISTS:
            return None
        key = read_api_key(scope)
        usage = self._keys.find_usage(key)
        if not needed:  # a key that is sent anyway limits the list to its models
            CURRENT_KEY.set(usage)
            return None
        usage = usage or self._find_owner(scope, key)
        try:
            _check_key(usage, key, needed)
            assert usage
            CURRENT_KEY.set(usage)
            if counts:
                usage.start_request()
                get_record(scope).key_usage = usage
        except EardrumError as error:
            get_record(scope).note = error.message
            return self._build_refusal(scope, error, usage)
        return None

    def _build_refusal(self, scope: Scope, error: EardrumError, usage: KeyUsage | None) -> Response:
        response = self._build_error_response(scope["path"], error)
        if error.status == UnauthorizedError.status:
            response.headers.update(QUIET_CHALLENGE if get_header(scope, b"x-requested-with") else CHALLENGE)
        if error.retry_after is not None and error.retry_after > MAX_CLIENT_WAIT_S:
            response.headers["x-should-retry"] = "false"
        if usage and error.status == KeyLimitError.status:
            response.raw_headers += usage.build_limit_headers()
        return response


def _check_key(usage: KeyUsage | None, key: str, needed: KeyScope) -> None:
    """Check that a key is valid now, and has the right.

    Raises:
        UnauthorizedError: it is missing, unknown or expired.
        InsufficientScopeError: it lacks the right.
    """
    if not usage:
        raise UnauthorizedError(WRONG_KEY if key else MISSING_KEY)
    settings = usage.settings
    if settings.expires and settings.has_expired:
        raise UnauthorizedError(f"The API key expired on {settings.expires:%Y-%m-%d}: ask the server's operator for another one.")
    if needed not in settings.scopes:
        scopes = ", ".join(settings.scopes)
        raise InsufficientScopeError(f"{usage.name} lacks the scope `{needed}`, which this route needs; it has {scopes}.")


def read_api_key(scope: Scope) -> str:
    """Return the client's key: the password of Basic, else the Bearer token, else `x-api-key`, else, for a WebSocket, the key
    in a subprotocol, where characters may be percent-encoded. Empty if there is none."""
    scheme, _, rest = get_header(scope, b"authorization").strip().partition(" ")
    match scheme.lower():
        case "basic":
            return _decode_password(rest.strip())
        case "bearer":
            return rest.strip() if rest.isascii() else _decode_header(rest.strip())
    if key := get_header(scope, b"x-api-key").strip():
        return _decode_header(key)
    offered = (name for name in scope.get("subprotocols", ()) if name.startswith(KEY_SUBPROTOCOL))
    return unquote(next(offered, "").removeprefix(KEY_SUBPROTOCOL))


def _decode_header(value: str) -> str:
    """Decode a header again that was read as Latin-1: most clients send non-ASCII characters in UTF-8."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _decode_password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
