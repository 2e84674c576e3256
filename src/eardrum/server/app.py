"""Builds the ASGI application: the only module that knows every protocol."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from eardrum.api import management, metrics, openapi, page
from eardrum.api.asgi import ASGIApp, ClientGoneError, Receive, RequestGuard, RequestRouter, Scope, Send
from eardrum.api.asr import responses as asr_refusals
from eardrum.api.asr import routes as asr
from eardrum.api.auth import ApiKeyGuard
from eardrum.api.live_ws.routes import LiveRoute
from eardrum.api.llama_swap import routes as llama_swap
from eardrum.api.ollama import responses as ollama_refusals
from eardrum.api.ollama import routes as ollama_routes
from eardrum.api.openai import batches, files, jobs, responses, transcriptions
from eardrum.api.openai.batch_lines import OpenAIBatchLines
from eardrum.api.openai.chat import ChatEndpoint
from eardrum.api.openai.speech import VOICES_OPERATION, SpeechEndpoint, VoiceRoutes
from eardrum.api.origins import CorsPolicy, HostGuard, OriginGuard, PullGuard
from eardrum.api.proxy.routes import CHAT_PATH, SPEECH_PATH, PassthroughRoute, ProxyRoutes
from eardrum.api.realtime.routes import RealtimeRoutes
from eardrum.api.request_log import RequestLogMiddleware, RequestTracker, get_record
from eardrum.api.speaches import routes as speaches
from eardrum.api.tingwu import transcriptions as tingwu
from eardrum.api.tingwu.hotwords import HotwordStore
from eardrum.api.tingwu.realtime import TingWuRoute
from eardrum.api.tingwu.tasks import BackgroundTaskStore
from eardrum.errors import EardrumError, MethodNotAllowedError, NotFoundError
from eardrum.gateway.change_feed import ChangeTopic
from eardrum.gateway.service import Service
from eardrum.jobs.manager import JobManager

log = logging.getLogger(__name__)


def create_app(service: Service) -> RequestLogMiddleware:
    """The gateway as an ASGI application. Its lifespan ends by stopping every model."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        job_manager.start()
        yield
        await tasks.close()
        await job_manager.close()
        await service.shutdown()

    job_manager = JobManager(service, OpenAIBatchLines(service))
    tasks, hotwords = BackgroundTaskStore(), HotwordStore(service)
    activity = RequestTracker(on_change=partial(service.change_feed.publish, ChangeTopic.REQUESTS))
    realtime, refusals = RealtimeRoutes(service), RefusalBuilder(service)
    origins = OriginGuard(service, refusals.build, realtime.is_invited)
    guards = (
        HostGuard(service, refusals.build),
        CorsPolicy(),
        origins,
        PullGuard(service, origins.is_foreign_page),
        ApiKeyGuard(service.api_keys, refusals.build, realtime.find_secret_owner),
    )
    edges = _build_edges(service, realtime, origins, hotwords)
    routes = [
        *transcriptions.build_routes(service),
        *files.build_routes(service, job_manager),
        *batches.build_routes(service, job_manager),
        *jobs.build_routes(service, job_manager),
        *asr.build_routes(service),
        *tingwu.build_routes(service, tasks, hotwords),
        *speaches.build_routes(service),
        *ollama_routes.build_routes(service),
        *page.build_routes(service),
        *management.build_routes(service),
        *llama_swap.build_routes(service, activity),
        *metrics.build_routes(service, activity, job_manager),
    ]
    operations = openapi.list_operations([*routes, *edges])
    activity.counts_responses = service.settings.metrics
    activity.match_route = metrics.RouteMatcher([*operations, *openapi.PAGES])
    app = Starlette(  # no redirects: a client that follows one sends its upload twice, or not at all
        routes=[*routes, *openapi.build_routes(service, operations)],
        exception_handlers={EardrumError: _handle_error, HTTPException: refusals.handle_http_exception, Exception: _handle_crash},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return RequestLogMiddleware(
        RequestDispatcher(guards, edges, app),
        activity,
        build_path_error,
        service.settings.limits.stall_timeout,
    )


def _build_edges(
    service: Service, realtime: RealtimeRoutes, origins: OriginGuard, hotwords: HotwordStore
) -> tuple[RequestRouter, ...]:
    """Build the routes that need no framework, because they stream."""
    return (
        realtime,
        ProxyRoutes(
            service,
            responses.build_error_body,
            speech_handlers={CHAT_PATH: ChatEndpoint(service), SPEECH_PATH: SpeechEndpoint(service)},
            list_voices=(VOICES_OPERATION, VoiceRoutes(service).build_voices),
        ),
        PassthroughRoute(service, responses.build_error_body, origins.is_foreign_navigation),
        LiveRoute(service, responses.build_error_body),
        TingWuRoute(service, hotwords),
    )


class RequestDispatcher:
    """Sends a request that the guards let pass to the first edge of its path that takes it, else to the application."""

    def __init__(self, guards: Sequence[RequestGuard], edges: Sequence[RequestRouter], others: ASGIApp):
        self.edges = edges
        self.fallback_app = others
        self._guards = guards
        self._edges_by_path: dict[str, list[RequestRouter]] = defaultdict(list)
        for edge in edges:
            for path in edge.paths:
                self._edges_by_path[path].append(edge)
        self._http_routers = {path: self._list_http_routers(path) for path in self._edges_by_path if not path.endswith("/")}
        """The guards and edges that see an HTTP request for one of the edges' own paths, which have the most traffic."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._find_route(scope) if scope["type"] != "lifespan" else None
        if not route:
            await self.fallback_app(scope, receive, send)
            return
        try:
            await route(scope, receive, send)
        except EardrumError as error:
            get_record(scope).note = error.message
            await responses.build_error_response(error)(scope, receive, send)
        except Exception as error:
            if isinstance(error, ClientGoneError) or get_record(scope).status:  # disconnected, or an answer has begun
                raise
            log.exception("A request failed.")
            await responses.build_error_response(_build_failure(get_record(scope).id))(scope, receive, send)

    def _find_route(self, scope: Scope) -> ASGIApp | None:
        path, kind = scope["path"], scope["type"]
        routers = self._http_routers.get(path) if kind == "http" else None
        for router in routers or (*self._guards, *self._list_edges(path)):
            if route := router.route(scope):
                return route
        return None

    def _list_http_routers(self, path: str) -> tuple[RequestGuard | RequestRouter, ...]:
        return (*(guard for guard in self._guards if guard.concerns(path)), *self._list_edges(path))

    def _list_edges(self, path: str) -> Sequence[RequestRouter]:
        """List the edges of this path, or those of all paths that begin like it."""
        folder = path[: path.find("/", 1) + 1]
        return self._edges_by_path.get(path) or self._edges_by_path.get(folder) or ()


def build_path_error(path: str, error: EardrumError) -> Response:
    """Build the response for an error, in the shape that the clients of a path read."""
    if ollama_refusals.is_ollama_path(path):
        return ollama_refusals.build_error_response(error)
    if asr.is_asr_path(path):
        return asr_refusals.build_error_response(error)
    if tingwu.is_tingwu_path(path):
        return tingwu.build_error_response(error, responses.build_error_body)
    return responses.build_error_response(error)


class RefusalBuilder:
    """Builds the responses to requests that are refused before anything reads them. Some clients have to send the whole body
    first."""

    def __init__(self, service: Service):
        self._service = service

    def build(self, path: str, error: EardrumError) -> Response:
        """Build the refusal of a request for a path."""
        response = build_path_error(path, error)
        return asr.LateResponse(response, self._service.settings.limits) if path in asr.UPLOAD_PATHS else response

    async def handle_http_exception(self, request: Request, error: Exception) -> Response:
        """Build the refusal of a request that no route takes."""
        assert isinstance(error, HTTPException)
        path, method = request.url.path, request.method
        known: EardrumError
        if error.status_code == 405:
            message = f"{path} does not take {method}. /docs lists every route."
            known = MethodNotAllowedError(message, allow=_list_methods(request))
        elif error.status_code == 404:
            known = NotFoundError(f"There is nothing at {path}. /docs lists every route.")
        else:
            known = EardrumError(error.detail)
        return self.build(path, known)


def _list_methods(request: Request) -> list[str]:
    """List the methods of all routes of a path: Starlette names those of the first one."""
    app: Starlette = request.app
    routes = (route for route in app.routes if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in routes for method in route.methods or ()})


async def _handle_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EardrumError)
    get_record(request.scope).note = error.message
    return build_path_error(request.url.path, error)


async def _handle_crash(request: Request, _: Exception) -> Response:
    return build_path_error(request.url.path, _build_failure(get_record(request.scope).id))


def _build_failure(id: str) -> EardrumError:
    return EardrumError(f"The server failed on this request ({id}); its log has the cause.")
