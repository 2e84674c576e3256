"""Decides which web pages may use the server: by origin, by host name, and by CORS. Pure ASGI.

Origins: a browser lets any page send requests to any address, including this machine's, and only hides the response; for a
WebSocket it does not even hide that. A page could download and unload models this way. But the browser sends the page's
origin, or at least marks the request as cross-site.

Host names: the owner of `http://evil.example:8100` can resolve that name to 127.0.0.1, or to a machine in the visitor's
network (DNS rebinding). The browser then treats page and server as one origin and hides nothing. But it sends the name in
`host`, and an attacker's page cannot send an IP address there, nor a name that resolves only on this machine or network.

CORS: pages of other origins may use the models, but neither routes that change the server (`/api/`, `/unload`, logs) nor the
pages behind `/upstream/`; otherwise any web site opened on this machine could use them. Cookies are never allowed, so a page
can do no more than a client without a key.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_address
from typing import Protocol
from urllib.parse import urlsplit

from starlette.responses import Response

from eardrum.api.asgi import ASGIApp, Scope, get_header
from eardrum.api.request_log import get_record
from eardrum.config import Settings
from eardrum.errors import EardrumError, ForbiddenError, UnknownHostError
from eardrum.gateway.models.download import MAY_FETCH

GUARDED_PREFIXES = ("/api/", "/upstream/", "/unload", "/logs", "/running", "/config", "/v1/files", "/v1/batches")
"""Prefixes of administrative paths, of files and jobs, and of Ollama's API, which has the same rule."""

SECRET_PATHS = ("/v1/realtime/client_secrets", "/v1/realtime/transcription_sessions")
"""Paths that create client secrets. Without API keys, a page of another origin has no use for one."""

MODELS_PREFIX, STORE_METHODS = "/v1/models/", ("POST", "DELETE")
"""Where speaches' clients download and delete models. Every page may read there."""

UNLOAD_PREFIX = "/unload"
"""llama-swap unloads with GET, so an image on any page could trigger it."""

APP_SCHEMES = ("app", "file", "tauri", "vscode-file", "vscode-webview")
"""Schemes of desktop applications that are built from web pages. No web site can have one."""

GUARDED_METHODS = "GET, POST, PUT, DELETE, OPTIONS"

MAX_ORIGIN_CHARS = 2000
"""A longer origin is refused."""


class SettingsHolder(Protocol):
    """Has the settings in force, which a reload of the config replaces."""

    settings: Settings


