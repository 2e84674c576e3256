"""Keeps web pages of other origins away from what runs the server, from upstreams' own pages, and from WebSockets. Pure ASGI.

A browser lets any page send to any address, this machine's own included, and then only hides the answer, of a WebSocket not even
that. That would be enough to fetch and to unload models. But it says which page it was, or at least that it was another's.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.responses import Response

from eardrum.api.access import record
from eardrum.api.asgi import App, Scope, header
from eardrum.api.hosts import is_listed, is_local, named
from eardrum.config import Settings
from eardrum.errors import EardrumError, ForbiddenError
from eardrum.gateway.library import MAY_FETCH

GUARDED = ("/api/", "/upstream/", "/unload", "/logs", "/running")
"""Beginnings of paths that are for whoever runs the server, and for Ollama's clients, whose rule this is."""

KEPT = ("/v1/realtime/client_secrets", "/v1/realtime/transcription_sessions")
"""Paths at which something is kept for whoever asks. Without keys a page of another origin has no use for that."""

UNLOAD = "/unload"
"""llama-swap unloads with GET, as a picture on any page does."""

APPS = ("app", "file", "tauri", "vscode-file", "vscode-webview")
"""Schemes of programs on this machine that are pages inside; no web site can have one."""

METHODS = "GET, POST, PUT, DELETE, OPTIONS"
DAY_S = "86400"

LONGEST = 2000
"""Characters of an origin, and of names of headers, that are repeated."""


class Origins:
    """Refuses pages that have no business here, and lets the others read the answers.

    `refusal` words an error for a path. `invited` says of a WebSocket whether its page may use it, wherever it is from.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        refusal: Callable[[str, EardrumError], Response],
        invited: Callable[[Scope], bool] = lambda _: False,
    ):
        self._settings = settings
        self._refusal = refusal
        self._invited = invited

    def route(self, scope: Scope) -> App | None:
        """What answers in the place of the routes, if they are not to."""
        socket = scope["type"] == "websocket"
        if not socket and not self._guards(scope["path"]):
            return None
        origin = header(scope, b"origin")
        if not origin and "*" not in self._settings().origins and _embedded_elsewhere(scope):
            origin = "another site"  # pictures and scripts do not say which
        if not origin or (socket and self._invited(scope)):
            return None
        if not self._may_use(origin, scope):
            error = ForbiddenError(
                f"Pages of {origin[:100]} may not use {scope['path'][:100]}: name that origin under `origins` in the config."
            )
            record(scope).note = error.message
            return self._refusal(scope["path"], error)
        if not socket and scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method"):
            return Response(status_code=204, headers=_beforehand(scope, origin))
        record(scope).readable = ((b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin"))
        return None

    def is_strange(self, scope: Scope) -> bool:
        """Whether the request is that of a page which may not use what this edge guards, and shows no key."""
        if self._settings().apiKeys:
            return False  # it shows one, or is refused
        origin = header(scope, b"origin")
        return not self._may_use(origin, scope) if origin else _embedded_elsewhere(scope)

    def is_led_here(self, scope: Scope) -> bool:
        """Whether a browser may have been led here, by a link, frame or picture, from a page that may not use this.

        Such a request has no origin. But the browser may say for which site it asks, or from which page in `referer`.
        """
        if header(scope, b"origin"):
            return False  # it has been judged by that
        site = header(scope, b"sec-fetch-site")
        if site in ("same-origin", "none") or not (site or _is_a_browsers(scope)):
            return False
        return not self._may_use(_origin_of(header(scope, b"referer")), scope)

    def _guards(self, path: str) -> bool:
        return path.startswith(GUARDED) or (path in KEPT and not self._settings().apiKeys)

    def _may_use(self, origin: str, scope: Scope) -> bool:
        settings, host = self._settings(), header(scope, b"host")
        known = not is_local(settings.host) or is_listed(named(host), settings.hosts)
        return may_use(origin, host, known=known, also=settings.origins)


class NoFetching:
    """Keeps requests of strange pages, which may use the models, from having further ones fetched (`pull_missing`)."""

    def __init__(self, is_strange: Callable[[Scope], bool]):
        self._is_strange = is_strange

    def route(self, scope: Scope) -> App | None:
        """None always: the request goes on, in a context of its own."""
        MAY_FETCH.set(not self._is_strange(scope))  # in any case: a request may inherit from the one before it on its connection
        return None


def _embedded_elsewhere(scope: Scope) -> bool:
    """Whether a page of another site has this in it, or is left by a link to where something would be unloaded."""
    unloads = scope["path"].startswith(UNLOAD) and scope.get("method") in ("GET", "HEAD")
    if site := header(scope, b"sec-fetch-site"):
        if unloads:
            return site not in ("same-origin", "none")
        return site == "cross-site" and header(scope, b"sec-fetch-mode") != "navigate"
    return unloads and _is_browser(scope)


def _is_browser(scope: Scope) -> bool:
    """Whether a browser asks that does not say for which site, as it does over plain HTTP to another machine.

    One that names the page tells whether that is the server's own.
    """
    if not _is_a_browsers(scope):
        return False
    try:
        return urlsplit(header(scope, b"referer")).netloc != header(scope, b"host")
    except ValueError:
        return True


def _is_a_browsers(scope: Scope) -> bool:
    """Each browser calls itself Mozilla, for ever, and no page can keep it from that."""
    return header(scope, b"user-agent").startswith("Mozilla/")


def _origin_of(address: str) -> str:
    """The origin of a page's address; empty if it has none."""
    try:
        page = urlsplit(address)
    except ValueError:
        return ""
    return f"{page.scheme}://{page.netloc}" if page.netloc else ""


def may_use(origin: str, host: str, *, known: bool, also: tuple[str, ...]) -> bool:
    """Whether pages of this origin may use the server.

    Args:
        origin: of the page, as the browser has it.
        host: what the page calls the server. On its own that proves nothing: a site may have given its own name this machine's
            address.
        known: whether the server is meant to be called so.
        also: origins of the config.
    """
    if len(origin) > LONGEST:
        return False
    if "*" in also or origin in also:
        return True
    try:
        page = urlsplit(origin)
        name = page.hostname or ""
    except ValueError:
        return False
    if page.scheme in APPS or (page.scheme in ("http", "https") and is_local(name)):
        return True
    return known and bool(page.netloc) and page.netloc == host


def _beforehand(scope: Scope, origin: str) -> dict[str, str]:
    wanted = header(scope, b"access-control-request-headers")[:LONGEST] or "authorization, content-type, x-api-key"
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": METHODS,
        "access-control-allow-headers": wanted,
        "access-control-max-age": DAY_S,
        "vary": "origin, access-control-request-headers",
    }
