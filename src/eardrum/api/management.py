"""Management routes: health, pulling, loading and unloading models, reloading the config, and the engine behind a model.

`/api/version` serves Ollama's clients, llama-swap's and Eardrum's own with one object.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from eardrum import __version__
from eardrum.api import openapi
from eardrum.api.asgi import Receive, Scope, Send, build_stream_headers, has_query_flag
from eardrum.api.auth import read_api_key
from eardrum.api.openapi import ApiOperation, ApiRoute
from eardrum.api.request_log import get_record
from eardrum.concurrency import cancel_and_wait
from eardrum.config.api_keys import ALL_SCOPES
from eardrum.errors import ConfigError, EardrumError, InvalidRequestError, ModelNotFoundError
from eardrum.gateway.key_usage import KeyUsage, check_model_allowed
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.download import PullProgress
from eardrum.gateway.models.inventory import ADDRESS, Model
from eardrum.gateway.models.names import ModelMatch
from eardrum.gateway.processes.supervisor import UnloadRecord
from eardrum.gateway.service import ProcessStatus, Service
from eardrum.redaction import redact_command
from eardrum.transcription import ModelPlacement

if TYPE_CHECKING:
    from eardrum.gateway.upstreams.replicas import ReplicaStatus

READY = "ready"
"""The state of a replica that takes work. Few servers have replicas, so their module is not imported for it."""

MAX_SILENCE_S = 2.0
"""Seconds without a heartbeat after which `/health` reports a model's process as unresponsive."""


def build_routes(service: Service) -> list[BaseRoute]:
    """Build the management and health routes."""
    admin, health = ManagementRoutes(service), HealthRoutes(service)
    return [
        ApiRoute(health.show_health, ApiOperation("get", "/health", "The server's health, and the state of each model")),
        ApiRoute(
            admin.pull,
            ApiOperation(
                "post",
                "/api/pull/{name:path}",
                "Download a model; streams a line per step",
                (openapi.LINES,),
                (404, 502, 503, 507),
            ),
        ),
        ApiRoute(
            admin.show_backend,
            ApiOperation(
                "get",
                "/api/v1/backend",
                "Describe a model's engine and its capabilities",
                errors=openapi.LOOKUP_ERRORS,
                query=openapi.MODEL_FIELD,
            ),
        ),
        ApiRoute(
            admin.list_keys,
            ApiOperation("get", "/api/keys", "List the API keys by name, their rights, and how much each was used"),
        ),
        ApiRoute(
            admin.show_current_key,
            ApiOperation("get", "/api/keys/current", "Whether a key is needed, and the rights of the key in the request, if any"),
        ),
        ApiRoute(
            admin.check_config,
            ApiOperation("get", "/api/config/check", "Read the config and report its errors and warnings, without applying it"),
        ),
        ApiRoute(admin.reload, ApiOperation("post", "/api/reload", "Reload the config; unchanged models keep running")),
        ApiRoute(
            admin.load,
            ApiOperation("post", "/api/ps/{name:path}", "Load a model and wait until it is ready", errors=openapi.LOADING_ERRORS),
        ),
        ApiRoute(
            admin.unload,
            ApiOperation(
                "delete",
                "/api/ps/{name:path}",
                "Unload a model after its running requests",
                errors=openapi.LOADING_ERRORS,
                query=openapi.FORCE_QUERY,
            ),
        ),
    ]


