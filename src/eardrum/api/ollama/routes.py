"""The routes of Ollama's API, and those that list, pull, copy and delete models."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from eardrum.api import management, openapi
from eardrum.api.fields import RequestModel, Text
from eardrum.api.management import get_version
from eardrum.api.ollama import listing, model_info
from eardrum.api.ollama.common_fields import ModelRequest
from eardrum.api.ollama.inference import EmbeddingRoutes, GenerationRoutes
from eardrum.api.ollama.listing import OllamaNames, remove_tag
from eardrum.api.ollama.model_info import ServerProps
from eardrum.api.ollama.responses import EndpointHandler, JsonEndpoint, OllamaResponse
from eardrum.api.openapi import CHAT_FIELDS, MODEL_FIELD, ApiOperation, ApiRoute
from eardrum.errors import EardrumError, InvalidRequestError, ModelNotFoundError, ShuttingDownError, UnsupportedRouteError
from eardrum.gateway.key_usage import check_model_allowed, is_model_visible
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.models.names import ModelMatch
from eardrum.gateway.service import ProcessStatus, Service

PROMPT_FIELDS = MODEL_FIELD | {"prompt": "The text to continue.", "stream": "Stream the response."}
INPUT_FIELDS = MODEL_FIELD | {"input": "The text to embed, or several texts."}
STREAMABLE = (openapi.LINES, openapi.JSON)


def build_routes(service: Service) -> list[BaseRoute]:
    """Build the routes of Ollama's API."""
    names, limits = OllamaNames(service), service.settings.limits
    models, storage = OllamaModelRoutes(service, names), StorageRoutes(service, names)
    handlers = {
        **_describe_inference(GenerationRoutes(service, names), EmbeddingRoutes(service, names)),
        **_describe_storage(models, storage),
    }
    return [
        ApiRoute(get_version, ApiOperation("get", "/api/version", "The version of Ollama's API, and Eardrum's own")),
        ApiRoute(models.list_tags, ApiOperation("get", "/api/tags", "List models, for Ollama's clients")),
        ApiRoute(models.list_running, ApiOperation("get", "/api/ps", "List the loaded models")),
        *(ApiRoute(JsonEndpoint(limits, handler), operation) for operation, handler in handlers.items()),
        ApiRoute(_reject, _describe_rejected("post", "/api/create")),
        ApiRoute(_reject, _describe_rejected("post", "/api/push")),
        ApiRoute(_reject, *(_describe_rejected(method, "/api/blobs/{digest}") for method in ("head", "post"))),
    ]


def _describe_inference(generation: GenerationRoutes, embeddings: EmbeddingRoutes) -> dict[ApiOperation, EndpointHandler]:
    errors, model = openapi.INFERENCE_ERRORS, ("model",)
    summary = "in Ollama's format, or the transcript of the recordings in `images`"
    chat = ApiOperation("post", "/api/chat", f"A chat {summary}", STREAMABLE, errors, body=CHAT_FIELDS, required=model)
    generate = ApiOperation(
        "post", "/api/generate", f"A completion {summary}", STREAMABLE, errors, body=PROMPT_FIELDS, required=model
    )
    embed = ApiOperation("post", "/api/embed", "Embeddings in Ollama's format", errors=errors, body=INPUT_FIELDS, required=model)
    embed_prompt = ApiOperation(
        "post",
        "/api/embeddings",
        "One embedding in Ollama's older format",
        errors=errors,
        body=MODEL_FIELD | {"prompt": "The text."},
        required=model,
    )
    return {
        chat: generation.chat,
        generate: generation.generate,
        embed: embeddings.embed_inputs,
        embed_prompt: embeddings.embed_prompt,
    }


def _describe_storage(models: OllamaModelRoutes, storage: StorageRoutes) -> dict[ApiOperation, EndpointHandler]:
    errors = openapi.LOOKUP_ERRORS + openapi.BODY_ERRORS
    show = ApiOperation(
        "post", "/api/show", "Describe a model, for Ollama's clients", errors=errors, body=MODEL_FIELD, required=("model",)
    )
    pull = ApiOperation(
        "post",
        "/api/pull",
        "Download a model, in Ollama's format",
        STREAMABLE,
        (404, *openapi.BODY_ERRORS, 502, 507),
        body={"model": "A name, as for `eardrum pull`.", "stream": "Stream a line per step."},
        required=("model",),
    )
    copy = ApiOperation(
        "post",
        "/api/copy",
        "Give a model another name until the server stops",
        errors=errors,
        body={"source": "The model.", "destination": "Its other name."},
        required=("source", "destination"),
    )
    delete = ApiOperation(
        "delete", "/api/delete", "Delete a downloaded model", errors=errors, body=MODEL_FIELD, required=("model",)
    )
    return {show: models.show_model, pull: storage.pull, copy: storage.copy, delete: storage.delete}


def _describe_rejected(method: str, path: str) -> ApiOperation:
    return ApiOperation(
        method, path, "Not supported: models come from the hub, a folder or the config", errors=(501,), success=()
    )


