"""API key authentication with the config's `api_keys`. Pure ASGI, in front of every route."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence

from starlette.responses import JSONResponse, Response

from eardrum.api.asgi import ASGIApp, ErrorBodyBuilder, Scope, get_header
from eardrum.api.request_log import get_record
from eardrum.errors import EardrumError, UnauthorizedError

PUBLIC_PATHS = frozenset(("/", "/health", "/wol-health", "/favicon.ico", "/docs", "/openapi.json"))
"""Health checks and documentation, which need no key."""

OLLAMA_PREFIX = "/api/"
"""Routes whose clients expect `error` to be a string."""

CHALLENGE = {"www-authenticate": 'Basic realm="eardrum"'}

MISSING_KEY = (
    "This server requires an API key: send it as `Authorization: Bearer KEY`, as `x-api-key: KEY`, or as the password of Basic."
)
WRONG_KEY = "The API key is not valid: check the client's settings, or `api_keys` in the server's config."

KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""Prefix of the subprotocol in which a web page sends a key: browsers cannot set headers for a WebSocket."""


class ApiKeyGuard:
    """Refuses requests and WebSockets without a valid key. Without keys in the config, which may change, all are served.

    `accepts_secret` decides whether a value other than an API key, such as a client secret, authorises this one request.
    """

    def __init__(
        self,
        keys: Callable[[], Sequence[str]],
        build_error_body: ErrorBodyBuilder,
        accepts_secret: Callable[[Scope, str], bool] = lambda *_: False,
    ):
        self._keys = keys
        self._build_error_body = build_error_body
        self._accepts_secret = accepts_secret

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return the refusal, or None for an authorised request."""
        if not self._keys() or scope["path"] in PUBLIC_PATHS:
            return None
        key = read_api_key(scope)
        if self._is_valid(key) or self._accepts_secret(scope, key):
            return None
        error = UnauthorizedError(WRONG_KEY if key else MISSING_KEY)
        get_record(scope).note = error.message
        return self._build_refusal(scope["path"], error)

    def _is_valid(self, key: str) -> bool:
        """Whether `key` is one of the keys. Compares with all of them in constant time, so the duration reveals nothing."""
        return sum([hmac.compare_digest(key.encode(), valid.encode()) for valid in self._keys()]) > 0

    def _build_refusal(self, path: str, error: EardrumError) -> Response:
        body = {"error": error.message} if path.startswith(OLLAMA_PREFIX) else self._build_error_body(error)
        return JSONResponse(body, error.status, CHALLENGE)


def read_api_key(scope: Scope) -> str:
    """Return the client's key: the password of Basic, else the Bearer token, else `x-api-key`, else, for a WebSocket, the key
    in a subprotocol. Empty if there is none."""
    scheme, _, rest = get_header(scope, b"authorization").strip().partition(" ")
    match scheme.lower():
        case "basic":
            return _decode_password(rest.strip())
        case "bearer":
            return _decode_header(rest.strip())
    if key := get_header(scope, b"x-api-key").strip():
        return _decode_header(key)
    return next(
        (name.removeprefix(KEY_SUBPROTOCOL) for name in scope.get("subprotocols", ()) if name.startswith(KEY_SUBPROTOCOL)), ""
    )


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
