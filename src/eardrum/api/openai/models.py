"""`/v1/models`: lists models as OpenAI's model objects, with their modalities.

Fields that OpenAI's objects do not have are extensions, of Eardrum or llama-swap.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eardrum.config.llama_swap import DeclaredCapabilities, ModelSelector
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.key_usage import check_model_allowed, is_model_visible
from eardrum.gateway.models.inventory import RECOGNITION_TASK, SPEECH_TASK, Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import Service
from eardrum.gateway.speech import list_voices

OWNER = "eardrum"

ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

YIELD_EVERY = 50
"""Models that are described before the event loop runs again: 2 ms."""

UNLOADED_STATES = (ModelState.STOPPED, ModelState.FAILED)
ModelObject = dict[str, Any]


class OpenAIModelRoutes:
    """The endpoints that list models."""

    def __init__(self, service: Service):
        self._service = service

    async def list_models(self, request: Request) -> Response:
        """List models, selectors, pins of the active profile and copies; aliases too, if the config includes them.

        With `task`, as speaches' clients send it, only models for this task of the Hugging Face hub.
        """
        self._service.catalog.rescan_if_changed()
        task = request.query_params.get("task")
        objects: list[bytes] = []
        for listed in self._build_objects():
            if task and listed.get("task") != task:
                continue
            objects.append(ENCODE(listed).encode())
            if not len(objects) % YIELD_EVERY:
                await asyncio.sleep(0)
        return Response(b'{"object":"list","data":[' + b",".join(objects) + b"]}", media_type="application/json")

    async def show_model(self, request: Request) -> Response:
        """Describe one model, by its id or any alias; ids may contain slashes."""
        id = request.path_params["id"].strip()
        if not id:
            return await self.list_models(request)
        if id in self._service.name_resolver.selectors:
            if not self._list_targets(id):
                raise ModelNotFoundError(f"The API key may not use {id}. GET /v1/models lists its models.")
            return JSONResponse(self._build_selector(id, self._service.name_resolver.selectors[id]))
        model = self._service.find_model(id)
        check_model_allowed(model.id, model.aliases)
        if model.needs_download:
            raise ModelNotFoundError(self._service.catalog.explain_download(model))
        if not model.is_runnable:
            raise ModelNotFoundError(f"The model {model.id} cannot run yet. {model.card.install_hint}")
        return JSONResponse(self._build_model(id, model))

    def _build_objects(self) -> Iterator[ModelObject]:
        catalog, selection = self._service.catalog, self._service.name_resolver
        listed = [
            m for m in catalog.list_visible() if m.is_runnable and not m.needs_download and not (m.entry and m.entry.unlisted)
        ]
        for model in listed:
            if model.id not in selection.selectors:  # a selector may have the name of a peer's model, and takes precedence
                yield self._build_model(model.id, model)
            if self._service.settings.include_aliases_in_list:
                aliases = (alias for alias in catalog.list_aliases(model) if alias not in selection.selectors)
                yield from (self._build_alias(alias, model) for alias in aliases)
        for id, selector in selection.selectors.items():
            if not selector.unlisted and self._list_targets(id):
                yield self._build_selector(id, selector)
        pins = selection.profiles[selection.active_profile].pins if selection.active_profile else {}
        taken = {*selection.selectors, *(model.id for model in catalog)}
        for pin, target in pins.items():
            if target and pin not in taken and self._list_targets(target):
                yield _build_object(pin, "profile", loaded=self._is_loaded([target]))
        for copy, original in list(self._service.client_aliases):
            if (model_copied := catalog.find_named(original)) and is_model_visible(model_copied.id, model_copied.aliases):
                yield self._build_alias(copy, model_copied)

    def _build_model(self, id: str, model: Model) -> ModelObject:
        state, aliases = self._service.get_state(model), self._service.catalog.list_aliases(model)
        kind = "peer" if model.origin == "peer" else "model"
        return {
            **_build_object(id, kind, loaded=state not in UNLOADED_STATES, **_get_labels(model), aliases=aliases),
            "created": model.created,
            "state": state,
            "engine": model.engine,
            "aliases": aliases,
            **describe_modalities(model),
        }

    def _build_alias(self, alias: str, model: Model) -> ModelObject:
        loaded = self._service.get_state(model) not in UNLOADED_STATES
        return {
            **_build_object(alias, "alias", loaded=loaded, **_get_labels(model), modelID=model.id),
            "created": model.created,
            **describe_modalities(model),
        }

    def _list_targets(self, name: str) -> list[str]:
        """List the models that requests for a name may get, and that the client's key may use."""
        return [target for target in self._service.name_resolver.list_targets(name) if self._service.catalog.is_visible(target)]

    def _is_loaded(self, targets: Sequence[str]) -> bool:
        """Whether one of these models is loaded or being loaded."""
        models = [model for target in targets if (model := self._service.catalog.find_named(target))]
        return any(self._service.get_state(model) in (ModelState.READY, ModelState.STARTING) for model in models)

    def _build_selector(self, id: str, selector: ModelSelector) -> ModelObject:
        visible = [target for target in selector.targets if self._service.catalog.is_visible(target)]
        facts: ModelObject = {"strategy": selector.strategy, "targets": visible}
        if selector.strategy == "spillover":
            facts["spillover"] = selector.settings.spillover
        return _build_object(
            id,
            "selector",
            loaded=self._is_loaded(self._list_targets(id)),
            name=selector.name,
            description=selector.description,
            metadata=selector.metadata,
            **facts,
        )


