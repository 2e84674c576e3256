"""Lets pages of other origins use the models. Pure ASGI.

Not for what changes the server (`/api/`, `/unload`, logs) nor for the pages behind `/upstream/`: any web site that somebody on
this machine looks at could use those. Cookies are never let through, so a site can do no more than who shows it no key.
"""

from __future__ import annotations

from eardrum.api.access import record
from eardrum.api.asgi import App, Receive, Scope, Send, header

SHARED = (
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

ALLOW = (b"access-control-allow-origin", b"*")
READABLE = (ALLOW, (b"access-control-expose-headers", b"*"))
METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
DAY_S = b"86400"

LONGEST = 2000
"""Characters of the names of headers that are repeated."""


class Cors:
    """Answers what browsers ask beforehand, and has every answer say that it may be read."""

    def route(self, scope: Scope) -> App | None:
        """What answers in the place of the routes, if they are not to."""
        if scope["type"] != "http" or not scope["path"].startswith(SHARED):
            return None
        if scope["method"] == "OPTIONS":
            return _allow
        record(scope).readable = READABLE
        return None


async def _allow(scope: Scope, _: Receive, send: Send) -> None:
    wanted = header(scope, b"access-control-request-headers")[:LONGEST] or "authorization, content-type, x-api-key"
    headers = [
        ALLOW,
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", wanted.encode("latin-1")),
        (b"access-control-max-age", DAY_S),
        (b"vary", b"access-control-request-headers"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
