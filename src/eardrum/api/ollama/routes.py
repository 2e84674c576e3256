"""The routes of Ollama's API."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from eardrum.api import admin
from eardrum.api.ollama import listing, weights
from eardrum.api.ollama.embeddings import Embeddings
from eardrum.api.ollama.exchange import Endpoint, Reply
from eardrum.api.ollama.fields import named
from eardrum.api.ollama.generation import Generation
from eardrum.api.ollama.names import Names
from eardrum.api.ollama.storage import Storage
from eardrum.api.ollama.weights import Props
from eardrum.api.version import version
from eardrum.errors import ModelNotFoundError, NotOfferedError
from eardrum.gateway.service import Service
from eardrum.gateway.status import ProcessStatus


def routes(service: Service) -> list[BaseRoute]:
    """All routes of this edge."""
    names, limits = Names(service), service.settings.limits
    models = Models(service, names)
    generation, embeddings, storage = Generation(service, names), Embeddings(service, names), Storage(service, names)
    answers = {
        "show": models.show,
        "chat": generation.chat,
        "generate": generation.generate,
        "embed": embeddings.many,
        "embeddings": embeddings.one,
        "pull": storage.pull,
        "copy": storage.copy,
    }
    return [
        Route("/api/version", version),
        Route("/api/tags", models.tags),
        Route("/api/ps", models.running),
        *(Route(f"/api/{name}", Endpoint(limits, answer), methods=["POST"]) for name, answer in answers.items()),
        Route("/api/delete", Endpoint(limits, storage.delete), methods=["DELETE"]),
        Route("/api/create", _refused, methods=["POST"]),
        Route("/api/push", _refused, methods=["POST"]),
        Route("/api/blobs/{digest}", _refused, methods=["HEAD", "POST"]),
    ]


def greeting() -> Response:
    """What Ollama says at `/`, by which its clients know that it is there."""
    return PlainTextResponse("Ollama is running")


class Models:
    """What models there are and which are loaded."""

    def __init__(self, service: Service, names: Names):
        self._service = service
        self._names = names
        self._props = Props(service)

    async def tags(self, _: HttpRequest) -> Response:
        """All models."""
        self._service.catalog.look()
        models, others = list(self._service.catalog), list(self._names.others())
        props = {model.id: self._props.known(model) for model in (*models, *(model for _, model in others))}
        return JSONResponse(
            await asyncio.to_thread(listing.tags, models, others, lambda model: weights.of(model, props[model.id]))
        )

    async def show(self, wish: dict[str, Any], reply: Reply) -> None:
        """One model."""
        model = self._names.find(named(wish))
        if model.absent:
            raise ModelNotFoundError(self._service.catalog.how_to_fetch(model))
        await reply.whole(await asyncio.to_thread(listing.show, model, await self._props.ask(model)))

    async def running(self, _: HttpRequest) -> Response:
        """The models whose processes run, those that stay longest first: Ollama's words and ours in one object.

        Beside them stand those that have gone, the latest first, and why.
        """
        taken = await self._service.memory()
        models = await asyncio.to_thread(_processes, self._service.processes(), taken)
        gone = [admin.departure(departure) for departure in self._service.departures]
        return JSONResponse({"models": models, "gone": gone[::-1]})


def _processes(statuses: list[ProcessStatus], taken: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    now = time.time()
    models = [admin.process(status) | listing.process(status, taken.get(status.model.id, {}), now) for status in statuses]
    return sorted(models, key=lambda model: str(model["expires_at"]), reverse=True)


async def _refused(request: HttpRequest) -> Response:
    raise NotOfferedError(
        f"{request.url.path} is not implemented: models come from the hub, a folder or the config, not from Modelfiles."
    )