def _build_object(
    id: str, kind: str, *, loaded: bool, name: str = "", description: str = "", metadata: ModelObject | None = None, **facts: Any
) -> ModelObject:
    """Build a model object with the fields that aliases and selectors have too. `facts` take precedence over the config's
    `metadata`."""
    labels = {"name": name.strip(), "description": description.strip()}
    return {
        "id": id,
        "object": "model",
        "created": 0,
        "owned_by": OWNER,
        **{label: text for label, text in labels.items() if text},
        "meta": {"llamaswap": {**(metadata or {}), "type": kind, **facts}},
        "status": {"value": "loaded" if loaded else "unloaded"},
    }


def _get_labels(model: Model) -> ModelObject:
    entry = model.entry
    return {"name": entry.name, "description": entry.description, "metadata": entry.metadata} if entry else {}


SPEECH = DeclaredCapabilities(inputs=("audio",), outputs=("text",))
"""Capabilities of Eardrum's own models, and of external ones that the config does not describe but whose name suggests speech."""

VOICE = DeclaredCapabilities(inputs=("text",), outputs=("audio",))
"""The same for models that speak."""


TASKS = {"audio_transcriptions": RECOGNITION_TASK, "audio_speech": SPEECH_TASK}
"""Tasks by the flags of models."""


def describe_modalities(model: Model) -> dict[str, Any]:
    """Return `capabilities` and, where known, `architecture`, `context_length` and `supported_parameters`."""
    configured = model.entry.capabilities if model.is_external and model.entry else DeclaredCapabilities()
    assumed = SPEECH if model.is_speech_model else VOICE if model.is_voice_model else configured
    declared = configured if configured.inputs else assumed
    flags = _get_flags(declared)
    facts: dict[str, Any] = {"capabilities": flags | (_describe_speech(model) if "audio_transcriptions" in flags else {})}
    if model.is_voice_model:
        facts["capabilities"] |= {"tasks": ["speak"], "voices": [voice for voice, _ in list_voices(model)]}
    if task := next((task for flag, task in TASKS.items() if flag in flags), ""):
        facts |= {"task": task, "language": list(model.capabilities.languages)}
    inputs, outputs = declared.inputs, declared.outputs
    if inputs or outputs:
        modality = f"{'+'.join(inputs)}->{'+'.join(outputs)}"
        facts["architecture"] = {
            "input_modalities": list(inputs),
            "output_modalities": list(outputs),
            "modality": modality,
        }
    if declared.context:
        facts["context_length"] = declared.context
    if declared.tools:
        facts["supported_parameters"] = ["tools", "tool_choice"]
    return facts


def _get_flags(declared: DeclaredCapabilities) -> dict[str, bool]:
    inputs, outputs = set(declared.inputs), set(declared.outputs)
    flags = {
        "vision": "image" in inputs and "text" in outputs,
        "audio_transcriptions": "audio" in inputs and "text" in outputs,
        "audio_speech": "text" in inputs and "audio" in outputs,
        "image_generation": "text" in inputs and "image" in outputs,
        "image_to_image": "image" in inputs and "image" in outputs,
        "function_calling": declared.tools,
        "reranker": declared.reranker,
    }
    return {name: True for name, is_set in flags.items() if is_set}


def _describe_speech(model: Model) -> dict[str, Any]:
    can = model.capabilities.to_json()
    return {
        "tasks": ["transcribe", *(["translate"] if model.capabilities.translate else [])],
        "languages": can["languages"],
        "response_formats": ["json", "text", "srt", "verbose_json", "vtt", "diarized_json"],
        "timestamp_granularities": ["segment", *(["word"] if model.capabilities.words else [])],
        "stream": True,
        **{name: can[name] for name in ("detects_language", "logprobs", "prompt", "hotwords", "temperature")},
        "speakers": True,  # for every model: the server labels them
    }
