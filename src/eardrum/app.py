"""Puts the house together: the one file that knows every edge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from eardrum import __version__
from eardrum.api import admin, docs
from eardrum.api.access import Access, record
from eardrum.api.asgi import App, Receive, Scope, Send
from eardrum.api.forward.routes import Forward
from eardrum.api.openai import answers, routes
from eardrum.errors import EardrumError, MethodNotAllowedError, NotFoundError
from eardrum.gateway.service import Service


def create_app(service: Service) -> App:
    """The gateway as an ASGI application. Its lifespan ends by stopping every model."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await service.shutdown()

    async def health(_: Request) -> Response:
        models = [
            {"id": m.id, "state": service.state(m), "requests": service.load(m), "engine": m.engine} for m in service.catalog
        ]
        return JSONResponse(
            {"status": "ok", "version": __version__, "default_model": service.catalog.default.id, "models": models}
        )

    async def home(_: Request) -> Response:
        return RedirectResponse("/docs")

    app = Starlette(  # no redirects: a client that follows one sends its upload twice, or not at all
        routes=[
            Route("/", home),
            Route("/health", health),
            *docs.routes(service),
            *routes.routes(service),
            *admin.routes(service),
        ],
        exception_handlers={EardrumError: _refused, HTTPException: _unrouted, Exception: _broken},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Access(Front(Forward(service, answers.worded), app))


class Front:
    """Sends a request to the forwarded routes, which are plain ASGI, or to all others."""

    def __init__(self, forward: Forward, others: App):
        self._forward = forward
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._forward.route(scope) if scope["type"] == "http" else None
        if not route:
            await self._others(scope, receive, send)
            return
        try:
            await route(scope, receive, send)
        except EardrumError as error:
            record(scope).note = error.message
            await answers.refusal(error)(scope, receive, send)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, EardrumError)
    record(request.scope).note = error.message
    return answers.refusal(error)


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    known: EardrumError
    if error.status_code == 405:
        known = MethodNotAllowedError(f"{path} does not take {method}. /docs lists every route.")
    elif error.status_code == 404:
        known = NotFoundError(f"There is nothing at {path}. /docs lists every route.")
    else:
        known = EardrumError(error.detail)
    response = answers.refusal(known)
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, _: Exception) -> Response:
    id = record(request.scope).id
    return answers.refusal(EardrumError(f"The server failed on this request ({id}); its log says why."))
