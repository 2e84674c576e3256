"""The routes of llama-swap's management API: load and unload models, choose a profile."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute

from eardrum.api import management, openapi, request_body
from eardrum.api.asgi import has_query_flag
from eardrum.api.llama_swap import monitoring
from eardrum.api.llama_swap.monitoring import ActivityRoutes, EventStream, LogHistory, LogStream
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.api.request_log import RequestTracker
from eardrum.errors import InvalidRequestError
from eardrum.gateway.service import Service

FORCE = "force"
"""The query flag that unloads models without waiting for their requests."""


def build_routes(service: Service, activity: RequestTracker) -> list[BaseRoute]:
    """Build the routes of llama-swap's API."""
    processes, profiles, requests = ProcessRoutes(service), ProfileRoutes(service), ActivityRoutes(activity)
    return [
        *_build_process_routes(processes),
        *_build_log_routes(service),
        ApiRoute(
            EventStream(service, activity),
            ApiOperation(
                "get", "/api/events", "Stream changes: states, logs, requests in progress, the active profile", (openapi.EVENTS,)
            ),
        ),
        ApiRoute(profiles.list_profiles, ApiOperation("get", "/api/profiles", "List the config's profiles, and the active one")),
        ApiRoute(
            profiles.activate_profile,
            ApiOperation(
                "put",
                "/api/profiles/active",
                "Activate a profile, or none",
                errors=openapi.LOOKUP_ERRORS + openapi.BODY_ERRORS,
                body={"name": "The profile; null for none."},
                required=("name",),
            ),
        ),
        ApiRoute(
            requests.list_finished,
            ApiOperation(
                "get",
                "/api/metrics/activity",
                "List the latest requests for models",
                query={
                    "model": "Only requests for this model.",
                    "limit": "Requests per page, up to 999.",
                    "page": "Number of the page, from 1.",
                    "order": "`desc` or `asc`.",
                },
            ),
        ),
        ApiRoute(
            requests.cancel,
            ApiOperation(
                "post",
                "/api/inflight/{id}/cancel",
                "Cancel a request in progress, by its `x-request-id`",
                errors=openapi.LOOKUP_ERRORS,
            ),
        ),
        ApiRoute(check_alive, ApiOperation("get", "/wol-health", "`OK`", (openapi.TEXT,))),
    ]


def _build_process_routes(processes: ProcessRoutes) -> list[BaseRoute]:
    text, force = (openapi.TEXT,), openapi.FORCE_QUERY
    return [
        ApiRoute(
            processes.list_running,
            ApiOperation("get", "/running", "List the models that are not stopped, with their commands and addresses"),
        ),
        ApiRoute(
            processes.unload_all,
            ApiOperation("get", "/unload", "Unload all models, for programs; web pages are refused", text, query=force),
            ApiOperation("post", "/unload", "Unload all models", text, query=force),
        ),
        ApiRoute(processes.unload_all_json, ApiOperation("post", "/api/models/unload", "Unload all models", query=force)),
        ApiRoute(
            processes.unload,
            ApiOperation(
                "post",
                "/api/models/unload/{name:path}",
                "Unload a model after its running requests",
                text,
                openapi.LOADING_ERRORS,
                query=force,
            ),
        ),
        ApiRoute(
            processes.load,
            ApiOperation(
                "post", "/api/models/load/{name:path}", "Load a model and wait until it is ready", text, openapi.LOADING_ERRORS
            ),
        ),
    ]


def _build_log_routes(service: Service) -> list[BaseRoute]:
    history, stream = LogHistory(service), LogStream(service)
    text, query = (openapi.TEXT,), {"no-history": "Only new lines."}
    return [
        ApiRoute(history.show_server_log, ApiOperation("get", "/logs", "The latest lines of the server's log", text)),
        ApiRoute(stream, ApiOperation("get", "/logs/stream", "Stream the server's log", text, query=query)),
        ApiRoute(
            stream,
            ApiOperation(
                "get",
                "/logs/stream/{name:path}",
                "Stream the logs of all models (`upstream`), or of one",
                text,
                openapi.LOOKUP_ERRORS,
                query=query,
            ),
        ),
        ApiRoute(
            history.show_log,
            ApiOperation(
                "get",
                "/logs/{name:path}",
                "The latest lines of the logs of all models (`upstream`), or of one",
                text,
                openapi.LOOKUP_ERRORS,
            ),
        ),
    ]


async def check_alive(_: Request) -> Response:
    """Serve `/wol-health`."""
    return PlainTextResponse("OK")


class ProcessRoutes:
    """Lists, loads and unloads the running models."""

    def __init__(self, service: Service):
        self._service = service

    async def list_running(self, _: Request) -> Response:
        """List the models that run, start or stop."""
        return JSONResponse({"running": monitoring.list_running(self._service)})

    async def unload_all(self, request: Request) -> Response:
        """Unload all models."""
        await self._service.unload_all(force=has_query_flag(request.scope, FORCE))
        return PlainTextResponse("OK")

    async def unload_all_json(self, request: Request) -> Response:
        """Unload all models, with a response in JSON."""
        await self._service.unload_all(force=has_query_flag(request.scope, FORCE))
        return JSONResponse({"msg": "ok"})

    async def unload(self, request: Request) -> Response:
        """Unload a model; succeeds if it is not loaded."""
        model = management.find_unloadable(self._service, request.path_params["name"])
        await self._service.unload_model(model, force=has_query_flag(request.scope, FORCE))
        return PlainTextResponse("OK")

    async def load(self, request: Request) -> Response:
        """Load a model and wait until it is ready."""
        await self._service.load_model(self._service.find_model(request.path_params["name"]))
        return PlainTextResponse("OK")


EXAMPLE = 'send {"name": "a profile"}, or {"name": null} for none'


class ProfileRoutes:
    """Lists and activates profiles."""

    def __init__(self, service: Service):
        self._service = service

    async def list_profiles(self, _: Request) -> Response:
        """List all profiles by name, with the pins that the client's key may use."""
        selection = self._service.name_resolver
        profiles = [
            {
                "id": id,
                "description": profile.description,
                "pins": {
                    requested: target or "" for requested, target in profile.pins.items() if self._is_visible(target or requested)
                },
            }
            for id, profile in sorted(selection.profiles.items())
        ]
        return JSONResponse({"active": selection.active_profile or None, "profiles": profiles})

    def _is_visible(self, name: str) -> bool:
        return any(map(self._service.catalog.is_visible, self._service.name_resolver.list_targets(name)))

    async def activate_profile(self, request: Request) -> Response:
        """Activate a profile, or none."""
        limits = request_body.limit_small_body(self._service.settings.limits)
        missing = f"The field `name` is missing: {EXAMPLE}."
        body = request_body.parse_object(
            await request_body.receive_body(request.scope, request.receive, limits),
            not_json=f"The body is not valid JSON: {EXAMPLE}.",
            not_object=missing,
            param="name",
        )
        if "name" not in body:
            raise InvalidRequestError(missing, param="name")
        if not isinstance(body["name"], str | None):
            raise InvalidRequestError(f"The field `name` must be a string or null: {EXAMPLE}.", param="name")
        self._service.activate_profile(body["name"] or "")
        return JSONResponse({"active": self._service.name_resolver.active_profile or None})
