"""The routes of this edge, and those that are short enough to stand beside the table."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from eardrum.api.activity import Activity
from eardrum.api.asgi import flagged
from eardrum.api.llama_swap import models
from eardrum.api.llama_swap.events import Events
from eardrum.api.llama_swap.logs import History, Stream
from eardrum.api.llama_swap.profiles import Profiles
from eardrum.api.llama_swap.requests import Requests
from eardrum.gateway.service import Service

FORCE = "force"
"""In the query: do not let models finish what they have begun."""


def routes(service: Service, activity: Activity) -> list[BaseRoute]:
    """All routes of this edge."""
    processes, profiles, requests = Processes(service), Profiles(service), Requests(activity)
    history, stream = History(service), Stream(service)
    return [
        Route("/running", processes.running),
        Route("/unload", processes.unload_all, methods=["GET", "POST"]),
        Route("/api/models/unload", processes.unload_every, methods=["POST"]),
        Route("/api/models/unload/{name:path}", processes.unload, methods=["POST"]),
        Route("/api/models/load/{name:path}", processes.load, methods=["POST"]),
        Route("/logs", history.of_server),
        Route("/logs/stream", stream, methods=["GET"]),
        Route("/logs/stream/{name:path}", stream, methods=["GET"]),
        Route("/logs/{name:path}", history.of_name),
        Route("/api/events", Events(service, activity), methods=["GET"]),
        Route("/api/profiles", profiles.list),
        Route("/api/profiles/active", profiles.activate, methods=["PUT"]),
        Route("/api/metrics/activity", requests.finished),
        Route("/api/inflight/{id}/cancel", requests.cancel, methods=["POST"]),
        Route("/wol-health", alive),
    ]


async def alive(_: Request) -> Response:
    """Whether the server answers."""
    return PlainTextResponse("OK")


class Processes:
    """Which models run, and starting and ending them."""

    def __init__(self, service: Service):
        self._service = service

    async def running(self, _: Request) -> Response:
        """The models that are not stopped, also those on their way up or down."""
        return JSONResponse({"running": models.running(self._service)})

    async def unload_all(self, request: Request) -> Response:
        """End every model's process."""
        await self._service.unload_all(force=flagged(request.scope, FORCE))
        return PlainTextResponse("OK")

    async def unload_every(self, request: Request) -> Response:
        """The same, answered as the routes under /api are."""
        await self._service.unload_all(force=flagged(request.scope, FORCE))
        return JSONResponse({"msg": "ok"})

    async def unload(self, request: Request) -> Response:
        """End one model's process. That is no error if it does not run."""
        model = self._service.find(request.path_params["name"])
        await self._service.unload(model, force=flagged(request.scope, FORCE))
        return PlainTextResponse("OK")

    async def load(self, request: Request) -> Response:
        """Start one model's process and wait until it serves."""
        await self._service.load_model(self._service.find(request.path_params["name"]))
        return PlainTextResponse("OK")
