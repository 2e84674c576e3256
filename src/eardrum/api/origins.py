"""Keeps web pages of other origins away from what runs the server, from upstreams' own pages, and from WebSockets. Pure ASGI.

A browser lets any page send to any address, this machine's own included, and then only hides the answer, of a WebSocket not even
that. That would be enough to fetch and to unload models. But it says which page it was, or at least that it was another's.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.responses import Response

from eardrum.api.access import record
from eardrum.api.asgi import App, Scope, header
from eardrum.errors import EardrumError, ForbiddenError

GUARDED = ("/api/", "/upstream/", "/unload", "/logs", "/running")
"""Beginnings of paths that are for whoever runs the server, and for Ollama's clients, whose rule this is."""

APPS = ("app", "file", "tauri", "vscode-file", "vscode-webview")
"""Schemes of programs on this machine that are pages inside; no web site can have one."""

METHODS = "GET, POST, PUT, DELETE, OPTIONS"
DAY_S = "86400"


class Origins:
    """Refuses pages that have no business here, and lets the others read the answers.

    `also` are further origins, `*` all. `refusal` words an error for a path. `invited` says of a WebSocket whether its page may
    use it, wherever it is from.
    """

    def __init__(
        self,
        listens_on: str,
        also: tuple[str, ...],
        refusal: Callable[[str, EardrumError], Response],
        invited: Callable[[Scope], bool] = lambda _: False,
    ):
        self._local = is_local(listens_on)
        self._also = also
        self._refusal = refusal
        self._invited = invited

    def route(self, scope: Scope) -> App | None:
        """What answers in the place of the routes, if they are not to."""
        socket = scope["type"] == "websocket"
        if not socket and not scope["path"].startswith(GUARDED):
            return None
        origin = header(scope, b"origin")
        if not origin and _embedded_elsewhere(scope) and "*" not in self._also:
            origin = "another site"  # pictures and scripts do not say which
        if not origin or (socket and self._invited(scope)):
            return None
        if not may_use(origin, header(scope, b"host"), local=self._local, also=self._also):
            error = ForbiddenError(
                f"Pages of {origin[:100]} may not use {scope['path'][:100]}: name that origin under `origins` in the config."
            )
            record(scope).note = error.message
            return self._refusal(scope["path"], error)
        if not socket and scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
            return Response(status_code=204, headers=_beforehand(scope, origin))
        record(scope).readable = ((b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin"))
        return None


def _embedded_elsewhere(scope: Scope) -> bool:
    """Whether a page of another site has this in it, or is left by a link to where something would be unloaded."""
    if header(scope, b"sec-fetch-site") != "cross-site":
        return False
    return header(scope, b"sec-fetch-mode") != "navigate" or scope["path"].startswith("/unload")


def may_use(origin: str, host: str, *, local: bool, also: tuple[str, ...]) -> bool:
    """Whether pages of this origin may use the server.

    Args:
        origin: of the page, as the browser has it.
        host: what the page calls the server. On its own that proves nothing while the server is for this machine only: a site
            may have given its own name this machine's address.
        local: whether the server is for this machine only.
        also: origins of the config.
    """
    if "*" in also or origin in also:
        return True
    try:
        page = urlsplit(origin)
        name = page.hostname or ""
    except ValueError:
        return False
    if page.scheme in APPS or (page.scheme in ("http", "https") and is_local(name)):
        return True
    return not local and bool(page.netloc) and page.netloc == host


def is_local(name: str) -> bool:
    """Whether a name or an address means the machine it is used on."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _beforehand(scope: Scope, origin: str) -> dict[str, str]:
    wanted = header(scope, b"access-control-request-headers") or "authorization, content-type, x-api-key"
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": wanted,
        "access-control-max-age": DAY_S,
        "vary": "origin, access-control-request-headers",
    }