class OriginGuard:
    """Refuses pages of other origins, and lets allowed origins read the responses.

    `build_error_response` formats an error for a path. `is_invited` decides whether a WebSocket is open to pages of any origin.
    """

    def __init__(
        self,
        holder: SettingsHolder,
        build_error_response: Callable[[str, EardrumError], Response],
        is_invited: Callable[[Scope], bool] = lambda _: False,
    ):
        self._holder = holder
        self._build_error_response = build_error_response
        self._is_invited = is_invited

    def concerns(self, path: str) -> bool:
        """Whether HTTP requests for this path may be refused."""
        return path.startswith((*GUARDED_PREFIXES, MODELS_PREFIX)) or path in SECRET_PATHS

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return a refusal or a preflight response, or None for a request that may continue."""
        is_websocket = scope["type"] == "websocket"
        if not is_websocket and not self._is_guarded(scope["path"], scope["method"]):
            return None
        origin = get_header(scope, b"origin")
        if not origin and "*" not in self._holder.settings.origins and _is_cross_site(scope):
            origin = "another site"  # a request for an image or a script has no origin
        if not origin or (is_websocket and self._is_invited(scope)):
            return None
        if not self._may_use(origin, scope):
            error = ForbiddenError(
                f"Pages of {origin[:100]} may not use {scope['path'][:100]}: add that origin to `origins` in the config."
            )
            get_record(scope).note = error.message
            return self._build_error_response(scope["path"], error)
        if not is_websocket and scope["method"] == "OPTIONS" and get_header(scope, b"access-control-request-method"):
            return _build_preflight_response(scope, origin, GUARDED_METHODS)
        get_record(scope).cors_headers = ((b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin"))
        return None

    def is_foreign_page(self, scope: Scope) -> bool:
        """Whether the request comes from a page that may not use the guarded paths, and has no API key."""
        if self._holder.settings.api_keys:
            return False  # the request has a key, or is refused
        origin = get_header(scope, b"origin")
        return not self._may_use(origin, scope) if origin else _is_cross_site(scope)

    def is_foreign_navigation(self, scope: Scope) -> bool:
        """Whether a link, frame or image on a page that may not use the guarded paths may have caused the request.

        Such a request has no origin. But the browser may send the site (`sec-fetch-site`) or the page (`referer`).
        """
        if get_header(scope, b"origin"):
            return False  # `route` has checked the origin
        site = get_header(scope, b"sec-fetch-site")
        if site in ("same-origin", "none") or not (site or _is_browser(scope)):
            return False
        return not self._may_use(_parse_origin(get_header(scope, b"referer")), scope)

    def _is_guarded(self, path: str, method: str) -> bool:
        if path.startswith(MODELS_PREFIX) and method in STORE_METHODS:
            return True
        return path.startswith(GUARDED_PREFIXES) or (path in SECRET_PATHS and not self._holder.settings.api_keys)

    def _may_use(self, origin: str, scope: Scope) -> bool:
        settings, host = self._holder.settings, get_header(scope, b"host")
        trusted = not is_local(settings.host) or is_listed_host(parse_host(host), settings.hosts)
        return is_allowed_origin(origin, host, host_is_trusted=trusted, origins=settings.origins)


class PullGuard:
    """Keeps pages of other origins, which may use the models, from triggering downloads (`pull_missing`)."""

    def __init__(self, holder: SettingsHolder, is_foreign_page: Callable[[Scope], bool]):
        self._holder = holder
        self._is_foreign_page = is_foreign_page

    def concerns(self, _: str) -> bool:
        """Whether requests for a path may cause a download: a reload may allow that for all that use a model."""
        return True

    def route(self, scope: Scope) -> ASGIApp | None:
        """Record in the request's context whether it may download. Always returns None: the request continues."""
        if self._holder.settings.pull_missing:  # if not, no request may
            MAY_FETCH.set(not self._is_foreign_page(scope))
        return None


def _is_cross_site(scope: Scope) -> bool:
    """Whether a page of another site embeds the request, or links to a path that unloads models."""
    unloads = scope["path"].startswith(UNLOAD_PREFIX) and scope.get("method") in ("GET", "HEAD")
    if site := get_header(scope, b"sec-fetch-site"):
        if unloads:
            return site not in ("same-origin", "none")
        return site == "cross-site" and get_header(scope, b"sec-fetch-mode") != "navigate"
    return unloads and _is_browser(scope) and not _has_own_referer(scope)


def _has_own_referer(scope: Scope) -> bool:
    """Whether the request comes from a page of this server. Over plain HTTP to another machine, a browser does not send
    `sec-fetch-site`, but may send the page."""
    try:
        return urlsplit(get_header(scope, b"referer")).netloc == get_header(scope, b"host")
    except ValueError:
        return False


def _is_browser(scope: Scope) -> bool:
    """Whether a browser sent the request. Every browser's user agent begins with Mozilla, and no page can change that."""
    return get_header(scope, b"user-agent").startswith("Mozilla/")


def _parse_origin(url: str) -> str:
    """Return the origin of a page's URL, or an empty string."""
    try:
        page = urlsplit(url)
    except ValueError:
        return ""
    return f"{page.scheme}://{page.netloc}" if page.netloc else ""


def is_allowed_origin(origin: str, host: str, *, host_is_trusted: bool, origins: tuple[str, ...]) -> bool:
    """Whether pages of this origin may use the server.

    Args:
        origin: The page's origin, as the browser sends it.
        host: The `host` header. Equality with the origin proves nothing on its own: a site may resolve its own name to this
            machine's address.
        host_is_trusted: Whether `host` is a name that the server is meant to have.
        origins: Allowed origins of the config.
    """
    if len(origin) > MAX_ORIGIN_CHARS:
        return False
    if "*" in origins or origin in origins:
        return True
    try:
        page = urlsplit(origin)
        name = page.hostname or ""
    except ValueError:
        return False
    if page.scheme in APP_SCHEMES or (page.scheme in ("http", "https") and is_local(name)):
        return True
    return host_is_trusted and bool(page.netloc) and page.netloc == host


PREFLIGHT_MAX_AGE = "86400"

MAX_HEADER_NAMES_CHARS = 2000
"""Characters of the requested header names that a preflight response repeats."""


