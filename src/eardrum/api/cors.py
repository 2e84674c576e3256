"""Lets pages of other origins use the models. Pure ASGI.

Not for what changes the server (`/api/`, `/unload`, logs) nor for the pages behind `/upstream/`: any web site that somebody on
this machine looks at could use those. Cookies are never let through, so a site can do no more than who shows it no key.
"""

from __future__ import annotations

from eardrum.api.asgi import App, Message, Receive, Scope, Send, header

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
EXPOSE = (b"access-control-expose-headers", b"*")
METHODS = b"GET, POST, PUT, PATCH, DELETE, OPTIONS"
DAY_S = b"86400"


class Cors:
    """Answers what browsers ask beforehand, and says in every answer that it may be read."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith(SHARED):
            await self._app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS":
            await _allow(scope, send)
            return

        async def readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                if not any(name == ALLOW[0] for name, _ in headers):
                    message["headers"] = [*headers, ALLOW, EXPOSE]
            await send(message)

        await self._app(scope, receive, readable)


async def _allow(scope: Scope, send: Send) -> None:
    wanted = header(scope, b"access-control-request-headers") or "authorization, content-type, x-api-key"
    headers = [
        ALLOW,
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", wanted.encode("latin-1")),
        (b"access-control-max-age", DAY_S),
        (b"vary", b"access-control-request-headers"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
