"""speaches' routes for models: the registry, downloads and deletions. Ids may contain slashes.

Statuses are speaches' own: a download answers 200, a model that is here already 201. `GET /v1/models` and `/api/ps` are those
of the other protocols.
"""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute

from eardrum.api import openapi
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.engines import registry
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.models.inventory import RECOGNITION_TASK, SPEECH_TASK, Model
from eardrum.gateway.service import Service


def build_routes(service: Service) -> list[BaseRoute]:
    """Build speaches' routes."""
    models = SpeachesModelRoutes(service)
    path = "/v1/models/{id:path}"
    return [
        ApiRoute(
            models.list_registry,
            ApiOperation(
                "get",
                "/v1/registry",
                "List the models that engines know, and that can be downloaded",
                query={"task": f"Only models for this task: {RECOGNITION_TASK} or {SPEECH_TASK}."},
            ),
        ),
        ApiRoute(
            models.download_model,
            ApiOperation(
                "post",
                path,
                "Download a model, and answer when it is on this machine; 201 if it was already",
                (openapi.TEXT,),
                (404, 502, 503, 507),
                success=(200, 201),
            ),
        ),
        ApiRoute(models.delete_model, ApiOperation("delete", path, "Unload a downloaded model, and delete it", errors=(404,))),
    ]


class SpeachesModelRoutes:
    """Lists, downloads and deletes models."""

    def __init__(self, service: Service):
        self._service = service

    async def list_registry(self, request: Request) -> Response:
        """Serve `/v1/registry`: repositories on the hub, by the names that engines declare. The hub is not asked."""
        wanted = request.query_params.get("task", "")
        listed: dict[str, dict[str, Any]] = {}
        for card in registry.list_cards().values():
            task = SPEECH_TASK if card.capabilities.speak else RECOGNITION_TASK
            if wanted not in ("", task):
                continue
            for repository in card.names.values():
                languages = list(card.find_capabilities(repository).languages)
                listed.setdefault(
                    repository,
                    {
                        "id": repository,
                        "created": 0,
                        "object": "model",
                        "owned_by": repository.partition("/")[0],
                        "language": languages,
                        "task": task,
                    },
                )
        return JSONResponse({"data": list(listed.values()), "object": "list"})

    async def download_model(self, request: Request) -> Response:
        """Download a model and wait for the end.

        Raises:
            ModelNotFoundError: the name is unknown.
            PullError, StorageFullError: the download failed.
        """
        name = request.path_params["id"].strip("/ ")
        if self._find_local(name):
            return PlainTextResponse(f"Model '{name[:200]}' already exists", 201)
        match = await self._service.library.choose_match(name)
        async with aclosing(self._service.library.pull_model(match)) as steps:
            async for _ in steps:
                pass
        return PlainTextResponse(f"Model '{name[:200]}' downloaded")

    async def delete_model(self, request: Request) -> Response:
        """Unload a model and delete its files. The answer has the fields of OpenAI's, too.

        Raises:
            ModelNotFoundError: there is no such model.
            InvalidRequestError: the model is not one that was downloaded, or is the default one.
        """
        name = request.path_params["id"].strip("/ ")
        if not (model := self._find_local(name)):
            raise ModelNotFoundError(f"There is no model {name[:200]!r} on this machine.")
        await self._service.remove_model(model)
        return JSONResponse({"id": name, "object": "model", "deleted": True, "detail": f"Model '{name[:200]}' deleted"})

    def _find_local(self, name: str) -> Model | None:
        """Find a model that is on this machine."""
        with suppress(ModelNotFoundError):
            model = self._service.catalog.find_model(name) if name else None
            return model if model and not model.needs_download else None
        return None
