"""Resolves models by Ollama's names, and lists and describes them as Ollama does.

A listed name always has a tag: `latest` if there is no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from eardrum.api.ollama import model_info
from eardrum.api.ollama import model_info as details
from eardrum.api.ollama import model_info as files
from eardrum.api.ollama import model_info as weights
from eardrum.api.ollama.common_fields import FOR_EVER_S, format_timestamp
from eardrum.api.ollama.model_info import ModelFacts
from eardrum.errors import InvalidRequestError, ModelNotFoundError
from eardrum.gateway.models import names
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.models.names import LATEST_TAG
from eardrum.gateway.service import ProcessStatus, Service

STARTED_AT = time.time()
"""Since when models without files are as they are."""


PLAIN_TEMPLATE = "{{ .Prompt }}"
TOOLS_TEMPLATE = "{{ if .System }}{{ .System }}\n{{ end }}{{ if .Tools }}{{ .Tools }}\n{{ end }}{{ .Prompt }}"
"""Clients look into the template for what the model takes. The real one is the server's affair and none of Go's."""

FactsLookup = Callable[[Model], ModelFacts]
"""What is known of a model beside the config."""


def list_tags(models: list[Model], others: list[tuple[str, Model]], knows: FactsLookup = weights.read_facts) -> dict[str, Any]:
    """`/api/tags`: the models that can be asked for now, and what has another name, the newest first. Reads files."""
    found = [
        _describe_tag(name, model, knows(model))
        for name, model in [*((model.id, model) for model in models if is_listed(model)), *others]
    ]
    return {"models": sorted(found, key=lambda tag: str(tag["modified_at"]), reverse=True)}


def _describe_tag(name: str, model: Model, said: ModelFacts) -> dict[str, Any]:
    found = files.inspect_files(model)
    length = details.get_context_length(model, said)
    return {
        "name": add_tag(name),
        "model": add_tag(name),
        "modified_at": format_timestamp(found.modified or STARTED_AT),
        "size": found.size,
        "digest": found.digest,
        "details": details.get_details(model, said) | ({"context_length": length} if length else {}),
        "capabilities": model_info.get_capabilities(model, said),
    }


def describe_model(model: Model, props: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`/api/show`, with what the model's server has said. Reads files."""
    said = weights.read_facts(model, props)
    length, able = details.get_context_length(model, said), model_info.get_capabilities(model, said)
    return {
        "modelfile": f"FROM {model.id}\n",
        "parameters": f"num_ctx {length}" if length else "",
        "template": TOOLS_TEMPLATE if "tools" in able else PLAIN_TEMPLATE,
        "details": details.get_details(model, said),
        "model_info": details.get_model_info(model, said),
        "capabilities": able,
        "modified_at": format_timestamp(files.inspect_files(model).modified or STARTED_AT),
    }


def describe_process(status: ProcessStatus, taken: Mapping[str, float], now: float) -> dict[str, Any]:
    """One entry of `/api/ps` at the Unix time `now`. Reads files.

    `taken` is the memory of its process by pool, in bytes; of another server's process nothing is known.
    """
    model, on_gpu = status.model, taken.get("cuda", 0.0)
    said = weights.read_facts(model)
    left = status.ttl if status.ttl_remaining is None else status.ttl_remaining
    return {
        "name": add_tag(model.id),
        "model": add_tag(model.id),
        "size": int(taken.get("cpu", 0.0) + on_gpu),
        "digest": files.inspect_files(model).digest,
        "details": details.get_details(model, said),
        "expires_at": format_timestamp(now + (left if status.ttl else FOR_EVER_S)),
        "size_vram": int(on_gpu),
        "context_length": details.get_context_length(model, said),
    }


def add_tag(id: str) -> str:
    """The name under which an id is listed. Clients add `:latest` to any name without a tag and then look for that."""
    return id if ":" in id else id + LATEST_TAG


def remove_tag(name: str) -> str:
    """The name without the tag that says nothing."""
    return name.removesuffix(LATEST_TAG)


def is_listed(model: Model) -> bool:
    """Whether a model can be asked for now and the config does not hide it."""
    return model.is_runnable and not model.needs_download and not (model.entry and model.entry.unlisted)


class OllamaNames:
    """Finds models, and words what is not found as Ollama does."""

    def __init__(self, service: Service):
        self._service = service

    def find(self, name: str) -> Model:
        """The model of a name, with or without `:latest`, of an alias, a copy, a pin or a selector.

        Raises:
            ModelNotFoundError: there is none.
        """
        return self.resolve(name)[0]

    def resolve(self, name: str) -> tuple[Model, str]:
        """The model, and the name it is asked by once copies, profile and selectors have had their say.

        Raises:
            ModelNotFoundError: there is none.
        """
        with suppress(ModelNotFoundError):
            meant = self._service.resolve_name(name)
            return self._service.catalog.find_model(meant), meant
        known = ", try pulling it first" if names.find_matches(remove_tag(name)) else ""
        raise ModelNotFoundError(f"model '{_shorten_name(name)}' not found{known}")

    def copy(self, source: str, destination: str) -> None:
        """Let a model be known by a further name, on every edge, instead of what that name meant to a copy before.

        Raises:
            ModelNotFoundError: there is no such source.
            InvalidRequestError: the name is taken by a model, or there are too many.
        """
        model, copies = self.find(source), self._service.client_aliases
        if destination not in copies:
            with suppress(ModelNotFoundError):
                taken = self._service.find_model(destination)
                raise InvalidRequestError(f"'{_shorten_name(destination)}' is already a name of {taken.id}.", param="destination")
        copies.add(destination, model.id)

    def forget(self, name: str) -> bool:
        """Drop a copy; False if the name is none."""
        return self._service.client_aliases.remove(name)

    def list_others(self) -> Iterator[tuple[str, Model]]:
        """Names to list beside the ids, with what they mean just now: selectors, copies, and aliases if the config says so."""
        if self._service.settings.includeAliasesInList:
            catalog = self._service.catalog
            yield from ((alias, model) for model in catalog if is_listed(model) for alias in catalog.list_aliases(model))
        selectors = ((id, id) for id, selector in self._service.name_resolver.selectors.items() if not selector.unlisted)
        for name, meaning in (*selectors, *self._service.client_aliases):
            with suppress(ModelNotFoundError):
                yield name, self._service.find_model(meaning)


def _shorten_name(name: str) -> str:
    return name if len(name) <= names.MAX_QUOTED_LENGTH else name[: names.MAX_QUOTED_LENGTH] + "..."
