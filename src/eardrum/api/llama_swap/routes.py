"""The routes of llama-swap's management API: load and unload models, choose a profile."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from eardrum import bounded_json
from eardrum.api import json_body
from eardrum.api.asgi import has_query_flag
from eardrum.api.json_body import check_surrogates
from eardrum.api.llama_swap import status
from eardrum.api.llama_swap.status import ActivityRoutes
from eardrum.api.llama_swap.streams import EventStream, LogHistory, LogStream
from eardrum.api.request_log import RequestTracker
from eardrum.errors import InvalidRequestError
from eardrum.gateway.service import Service

FORCE = "force"
"""The query flag that unloads models without waiting for their requests."""


def build_routes(service: Service, activity: RequestTracker) -> list[BaseRoute]:
    """Build the routes of llama-swap's API."""
    processes, profiles, requests = ProcessRoutes(service), ProfileRoutes(service), ActivityRoutes(activity)
    history, stream = LogHistory(service), LogStream(service)
    return [
        Route("/running", processes.list_running),
        Route("/unload", processes.unload_all, methods=["GET", "POST"]),
        Route("/api/models/unload", processes.unload_all_json, methods=["POST"]),
        Route("/api/models/unload/{name:path}", processes.unload, methods=["POST"]),
        Route("/api/models/load/{name:path}", processes.load, methods=["POST"]),
        Route("/logs", history.show_server_log),
        Route("/logs/stream", stream, methods=["GET"]),
        Route("/logs/stream/{name:path}", stream, methods=["GET"]),
        Route("/logs/{name:path}", history.show_log),
        Route("/api/events", EventStream(service, activity), methods=["GET"]),
        Route("/api/profiles", profiles.list_profiles),
        Route("/api/profiles/active", profiles.activate_profile, methods=["PUT"]),
        Route("/api/metrics/activity", requests.list_finished),
        Route("/api/inflight/{id}/cancel", requests.cancel, methods=["POST"]),
        Route("/wol-health", check_alive),
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
        return JSONResponse({"running": status.list_running(self._service)})

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
        model = self._service.find_model(request.path_params["name"])
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
        """List all profiles by name."""
        selection = self._service.name_resolver
        profiles = [
            {
                "id": id,
                "description": profile.description,
                "pins": {requested: target or "" for requested, target in profile.pins.items()},
            }
            for id, profile in sorted(selection.profiles.items())
        ]
        return JSONResponse({"active": selection.active_profile or None, "profiles": profiles})

    async def activate_profile(self, request: Request) -> Response:
        """Activate a profile, or none."""
        limits = json_body.limit_small_body(self._service.settings.limits)
        upload = json_body.open_body(request.scope, request.receive, limits)
        written = await json_body.read_body(request.scope, upload, limits)
        try:
            body = bounded_json.parse_json(written)
        except ValueError:
            raise InvalidRequestError(f"The body is not valid JSON: {EXAMPLE}.") from None
        check_surrogates(written, body)
        if not isinstance(body, dict) or "name" not in body:
            raise InvalidRequestError(f"The field `name` is missing: {EXAMPLE}.", param="name")
        if not isinstance(body["name"], str | None):
            raise InvalidRequestError(f"The field `name` must be a string or null: {EXAMPLE}.", param="name")
        self._service.activate_profile(body["name"] or "")
        return JSONResponse({"active": self._service.name_resolver.active_profile or None})