class ManagementRoutes:
    """Endpoints that change the server's models and config, and one that describes a model's engine."""

    def __init__(self, service: Service):
        self._service = service

    async def pull(self, request: Request) -> Response:
        """Download a model.

        Raises:
            ModelNotFoundError: the name is unknown.
        """
        name = request.path_params["name"].strip("/ ")
        match = await self._service.library.choose_match(name)
        return PullResponse(match, self._service.library.pull_model(match))

    async def load(self, request: Request) -> Response:
        """Load a model, unless it is loaded, and wait until it is ready."""
        model = await self._service.load_model(self._find_model(request))
        return JSONResponse({"status": "loaded", "model": model.id})

    async def unload(self, request: Request) -> Response:
        """Unload a model after its running requests, or at once with `?force`. Not an error if it is not loaded."""
        model = find_unloadable(self._service, request.path_params["name"].strip())
        await self._service.unload_model(model, force=has_query_flag(request.scope, "force"))
        return JSONResponse({"status": "unloaded", "model": model.id})

    async def list_keys(self, _: Request) -> Response:
        """List the API keys and their use since the server started. The keys themselves are not shown."""
        return JSONResponse({"keys": [_describe_key(usage) for usage in self._service.api_keys]})

    async def show_current_key(self, request: Request) -> Response:
        """Describe the rights of the key that asks. The route needs none: a page asks before it has one, to know what to show."""
        keys = self._service.api_keys
        usage = keys.find_usage(read_api_key(request.scope))
        usage = usage if usage and not usage.settings.has_expired else None
        settings = usage.settings if usage else None
        return JSONResponse(
            {
                "required": bool(keys),
                "accepted": bool(usage) or not keys,
                "name": usage.name if usage else None,
                "scopes": list(settings.scopes if settings else () if keys else ALL_SCOPES),
                "models": list(settings.models) if settings else [],
                "expires": settings.expires.isoformat() if settings and settings.expires else None,
            }
        )

    async def check_config(self, _: Request) -> Response:
        """Check the config's files as they are now."""
        report = await self._service.check_config()
        return JSONResponse(
            {
                "valid": not report.errors,
                "files": [str(path) for path in report.files],
                "errors": list(report.errors),
                "warnings": list(report.warnings),
            }
        )

    async def reload(self, _: Request) -> Response:
        """Reload the config. An invalid one changes nothing, and the response states the reason."""
        try:
            changes = await self._service.reload_config()
        except ConfigError as error:
            raise InvalidRequestError(f"The new config is invalid, and the old one stays in use: {error.message}") from error
        names_by_kind = {
            "added": changes.added,
            "changed": changes.changed,
            "removed": changes.removed,
            "later": changes.deferred,
        }
        lists = {kind: sorted(names) for kind, names in names_by_kind.items()}
        default = {"default_model": changes.default} if changes.default else {}
        return JSONResponse({"status": "reloaded", **lists, **default})

    def _find_model(self, request: Request) -> Model:
        return self._service.find_model(request.path_params["name"].strip())

    async def show_backend(self, request: Request) -> Response:
        """Describe the engine of a model (`?model=`, else the default one) and its capabilities."""
        model = self._service.find_model(request.query_params.get("model", "").strip())
        check_model_allowed(model.id, model.aliases)
        return JSONResponse(
            {
                "backend": model.engine,
                "info": _describe_backend(model, self._service.get_placement(model)),
                "capabilities": _describe_capabilities(model),
                "speaker_unsupported_behavior": "ignore",
            }
        )


FIRST_STEP_S = 5.0
"""How long a pull waits for its first step before it answers: until then a refusal has its own status."""


