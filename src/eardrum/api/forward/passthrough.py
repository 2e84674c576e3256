"""`/upstream/{model}/{path}`: everything a model's server has, its pages included, under the model's name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from html import escape
from urllib.parse import unquote

from starlette.responses import HTMLResponse

from eardrum.api.access import record
from eardrum.api.asgi import App, Receive, Scope, Send, header
from eardrum.api.forward import outgoing
from eardrum.api.forward.broken import Worded
from eardrum.api.forward.exchange import Exchange
from eardrum.api.forward.socket import relay
from eardrum.api.multipart import Body
from eardrum.config.expressions import Expression
from eardrum.errors import ForbiddenError, NotFoundError, NotReadyError, UnsupportedFeatureError
from eardrum.gateway.inventory import Model
from eardrum.gateway.scheduler import State
from eardrum.gateway.service import Service
from eardrum.gateway.spool import BEGUN
from eardrum.gateway.upstreams.foreign import Stream

PREFIX = "/upstream/"
MOST_SLASHES = 8
"""Parts of a path that may belong to the model's name."""


class Passthrough:
    """The route, for any method and for WebSockets. `is_led_here` says of a request that a page of elsewhere may be behind it."""

    def __init__(self, service: Service, worded: Worded, is_led_here: Callable[[Scope], bool] = lambda _: False):
        self._service = service
        self._worded = worded
        self._is_led_here = is_led_here
        self._ignored = [Expression(pattern) for pattern in service.settings.upstream.ignorePaths]

    def route(self, scope: Scope) -> App | None:
        """What serves this request, if it is for this route."""
        return self if f"{scope['path']}/".startswith(PREFIX) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ModelNotFoundError: no model's name begins the path.
            NotFoundError: there is none in it.
            NotReadyError: it is for a file of a page, and the model is not up.
            ForbiddenError: the model is not up, and a page of elsewhere would have it loaded.
        """
        model, path = self._target(scope["raw_path"].decode("latin-1")[len(PREFIX) :])
        if not model.foreign:
            raise UnsupportedFeatureError(
                f"{model.id} is run by the engine {model.engine} and has no pages of its own.", param="model"
            )
        query = scope["query_string"].decode("latin-1")
        query = f"?{query}" if query else ""
        if not path:
            await _redirect(scope, send, f"{scope['raw_path'].decode('latin-1')}/{query}")
            return
        if self._service.state(model) is not State.READY and any(pattern.found_in(path) for pattern in self._ignored):
            raise NotReadyError(f"{model.id} is not loaded, and {path} does not load it (upstream.ignorePaths).", param="model")
        if scope["type"] == "websocket":
            await relay(self._service, model, f"{path}{query}", scope, receive, send)
            return
        if self._service.state(model) is not State.READY and self._is_led_here(scope):
            await _ask_first(model, scope, receive, send)
            return
        await self._exchange(model, f"{path}{query}", scope, receive, send)

    async def _exchange(self, model: Model, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        announced = header(scope, b"content-length")
        if announced in ("", "0") and not header(scope, b"transfer-encoding"):
            request = outgoing.request(self._service, model, scope, path, b"" if announced else None)
            await Exchange(self._service, self._worded, scope, receive, send).run(model, request)
            return
        body = Body(scope, receive, self._service.settings.limits)
        first = await _begun(body)
        stream = Stream(_chunks(first, body), int(announced) if announced.isdigit() else None)
        request = outgoing.request(self._service, model, scope, path, stream)
        await Exchange(self._service, self._worded, scope, receive, send, received=body.received).run(model, request)

    def _target(self, path: str) -> tuple[Model, str]:
        """The model with the longest name that begins the path, and the path behind it; that is empty if no slash follows."""
        parts = path.split("/")
        if not parts[0]:
            models = ", ".join(model.id for model in self._service.catalog if model.foreign) or "none here"
            raise NotFoundError(
                f"Say whose server is meant: {PREFIX}MODEL/ and then the path there. Models with a server of their own: {models}."
            )
        for count in range(min(len(parts), MOST_SLASHES), 0, -1):
            if model := self._service.named(unquote("/".join(parts[:count]))):
                return model, "".join(f"/{part}" for part in parts[count:])
        return self._service.catalog.find(unquote(parts[0])), "".join(f"/{part}" for part in parts[1:])


async def _begun(body: Body) -> bytes:
    """So much of it that a model may be kept waiting for the rest."""
    first = bytearray()
    while len(first) < BEGUN and (chunk := await body.read()) is not None:
        first += chunk
    return bytes(first)


async def _chunks(first: bytes, body: Body) -> AsyncIterator[bytes]:
    if first:
        yield first
    while (chunk := await body.read()) is not None:
        if chunk:
            yield chunk


async def _redirect(scope: Scope, send: Send, to: str) -> None:
    """To the same with a slash, which links on the page need to be right. A body is to be sent again there."""
    status = 301 if scope["method"] in ("GET", "HEAD") else 308
    headers = [(b"location", to.encode("latin-1")), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _ask_first(model: Model, scope: Scope, receive: Receive, send: Send) -> None:
    """Have a person say that the model is to be loaded, in a click on a page of ours; of that the browser says where it was.

    Raises:
        ForbiddenError: it is no page that the browser wants, so nobody would see the question.
    """
    why = f"{model.id} is not loaded, and a page of elsewhere may have led here, which may not load it"
    if scope["method"] != "GET" or "text/html" not in header(scope, b"accept"):
        raise ForbiddenError(f"{why}: open {PREFIX}{model.id}/ first, or name that page's origin under `origins` in the config.")
    record(scope).note = why
    page = QUESTION.format(model=escape(model.id))
    await HTMLResponse(page, 403, headers=ALONE)(scope, receive, send)


QUESTION = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{model}</title></head>
<body><p>{model} is not loaded. Another page may have led you here, so this takes a click:</p>
<p><a href="">Load {model} and open its page</a></p></body></html>
"""
"""The link is to the address where it is shown, however that is written."""

ALONE = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",  # no other page may have it clicked unseen
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
}
