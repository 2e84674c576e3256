"""Puts the house together: the one file that knows every edge."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from eardrum.api import admin, docs, front_door
from eardrum.api.access import Access, record
from eardrum.api.activity import Activity
from eardrum.api.asgi import App, ClientGoneError, Edge, Receive, Scope, Send
from eardrum.api.auth import Keys
from eardrum.api.cors import Cors
from eardrum.api.forward.passthrough import Passthrough
from eardrum.api.forward.routes import CHAT, Forward
from eardrum.api.hosts import Hosts
from eardrum.api.llama_swap import routes as llama_swap
from eardrum.api.ollama import refusals as ollama_refusals
from eardrum.api.ollama import routes as ollama_routes
from eardrum.api.openai import answers, routes
from eardrum.api.openai.chat import Chat
from eardrum.api.origins import NoFetching, Origins
from eardrum.api.realtime.routes import Realtime
from eardrum.api.stream.routes import Stream
from eardrum.api.tingwu.routes import TingWu
from eardrum.config import Settings
from eardrum.errors import EardrumError, MethodNotAllowedError, NotFoundError
from eardrum.gateway.events import Topic
from eardrum.gateway.service import Service

log = logging.getLogger(__name__)


def create_app(service: Service) -> Access:
    """The gateway as an ASGI application. Its lifespan ends by stopping every model."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.begin()
        yield
        await service.shutdown()

    activity = Activity(changed=partial(service.events.changed, Topic.REQUESTS))
    app = Starlette(  # no redirects: a client that follows one sends its upload twice, or not at all
        routes=[
            *front_door.routes(service),
            *docs.routes(service),
            *routes.routes(service),
            *ollama_routes.routes(service),
            *admin.routes(service),
            *llama_swap.routes(service, activity),
        ],
        exception_handlers={EardrumError: _refused, HTTPException: _unrouted, Exception: _broken},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    realtime = Realtime(service)

    def settings() -> Settings:
        return service.settings

    origins = Origins(settings, _worded, realtime.invited)
    edges = (
        Hosts(settings, _worded),
        Cors(),
        origins,
        NoFetching(origins.is_strange),
        Keys(lambda: service.settings.apiKeys, answers.worded, realtime.opens),
        realtime,
        Forward(service, answers.worded, own={CHAT: Chat(service)}),
        Passthrough(service, answers.worded, origins.is_led_here),
        Stream(service, answers.worded),
        TingWu(service),
    )
    return Access(Front(edges, app), activity, answers.refusal, lambda: service.settings.limits.stall_seconds)


class Front:
    """Sends a request to the first edge that wants it, be it to refuse it, or to the application with all other routes."""

    def __init__(self, edges: Sequence[Edge], others: App):
        self._edges = edges
        self._others = others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._route(scope)
        if not route:
            await self._others(scope, receive, send)
            return
        try:
            await route(scope, receive, send)
        except EardrumError as error:
            record(scope).note = error.message
            await answers.refusal(error)(scope, receive, send)
        except Exception as error:
            if isinstance(error, ClientGoneError) or record(scope).status:  # nobody is left, or an answer has begun
                raise
            log.exception("A request failed.")
            await answers.refusal(_failure(record(scope).id))(scope, receive, send)

    def _route(self, scope: Scope) -> App | None:
        if scope["type"] not in ("http", "websocket"):
            return None
        for edge in self._edges:
            if route := edge.route(scope):
                return route
        return None


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, EardrumError)
    record(request.scope).note = error.message
    return _refusal(request, error)


def _refusal(request: Request, error: EardrumError) -> Response:
    return _worded(request.url.path, error)


def _worded(path: str, error: EardrumError) -> Response:
    """In the shape that the clients of this path read."""
    return ollama_refusals.refusal(error) if ollama_refusals.speaks(path) else answers.refusal(error)


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
    response = _refusal(request, known)
    response.headers.update(error.headers or {})
    return response


async def _broken(request: Request, _: Exception) -> Response:
    return _refusal(request, _failure(record(request.scope).id))


def _failure(id: str) -> EardrumError:
    return EardrumError(f"The server failed on this request ({id}); its log says why.")