class OllamaModelRoutes:
    """Lists and describes models and their processes."""

    def __init__(self, service: Service, names: OllamaNames):
        self._service = service
        self._names = names
        self._props = ServerProps(service)

    async def list_tags(self, _: HttpRequest) -> Response:
        """Serve `/api/tags`."""
        self._service.catalog.rescan_if_changed()
        models = self._service.catalog.list_visible()
        others = [other for other in self._names.list_others() if is_model_visible(other[1].id, other[1].aliases)]
        props = {model.id: self._props.get_known(model) for model in (*models, *(model for _, model in others))}
        return JSONResponse(
            await asyncio.to_thread(
                listing.list_tags, models, others, lambda model: model_info.read_facts(model, props[model.id])
            )
        )

    async def show_model(self, request: dict[str, Any], reply: OllamaResponse) -> None:
        """Serve `/api/show`."""
        model = self._names.find(ModelRequest.parse(request).model_name)
        check_model_allowed(model.id, model.aliases)
        if model.needs_download:
            raise ModelNotFoundError(self._service.catalog.explain_download(model))
        await reply.send_object(await asyncio.to_thread(listing.describe_model, model, await self._props.fetch_props(model)))

    async def list_running(self, _: HttpRequest) -> Response:
        """Serve `/api/ps`: the running models, the last to expire first, with Ollama's fields and Eardrum's.

        `gone` lists the unloaded models, the latest first, and the reason of each.
        """
        taken = await self._service.measure_memory()
        running = [status for status in self._service.list_processes() if is_model_visible(status.model.id, status.model.aliases)]
        models = await asyncio.to_thread(_describe_processes, running, taken)
        catalog = self._service.catalog
        gone = [one for one in self._service.unload_history if catalog.is_visible(one.model)]
        departures = [management.describe_departure(one, catalog) for one in reversed(gone)]
        return JSONResponse({"models": models, "gone": departures})


def _describe_processes(statuses: list[ProcessStatus], taken: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    now = time.time()
    models = [
        management.describe_process(status) | listing.describe_process(status, taken.get(status.model.id, {}), now)
        for status in statuses
    ]
    return sorted(models, key=lambda model: str(model["expires_at"]), reverse=True)


async def _reject(request: HttpRequest) -> Response:
    raise UnsupportedRouteError(
        f"{request.url.path} is not implemented: models come from the hub, a folder or the config, not from Modelfiles."
    )


log = logging.getLogger(__name__)


class CopyRequest(RequestModel):
    """The body of `/api/copy`."""

    source: Text = ""
    destination: Text = ""


FINAL_STATUSES = ("verifying sha256 digest", "writing manifest", "success")
"""Statuses sent after the download. The files were verified and put in place before that."""


class StorageRoutes:
    """Pulls, copies and deletes models."""

    def __init__(self, service: Service, names: OllamaNames):
        self._service = service
        self._names = names

    async def pull(self, request: dict[str, Any], reply: OllamaResponse) -> None:
        """Download a model from the hub, by any name that `eardrum pull` takes. All its files count as one layer.

        A local model is updated if it came from the hub and the hub is reachable. Clients pull every model they are configured
        with, so a pull with nothing to do succeeds.
        """
        head = ModelRequest.parse(request)
        lines, name = head.stream, head.model_name
        here = self._find_local(name)
        match = _get_match(here) if here else await self._service.library.choose_match(remove_tag(name))
        if lines:
            await reply.send_line({"status": "pulling manifest"})
        if match:
            try:
                await self._fetch(match, reply, lines=lines)
            except EardrumError as error:
                if not here or here.needs_download or isinstance(error, ShuttingDownError):
                    raise
                log.warning("Model %s was not updated; the local copy stays in use: %s", here.id, error.message)
                if lines:
                    await reply.send_line({"status": f"not updated, using the local copy: {error.message}"})
        if not lines:
            await reply.send_object({"status": "success"})
            return
        for status in FINAL_STATUSES:
            await reply.send_line({"status": status}, last=status == FINAL_STATUSES[-1])

    async def _fetch(self, match: ModelMatch, reply: OllamaResponse, *, lines: bool) -> None:
        layer = hashlib.sha256(match.repository.encode()).hexdigest()
        async with aclosing(self._service.library.pull_model(match)) as steps:
            async for step in steps:
                if lines:
                    digest = {"status": f"pulling {layer[:12]}", "digest": f"sha256:{layer}"}
                    await reply.send_line(digest | {"total": step.total, "completed": step.completed})

    def _find_local(self, name: str) -> Model | None:
        """Find a model by name; its files may be missing."""
        with suppress(ModelNotFoundError):
            return self._names.find(name)
        return None

    async def delete(self, request: dict[str, Any], reply: OllamaResponse) -> None:
        """Remove a copy, or delete the files of a downloaded model."""
        name = ModelRequest.parse(request).model_name
        if not self._names.forget(name):
            await self._service.remove_model(self._names.find(name))
        await reply.send_object(None)

    async def copy(self, request: dict[str, Any], reply: OllamaResponse) -> None:
        """Add a name for a model; it lasts until the server stops."""
        copy = CopyRequest.parse(request)
        if not copy.source or not copy.destination:
            raise InvalidRequestError("source and destination are required", param="destination")
        self._names.copy(copy.source, copy.destination)
        await reply.send_object(None)


def _get_match(model: Model) -> ModelMatch | None:
    """Return the model's repository on the hub; None for models from elsewhere."""
    return ModelMatch(model.card, model.repository) if model.repository and not model.is_external else None
