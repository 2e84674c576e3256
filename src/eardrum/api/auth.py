"""Checks API keys: requests must show one of the config's `apiKeys`. Pure ASGI, in front of every route."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from eardrum.api.asgi import ASGIApp, Scope, get_header
from eardrum.api.request_log import get_record
from eardrum.errors import EardrumError, UnauthorizedError

PUBLIC_PATHS = frozenset(("/", "/health", "/wol-health", "/favicon.ico", "/docs", "/openapi.json"))
"""What says whether the server is up, and how it is to be used."""

OLLAMA_PREFIX = "/api/"
"""Routes whose clients expect an error to be a string."""

CHALLENGE = {"www-authenticate": 'Basic realm="eardrum"'}

MISSING_KEY = "Show one of the server's keys, as `Authorization: Bearer KEY`, as `x-api-key: KEY`, or as the password of Basic."
WRONG_KEY = "The key is not one of this server's: check the client's settings, or `apiKeys` in the server's config."

KEY_SUBPROTOCOL = "openai-insecure-api-key."
"""How pages in browsers, which cannot set headers for a WebSocket, show a key: as the name of a subprotocol."""


class ApiKeyGuard:
    """Refuses requests and WebSockets without a key. Without keys in the config, which may change, everybody is let in.

    `opens` says of what is no key whether it opens this one request.
    """

    def __init__(
        self,
        keys: Callable[[], Sequence[str]],
        worded: Callable[[EardrumError], dict[str, Any]],
        opens: Callable[[Scope, str], bool] = lambda *_: False,
    ):
        self._keys = keys
        self._build_body = worded
        self._accepts_key = opens

    def route(self, scope: Scope) -> ASGIApp | None:
        """What refuses the request, if it is not let in."""
        if not self._keys() or scope["path"] in PUBLIC_PATHS:
            return None
        shown = read_api_key(scope)
        if self._is_valid(shown) or self._accepts_key(scope, shown):
            return None
        error = UnauthorizedError(WRONG_KEY if shown else MISSING_KEY)
        get_record(scope).note = error.message
        return self._build_refusal(scope["path"], error)

    def _is_valid(self, shown: str) -> bool:
        """Whether it is one of the keys; takes as long whichever it is, and however much of it is right."""
        return sum([hmac.compare_digest(shown.encode(), key.encode()) for key in self._keys()]) > 0

    def _build_refusal(self, path: str, error: EardrumError) -> Response:
        body = {"error": error.message} if path.startswith(OLLAMA_PREFIX) else self._build_body(error)
        return JSONResponse(body, error.status, CHALLENGE)


def read_api_key(scope: Scope) -> str:
    """The key that a client shows: the password of Basic, else the Bearer token, else `x-api-key`, else, for a WebSocket, what a
    subprotocol holds; empty if none."""
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


def _decode_header(sent: str) -> str:
    """A header's bytes, which were read as Latin-1, in the encoding in which clients send what is not ASCII: mostly UTF-8."""
    if sent.isascii():
        return sent
    try:
        return sent.encode("latin-1").decode()
    except UnicodeDecodeError:
        return sent


def _decode_password(encoded: str) -> str:
    try:
        return base64.b64decode(encoded, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""
