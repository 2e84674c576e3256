"""Management routes: pull, load and unload models, reload the config, and describe the engine behind a model.

`/api/version` serves Ollama's clients, llama-swap's and Eardrum's own with one object.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from eardrum import __version__
from eardrum.api.asgi import has_query_flag
from eardrum.api.request_log import get_record
from eardrum.errors import ConfigError, EardrumError, InvalidRequestError
from eardrum.gateway.models.download import PullProgress
from eardrum.gateway.models.inventory import ADDRESS, Model
from eardrum.gateway.processes.supervisor import UnloadRecord
from eardrum.gateway.service import ProcessStatus, Service
from eardrum.redaction import redact_command
from eardrum.transcription import ModelPlacement


def build_routes(service: Service) -> list[BaseRoute]:
    """All routes of this edge."""
    admin = ManagementRoutes(service)
    return [
        Route("/api/pull/{name:path}", admin.pull, methods=["POST"]),
        Route("/api/v1/backend", admin.show_backend),
        Route("/api/reload", admin.reload, methods=["POST"]),
        Route("/api/ps/{name:path}", admin.load, methods=["POST"]),
        Route("/api/ps/{name:path}", admin.unload, methods=["DELETE"]),
    ]


class ManagementRoutes:
    """The endpoints."""

    def __init__(self, service: Service):
        self._service = service

    async def pull(self, request: HttpRequest) -> Response:
        """Fetch a model: a line of JSON per step, the last one `success` or an error."""
        name = request.path_params["name"].strip("/ ")
        match = await self._service.library.choose_match(name)  # an unknown name is refused before anything is sent

        async def lines() -> AsyncIterator[bytes]:
            yield _encode_line({"status": "pulling", "model": match.repository, "engine": match.card.name})
            try:
                async with aclosing(self._service.library.pull_model(match)) as steps:
                    async for progress in steps:
                        yield _encode_line(_describe_progress(progress))
            except EardrumError as error:
                get_record(request.scope).note = error.message
                yield _encode_line({"status": "error", "error": error.message, "code": error.code})
                return
            yield _encode_line({"status": "success", "model": match.repository})

        return StreamingResponse(lines(), media_type="application/x-ndjson", headers={"cache-control": "no-store"})

    async def load(self, request: HttpRequest) -> Response:
        """Start a model's process, unless it runs, and wait until it serves."""
        model = await self._service.load_model(self._find_model(request))
        return JSONResponse({"status": "loaded", "model": model.id})

    async def unload(self, request: HttpRequest) -> Response:
        """End a model's process once it has finished what it has begun, with `?force` at once. No error if it is not up."""
        model = self._find_model(request)
        await self._service.unload_model(model, force=has_query_flag(request.scope, "force"))
        return JSONResponse({"status": "unloaded", "model": model.id})

    async def reload(self, _: HttpRequest) -> Response:
        """Read the config again. If it makes no sense, everything stays as it was, and the answer says why."""
        try:
            changes = await self._service.reload_config()
        except ConfigError as error:
            raise InvalidRequestError(f"The config was not taken over, the old one stays in force: {error.message}") from error
        found = {"added": changes.added, "changed": changes.changed, "removed": changes.removed, "later": changes.deferred}
        lists = {kind: sorted(names) for kind, names in found.items()}
        default = {"default_model": changes.default} if changes.default else {}
        return JSONResponse({"status": "reloaded", **lists, **default})

    def _find_model(self, request: HttpRequest) -> Model:
        return self._service.find_model(request.path_params["name"].strip())

    async def show_backend(self, request: HttpRequest) -> Response:
        """What runs a model (`?model=`, else the default one) and what that can do."""
        model = self._service.find_model(request.query_params.get("model", "").strip())
        return JSONResponse(
            {
                "backend": model.engine,
                "info": _describe_backend(model, self._service.get_placement(model)),
                "capabilities": _describe_capabilities(model),
                "speaker_unsupported_behavior": "error",
            }
        )


def describe_process(status: ProcessStatus) -> dict[str, Any]:
    """One entry of `GET /api/ps`, in our own words."""
    model = status.model
    return {
        "id": model.id,
        "engine": model.engine,
        "state": status.state,
        "requests": status.requests,
        **describe_placement(model, status.placement),
        "pid": status.pid,
        "loaded_at": round(status.loaded_at, 3),
        "is_default": status.default,
        "ttl_remaining": None if status.ttl_remaining is None else round(status.ttl_remaining, 1),
        "reason": status.unload_cause.reason if status.unload_cause else None,
    }


def describe_departure(gone: UnloadRecord) -> dict[str, Any]:
    """One entry of what `GET /api/ps` tells of models that are not there any more."""
    return {
        "id": gone.model,
        "reason": gone.cause.reason,
        "for": gone.cause.other or None,
        "message": str(gone),
        "at": round(gone.at, 3),
    }


def describe_placement(model: Model, placement: ModelPlacement) -> dict[str, Any]:
    """Where a loaded model computes and in which numbers; what is asked for, where it does not say."""
    found: dict[str, Any] = {
        "device": placement.device or model.options.get("device", "auto"),
        "compute_type": placement.compute_type or model.options.get("compute_type", "auto"),
    }
    return found | ({"device_reason": placement.reason} if placement.reason else {})


def _describe_backend(model: Model, placement: ModelPlacement | None) -> dict[str, Any]:
    languages = model.capabilities.languages
    return {
        "name": model.engine,
        "type": "remote" if model.engine == ADDRESS or (not model.is_external and model.card.remote) else "local",
        "title": (model.entry.name if model.entry else "") if model.is_external else model.card.title,
        "model": model.id,
        "source": _describe_source(model),
        **describe_placement(model, placement or ModelPlacement()),
        "language": languages[0] if len(languages) == 1 else "auto",
        **_describe_capabilities(model),
    }


def _describe_source(model: Model) -> str:
    if model.is_external and model.entry:
        return redact_command(model.entry.cmd or model.entry.proxy)
    return model.repository or redact_command(str(model.source or model.options.get("url", "")))


def _describe_capabilities(model: Model) -> dict[str, Any]:
    can = model.capabilities
    return {
        "supports_streaming": True,
        "supports_hotwords": can.hotwords,
        "supports_prompt": can.prompt,
        "supports_speaker": can.speakers,
        "supports_speaker_fallback": False,
        "supports_speaker_external": False,
        "speaker_strategy": "native" if can.speakers else "error",
        "supports_translate": can.translate,
        "supports_words": can.words,
        "supports_logprobs": can.logprobs,
        "supports_language_detection": can.detects_language,
        "languages": list(can.languages),
        "max_window_s": can.max_window_s,
        "max_batch": can.max_batch,
    }


def _describe_progress(progress: PullProgress) -> dict[str, Any]:
    return {"status": "downloading", "file": progress.file, "completed": progress.completed, "total": progress.total}


def _encode_line(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


OLLAMA_VERSION = "0.13.5"
"""The Ollama whose API this is: its clients compare it with what they need, number by number."""


async def get_version(_: Request) -> Response:
    """Ollama's `version`, llama-swap's `commit` and `build_date`, which a package has none of, and our own version."""
    return JSONResponse({"version": OLLAMA_VERSION, "commit": "", "build_date": "", "eardrum": __version__})
