"""`/v1/models`: what can be asked for, as model objects. All that OpenAI's do not have is an extension, or llama-swap's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eardrum.api.openai import modalities
from eardrum.config.llama_swap import Selector
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.inventory import Model
from eardrum.gateway.scheduler import State
from eardrum.gateway.service import Service

OWNER = "eardrum"

ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

AT_ONCE = 50
"""Models that are put into words before others have their turn: 2 ms."""

DOWN = (State.STOPPED, State.FAILED)
Object = dict[str, Any]


class Models:
    """The endpoints."""

    def __init__(self, service: Service):
        self._service = service

    async def list(self, _: Request) -> Response:
        """All models and what else can be asked for: selectors, pins of the active profile, copies, aliases if wanted."""
        self._service.catalog.look()
        objects: list[bytes] = []
        for listed in self._objects():
            objects.append(ENCODE(listed).encode())
            if not len(objects) % AT_ONCE:
                await asyncio.sleep(0)
        return Response(b'{"object":"list","data":[' + b",".join(objects) + b"]}", media_type="application/json")

    async def one(self, request: Request) -> Response:
        """One model, by its id or any alias; ids may contain slashes."""
        id = request.path_params["id"].strip()
        if not id:
            return await self.list(request)
        if id in self._service.selection.selectors:
            return JSONResponse(self._selector(id, self._service.selection.selectors[id]))
        model = self._service.find(id)
        if model.absent:
            raise ModelNotFoundError(self._service.catalog.how_to_fetch(model))
        if not model.runnable:
            raise ModelNotFoundError(f"The model {model.id} cannot run yet. {model.card.how_to_install}")
        return JSONResponse(self._model(id, model))

    def _objects(self) -> Iterator[Object]:
        catalog, selection = self._service.catalog, self._service.selection
        listed = [m for m in catalog if m.runnable and not m.absent and not (m.entry and m.entry.unlisted)]
        for model in listed:
            if model.id not in selection.selectors:  # which may have the names of peers' models, and come before them
                yield self._model(model.id, model)
            if self._service.settings.includeAliasesInList:
                aliases = (alias for alias in catalog.aliases(model) if alias not in selection.selectors)
                yield from (self._alias(alias, model) for alias in aliases)
        for id, selector in selection.selectors.items():
            if not selector.unlisted:
                yield self._selector(id, selector)
        pins = selection.profiles[selection.active].pins if selection.active else {}
        taken = {*selection.selectors, *(model.id for model in catalog)}
        for pin, target in pins.items():
            if target and pin not in taken:
                yield _object(pin, "profile", loaded=self._up([target]))
        for copy, meaning in list(self._service.copies):
            if copied := catalog.named(meaning):
                yield self._alias(copy, copied)

    def _model(self, id: str, model: Model) -> Object:
        state, aliases = self._service.state(model), self._service.catalog.aliases(model)
        kind = "peer" if model.origin == "peer" else "model"
        return {
            **_object(id, kind, loaded=state not in DOWN, **_labels(model), aliases=aliases),
            "created": model.created,
            "state": state,
            "engine": model.engine,
            "aliases": aliases,
            **modalities.described(model),
        }

    def _alias(self, alias: str, model: Model) -> Object:
        loaded = self._service.state(model) not in DOWN
        return {
            **_object(alias, "alias", loaded=loaded, **_labels(model), modelID=model.id),
            "created": model.created,
            **modalities.described(model),
        }

    def _up(self, targets: Sequence[str]) -> bool:
        """Whether one of these is loaded, or about to be."""
        models = [model for target in targets if (model := self._service.catalog.named(target))]
        return any(self._service.state(model) in (State.READY, State.STARTING) for model in models)

    def _selector(self, id: str, selector: Selector) -> Object:
        targets = selector.targets[:1] if selector.strategy == "pin" else selector.targets
        facts: Object = {"strategy": selector.strategy, "targets": list(selector.targets)}
        if selector.strategy == "spillover":
            facts["spillover"] = selector.settings.spillover
        return _object(
            id,
            "selector",
            loaded=self._up(targets),
            name=selector.name,
            description=selector.description,
            metadata=selector.metadata,
            **facts,
        )


def _object(
    id: str, kind: str, *, loaded: bool, name: str = "", description: str = "", metadata: Object | None = None, **facts: Any
) -> Object:
    """A model object without what only real models have. `metadata` is the config's, and gives way to our own facts."""
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


def _labels(model: Model) -> Object:
    entry = model.entry
    return {"name": entry.name, "description": entry.description, "metadata": entry.metadata} if entry else {}
