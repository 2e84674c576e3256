"""Decides which web pages may use the server: by origin, by host name, and by CORS. Pure ASGI.

Origins: a browser lets any page send requests to any address, including this machine's, and only hides the response; for a
WebSocket not even that. That would be enough to download and unload models. But the browser names the page's origin, or at
least says that the request is cross-site.

Host names: a page of `http://evil.example:8100` may have its name resolve to 127.0.0.1, or to a machine in its visitor's
network (DNS rebinding). The browser then sees page and server as one origin and hides nothing. But it sends the name in
`host`, and no page can have an address there, nor a name that only this machine or this network knows.

CORS: pages of other origins may use the models, but neither routes that change the server (`/api/`, `/unload`, logs) nor the
pages behind `/upstream/`, which any web site opened on this machine could use otherwise. Cookies are never allowed, so a site
can do no more than a client without a key.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.responses import Response

from eardrum.api.asgi import ASGIApp, Receive, Scope, Send, get_header
from eardrum.api.request_log import get_record
from eardrum.config import Settings
from eardrum.errors import EardrumError, ForbiddenError, UnknownHostError
from eardrum.gateway.models.download import MAY_FETCH

GUARDED_PREFIXES = ("/api/", "/upstream/", "/unload", "/logs", "/running")
"""Beginnings of paths that are for whoever runs the server, and for Ollama's clients, whose rule this is."""

SECRET_PATHS = ("/v1/realtime/client_secrets", "/v1/realtime/transcription_sessions")
"""Paths at which something is kept for whoever asks. Without keys a page of another origin has no use for that."""

UNLOAD_PREFIX = "/unload"
"""llama-swap unloads with GET, as a picture on any page does."""

APP_SCHEMES = ("app", "file", "tauri", "vscode-file", "vscode-webview")
"""Schemes of programs on this machine that are pages inside; no web site can have one."""

GUARDED_METHODS = "GET, POST, PUT, DELETE, OPTIONS"
GUARDED_MAX_AGE = "86400"

MAX_ORIGIN_CHARS = 2000
"""Characters of an origin, and of names of headers, that are repeated."""