def _build_preflight_response(scope: Scope, origin: str, methods: str) -> Response:
    requested = get_header(scope, b"access-control-request-headers")[:MAX_HEADER_NAMES_CHARS]
    return Response(
        status_code=204,
        headers={
            "access-control-allow-origin": origin,
            "access-control-allow-methods": methods,
            "access-control-allow-headers": requested or "authorization, content-type, x-api-key",
            "access-control-max-age": PREFLIGHT_MAX_AGE,
            "vary": f"{'' if origin == '*' else 'origin, '}access-control-request-headers",
        },
    )


PRIVATE_SUFFIXES = ("localhost", "local", "internal")
"""Top-level names that cannot be registered: this machine's, mDNS, and those reserved for private use. The same as Ollama's."""

NETWORK_SUFFIXES = ("lan", "home", "home.arpa", "intranet", "corp", "private", "localdomain")
"""Further ones that routers and companies use. No public DNS server resolves them."""

MAX_SHOWN_CHARS = 100


class HostGuard:
    """Refuses requests and WebSockets whose `host` is not a name of this server.

    With `api_keys` or TLS every name is served: a foreign page has no key, and no certificate for another server's name.
    `build_error_response` formats an error for a path.
    """

    def __init__(self, holder: SettingsHolder, build_error_response: Callable[[str, EardrumError], Response]):
        self._holder = holder
        self._build_error_response = build_error_response
        self._machine = socket.gethostname().lower()

    def concerns(self, _: str) -> bool:
        """Whether requests for a path may be refused: for any."""
        return True

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return the refusal, or None for a request to a name of this server."""
        settings = self._holder.settings
        if settings.api_keys or settings.tls_certificate:
            return None
        host = get_header(scope, b"host")
        if _is_own_name(host, self._machine, settings.host, settings.hosts):
            return None
        name = parse_host(host)
        error = UnknownHostError(
            f"{name[:MAX_SHOWN_CHARS]} is not a name of this server: "
            "add it to `hosts` in the config, use the server's IP address, or set `api_keys`."
        )
        get_record(scope).note = error.message
        return self._build_error_response(scope["path"], error)


@lru_cache(maxsize=64)  # nearly all requests use one name
def _is_own_name(host: str, machine: str, bound_to: str, hosts: tuple[str, ...]) -> bool:
    """Whether a `host` header names this server, which runs on the host `machine` and listens at `bound_to`."""
    name = parse_host(host)
    if "." not in name or is_address(name) or name == machine or is_listed_host(name, hosts):
        return True  # a name without a dot is a container or a machine in the network, never a web site
    private = PRIVATE_SUFFIXES if is_local(bound_to) else PRIVATE_SUFFIXES + NETWORK_SUFFIXES
    return name.endswith(tuple(f".{suffix}" for suffix in private))


def parse_host(host: str) -> str:
    """Return the name or address in a `host` header, without the port and in lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    before, colon, port = name.partition(":")
    if colon and port.isdecimal():
        name = before
    return name.rstrip(".")


def is_listed_host(name: str, hosts: tuple[str, ...]) -> bool:
    """Whether the config lists a name. `*.example.com` stands for all its subdomains, and `*` for every name."""
    parts = name.split(".")
    wildcards = {f"*.{'.'.join(parts[at:])}" for at in range(1, len(parts))}
    return any(entry in ("*", name) or entry in wildcards for entry in map(str.lower, hosts))


def is_address(name: str) -> bool:
    """Whether `name` is an IP address."""
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_local(name: str) -> bool:
    """Whether a name or an address means the local machine."""
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
"""Prefixes of the paths that pages of any origin may use."""

CORS_HEADERS = ((b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", b"*"))
SHARED_METHODS = "GET, POST, PUT, PATCH, DELETE, OPTIONS"


class CorsPolicy:
    """Answers preflight requests, and adds CORS headers to the responses of the shared paths."""

    def concerns(self, path: str) -> bool:
        """Whether a path is shared with the pages of all origins."""
        return path.startswith(SHARED_PREFIXES)

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return the response to a preflight request, or None for other requests."""
        if scope["type"] != "http" or not scope["path"].startswith(SHARED_PREFIXES):
            return None
        if scope["method"] == "OPTIONS":
            return _build_preflight_response(scope, "*", SHARED_METHODS)
        get_record(scope).cors_headers = CORS_HEADERS
        return None