class PullResponse(StreamingResponse):
    """Streams a line of JSON for each step of a download; the last one is `success` or an error.

    What the hub refuses at once is an error with its own status instead.
    """

    def __init__(self, match: ModelMatch, steps: AsyncGenerator[PullProgress, None]):
        super().__init__(())
        self.raw_headers = build_stream_headers("application/x-ndjson")
        self._match = match
        self._steps = steps

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response.

        Raises:
            EardrumError: the download failed before anything was sent.
        """
        begun = asyncio.ensure_future(anext(self._steps, None))
        try:
            await asyncio.wait([begun], timeout=FIRST_STEP_S)
            if begun.done() and (error := begun.exception()):
                raise error
            self.body_iterator = self._encode_steps(scope, begun)
            await super().__call__(scope, receive, send)
        finally:
            await cancel_and_wait(begun)
            await self._steps.aclose()

    async def _encode_steps(self, scope: Scope, begun: asyncio.Future[PullProgress | None]) -> AsyncIterator[bytes]:
        yield _encode_line({"status": "pulling", "model": self._match.repository, "engine": self._match.card.name})
        try:
            if first := await begun:
                yield _encode_line(_describe_progress(first))
            async for progress in self._steps:
                yield _encode_line(_describe_progress(progress))
        except EardrumError as error:
            get_record(scope).note = error.message
            yield _encode_line({"status": "error", "error": error.message, "code": error.code})
            return
        yield _encode_line({"status": "success", "model": self._match.repository})


def find_unloadable(service: Service, name: str) -> Model:
    """Find a model to be unloaded: also one that the config no longer has, by its id, while it finishes its requests.

    Raises:
        ModelNotFoundError: there is none.
    """
    try:
        return service.find_model(name)
    except ModelNotFoundError:
        if removed := next((model for model in service.list_present() if model.id == name and not model.is_internal), None):
            return removed
        raise


class HealthRoutes:
    """`/health`."""

    def __init__(self, service: Service):
        self._service = service

    async def show_health(self, _: Request) -> Response:
        """Report the server's health and each model's state.

        The status is 200 even when a model has failed: a supervisor that restarts the server would stop all other models too.
        """
        service = self._service
        service.catalog.rescan_if_changed()
        default = service.catalog.default
        replicas = {status.model.id: status.replicas for status in service.list_processes() if status.replicas}
        failure = service.get_failure(default)
        if not failure and (silence_s := service.get_unresponsive_s(default)) > MAX_SILENCE_S:
            whose = (
                "none of its replicas takes requests" if default.is_replicated else "its process has not answered liveness checks"
            )
            failure = f"{whose} for {silence_s:.0f} s."
        return JSONResponse(
            {
                "status": "degraded" if failure else "ok",
                **({"reason": f"The default model {default.id} has failed: {failure}"} if failure else {}),
                "version": __version__,
                "default_model": default.id,
                "models": [
                    _describe_health(service, model) | _count_replicas(replicas.get(model.id, ()))
                    for model in service.list_present()
                    if not model.is_internal
                ],
            }
        )


def _describe_key(usage: KeyUsage) -> dict[str, Any]:
    settings = usage.settings
    return {
        "name": usage.name,
        "scopes": list(settings.scopes),
        "models": list(settings.models),
        "expires": settings.expires.isoformat() if settings.expires else None,
        "requests": usage.requests,
        "refused": usage.refused,
        "in_progress": usage.in_progress,
        "audio_seconds": round(usage.audio_s, 1),
        "last_used_at": round(usage.last_used_at, 3) or None,
    }


def _describe_health(service: Service, model: Model) -> dict[str, Any]:
    unloaded, placement = service.unload_history.find_last(model.id), service.get_placement(model)
    silence_s = service.get_unresponsive_s(model)
    return {
        "id": model.id,
        "state": service.get_state(model),
        "requests": service.count_requests(model),
        "engine": model.engine,
        **(describe_placement(model, placement) if placement and not model.is_external else {}),
        **({"reason": unloaded.cause.reason} if unloaded else {}),
        **({"silent_seconds": round(silence_s, 1)} if silence_s > MAX_SILENCE_S else {}),
    }


def _count_replicas(replicas: Sequence[ReplicaStatus]) -> dict[str, int]:
    """Count the replicas of a model that has some. Their addresses are for those only who may see `/api/ps`."""
    ready = sum(replica.state == READY for replica in replicas)
    return {"replicas": len(replicas), "replicas_ready": ready} if replicas else {}


def describe_process(status: ProcessStatus) -> dict[str, Any]:
    """Describe a process as an entry of `GET /api/ps`: Eardrum's fields, without Ollama's."""
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
        **({"replicas": [_describe_replica(replica) for replica in status.replicas]} if status.replicas else {}),
    }


def _describe_replica(replica: ReplicaStatus) -> dict[str, Any]:
    return {
        "name": replica.name or None,
        "address": replica.address or None,
        "node": replica.node or None,
        "state": replica.state,
        "detail": replica.detail or None,
        "requests": replica.requests,
        "moved": replica.moved,
        "device": replica.placement.device or None,
        "compute_type": replica.placement.compute_type or None,
    }


def describe_departure(unloaded: UnloadRecord, catalog: ModelCatalog) -> dict[str, Any]:
    """Describe an unloaded model as an entry of `GET /api/ps`, without the name of a model that the client's key may not use."""
    other = unloaded.cause.other
    is_hidden = bool(other) and not catalog.is_visible(other)
    if is_hidden:
        unloaded = replace(unloaded, cause=replace(unloaded.cause, other="another model"))
    return {
        "id": unloaded.model,
        "reason": unloaded.cause.reason,
        "for": None if is_hidden else other or None,
        "message": str(unloaded),
        "at": round(unloaded.at, 3),
    }


def describe_placement(model: Model, placement: ModelPlacement) -> dict[str, Any]:
    """Describe the device and number type of a loaded model; those of its options, where the engine does not report them."""
    described: dict[str, Any] = {
        "device": placement.device or model.options.get("device", "auto"),
        "compute_type": placement.compute_type or model.options.get("compute_type", "auto"),
    }
    return described | ({"device_reason": placement.reason} if placement.reason else {})


def _describe_backend(model: Model, placement: ModelPlacement | None) -> dict[str, Any]:
    languages = model.capabilities.languages
    return {
        "name": model.engine,
        "type": "remote"
        if model.engine == ADDRESS or model.is_replicated or (not model.is_external and model.card.remote)
        else "local",
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
        "supports_speaker": False,
        "supports_speaker_fallback": False,
        "supports_speaker_external": False,
        "speaker_strategy": "ignore",
        "supports_translate": can.translate,
        "supports_words": can.words,
        "supports_logprobs": can.logprobs,
        "supports_language_detection": can.detects_language,
        "supports_speech": model.is_voice_model,
        "languages": list(can.languages),
        "max_window_s": can.max_window_s,
        "max_batch": can.max_batch,
    }


def _describe_progress(progress: PullProgress) -> dict[str, Any]:
    return {"status": "downloading", "file": progress.file, "completed": progress.completed, "total": progress.total}


def _encode_line(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


OLLAMA_VERSION = "0.13.5"
"""The Ollama version whose API this is. Clients compare its numbers with the version they need."""


async def get_version(_: Request) -> Response:
    """Return Ollama's `version`, Eardrum's own, and llama-swap's `commit` and `build_date`, which a package does not have."""
    return JSONResponse({"version": OLLAMA_VERSION, "commit": "", "build_date": "", "eardrum": __version__})