class OriginGuard:
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
        self._is_invited = invited

    def route(self, scope: Scope) -> ASGIApp | None:
        """What answers in the place of the routes, if they are not to."""
        socket = scope["type"] == "websocket"
        if not socket and not self._is_guarded(scope["path"]):
            return None
        origin = get_header(scope, b"origin")
        if not origin and "*" not in self._settings().origins and _is_cross_site(scope):
            origin = "another site"  # pictures and scripts do not say which
        if not origin or (socket and self._is_invited(scope)):
            return None
        if not self._may_use(origin, scope):
            error = ForbiddenError(
                f"Pages of {origin[:100]} may not use {scope['path'][:100]}: name that origin under `origins` in the config."
            )
            get_record(scope).note = error.message
            return self._refusal(scope["path"], error)
        if not socket and scope["method"] == "OPTIONS" and get_header(scope, b"access-control-request-method"):
            return Response(status_code=204, headers=_build_preflight_headers(scope, origin))
        get_record(scope).cors_headers = ((b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin"))
        return None

    def is_foreign_page(self, scope: Scope) -> bool:
        """Whether the request is that of a page which may not use what this edge guards, and shows no key."""
        if self._settings().apiKeys:
            return False  # it shows one, or is refused
        origin = get_header(scope, b"origin")
        return not self._may_use(origin, scope) if origin else _is_cross_site(scope)

    def is_led_here(self, scope: Scope) -> bool:
        """Whether a browser may have been led here, by a link, frame or picture, from a page that may not use this.

        Such a request has no origin. But the browser may say for which site it asks, or from which page in `referer`.
        """
        if get_header(scope, b"origin"):
            return False  # it has been judged by that
        site = get_header(scope, b"sec-fetch-site")
        if site in ("same-origin", "none") or not (site or _is_a_browsers(scope)):
            return False
        return not self._may_use(_origin_of(get_header(scope, b"referer")), scope)

    def _is_guarded(self, path: str) -> bool:
        return path.startswith(GUARDED_PREFIXES) or (path in SECRET_PATHS and not self._settings().apiKeys)

    def _may_use(self, origin: str, scope: Scope) -> bool:
        settings, host = self._settings(), get_header(scope, b"host")
        known = not is_local(settings.host) or is_listed_host(parse_host(host), settings.hosts)
        return may_use(origin, host, known=known, also=settings.origins)


class PullGuard:
    """Keeps requests of strange pages, which may use the models, from having further ones fetched (`pull_missing`)."""

    def __init__(self, is_strange: Callable[[Scope], bool]):
        self._is_foreign_page = is_strange

    def route(self, scope: Scope) -> ASGIApp | None:
        """None always: the request goes on, in a context of its own."""
        MAY_FETCH.set(
            not self._is_foreign_page(scope)
        )  # in any case: a request may inherit from the one before it on its connection
        return None


def _is_cross_site(scope: Scope) -> bool:
    """Whether a page of another site has this in it, or is left by a link to where something would be unloaded."""
    unloads = scope["path"].startswith(UNLOAD_PREFIX) and scope.get("method") in ("GET", "HEAD")
    if site := get_header(scope, b"sec-fetch-site"):
        if unloads:
            return site not in ("same-origin", "none")
        return site == "cross-site" and get_header(scope, b"sec-fetch-mode") != "navigate"
    return unloads and _is_browser(scope)


def _is_browser(scope: Scope) -> bool:
    """Whether a browser asks that does not say for which site, as it does over plain HTTP to another machine.

    One that names the page tells whether that is the server's own.
    """
    if not _is_a_browsers(scope):
        return False
    try:
        return urlsplit(get_header(scope, b"referer")).netloc != get_header(scope, b"host")
    except ValueError:
        return True


def _is_a_browsers(scope: Scope) -> bool:
    """Each browser calls itself Mozilla, for ever, and no page can keep it from that."""
    return get_header(scope, b"user-agent").startswith("Mozilla/")


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
    if len(origin) > MAX_ORIGIN_CHARS:
        return False
    if "*" in also or origin in also:
        return True
    try:
        page = urlsplit(origin)
        name = page.hostname or ""
    except ValueError:
        return False
    if page.scheme in APP_SCHEMES or (page.scheme in ("http", "https") and is_local(name)):
        return True
    return known and bool(page.netloc) and page.netloc == host


def _build_preflight_headers(scope: Scope, origin: str) -> dict[str, str]:
    wanted = get_header(scope, b"access-control-request-headers")[:MAX_ORIGIN_CHARS] or "authorization, content-type, x-api-key"
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": GUARDED_METHODS,
        "access-control-allow-headers": wanted,
        "access-control-max-age": GUARDED_MAX_AGE,
        "vary": "origin, access-control-request-headers",
    }


PRIVATE_SUFFIXES = ("localhost", "local", "internal")
"""Ends of names that nobody can register: of this machine, of mDNS, and those set aside for private use. As Ollama has it."""

NETWORK_SUFFIXES = ("lan", "home", "home.arpa", "intranet", "corp", "private", "localdomain")
"""Further ones that routers and companies give to their machines. No public server of names knows them."""

MAX_SHOWN_CHARS = 100


class HostGuard:
    """Refuses requests and WebSockets for names that are not this server's.

    Whoever shows a key is no strange page, and a page cannot have a certificate for another's name: with `apiKeys` or TLS
    every name does. `refusal` words an error for a path.
    """

    def __init__(self, settings: Callable[[], Settings], refusal: Callable[[str, EardrumError], Response]):
        self._settings = settings
        self._refusal = refusal
        self._machine = socket.gethostname().lower()

    def route(self, scope: Scope) -> ASGIApp | None:
        """What refuses the request, if it is not let in."""
        settings = self._settings()
        if settings.apiKeys or settings.tls_certificate:
            return None
        host = get_header(scope, b"host")
        if _is_own_name(host, self._machine, settings.host, settings.hosts):
            return None
        name = parse_host(host)
        error = UnknownHostError(
            f"This server is not known as {name[:MAX_SHOWN_CHARS]}: "
            "add the name to `hosts` in the config, ask it by an address, or have "
            "clients show one of `apiKeys`."
        )
        get_record(scope).note = error.message
        return self._refusal(scope["path"], error)


@lru_cache(maxsize=64)  # nearly all requests call the server by one name
def _is_own_name(host: str, machine: str, bound_to: str, hosts: tuple[str, ...]) -> bool:
    """Whether a `host` header names this server, which is called `machine` and listens at `bound_to`."""
    name = parse_host(host)
    if "." not in name or is_address(name) or name == machine or is_listed_host(name, hosts):
        return True  # no web site is called by one word: a container or a machine of the network is
    private = PRIVATE_SUFFIXES if is_local(bound_to) else PRIVATE_SUFFIXES + NETWORK_SUFFIXES
    return name.endswith(tuple(f".{end}" for end in private))


def parse_host(host: str) -> str:
    """The name or address in a `host` header, without the port and in lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    before, colon, port = name.partition(":")
    if colon and port.isdecimal():
        name = before
    return name.rstrip(".")


def is_listed_host(name: str, hosts: tuple[str, ...]) -> bool:
    """Whether a name is one of the config's, in which `*.example.com` is every name below that one, and `*` every name."""
    parts = name.split(".")
    above = {f"*.{'.'.join(parts[at:])}" for at in range(1, len(parts))}
    return any(entry in ("*", name) or entry in above for entry in map(str.lower, hosts))


def is_address(name: str) -> bool:
    """Whether it is an address and no name."""
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_local(name: str) -> bool:
    """Whether a name or an address means the machine it is used on."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


SHARED_PREFIXES = (
    "/v1/",
    "/v/",
    "/sdapi/",
    "/audioapi/",
    "/rerank",
    "/reranking",
    "/infill",
    "/completion",
    "/props",
    "/models",
    "/health",
)
"""How the paths begin that any page may use."""

ALLOW_ANY_ORIGIN = (b"access-control-allow-origin", b"*")
CORS_HEADERS = (ALLOW_ANY_ORIGIN, (b"access-control-expose-headers", b"*"))
SHARED_METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
SHARED_MAX_AGE = b"86400"

MAX_HEADER_NAMES_CHARS = 2000
"""Characters of the names of headers that are repeated."""


class CorsPolicy:
    """Answers what browsers ask beforehand, and has every answer say that it may be read."""

    def route(self, scope: Scope) -> ASGIApp | None:
        """What answers in the place of the routes, if they are not to."""
        if scope["type"] != "http" or not scope["path"].startswith(SHARED_PREFIXES):
            return None
        if scope["method"] == "OPTIONS":
            return _answer_preflight
        get_record(scope).cors_headers = CORS_HEADERS
        return None


async def _answer_preflight(scope: Scope, _: Receive, send: Send) -> None:
    wanted = (
        get_header(scope, b"access-control-request-headers")[:MAX_HEADER_NAMES_CHARS] or "authorization, content-type, x-api-key"
    )
    headers = [
        ALLOW_ANY_ORIGIN,
        (b"access-control-allow-methods", SHARED_METHODS),
        (b"access-control-allow-headers", wanted.encode("latin-1")),
        (b"access-control-max-age", SHARED_MAX_AGE),
        (b"vary", b"access-control-request-headers"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
