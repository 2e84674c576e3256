"""Resolves models by Ollama's names, and lists and describes them as Ollama does.

A listed name always has a tag: `latest` if there is no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from eardrum.api.ollama import model_info
from eardrum.api.ollama.common_fields import FOR_EVER_S, format_timestamp
from eardrum.api.ollama.model_info import ModelFacts
from eardrum.errors import InvalidRequestError, ModelNotFoundError
from eardrum.gateway.models import names
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.models.names import LATEST_TAG
from eardrum.gateway.service import ProcessStatus, Service

STARTED_AT = time.time()
"""The modification time of models without files."""


PLAIN_TEMPLATE = "{{ .Prompt }}"
TOOLS_TEMPLATE = "{{ if .System }}{{ .System }}\n{{ end }}{{ if .Tools }}{{ .Tools }}\n{{ end }}{{ .Prompt }}"
"""Templates in Go's syntax, from which clients infer what the model accepts. The real, Jinja template stays with the server."""

FactsLookup = Callable[[Model], ModelFacts]
"""Looks up the facts about a model that its config does not hold."""


def list_tags(
    models: list[Model], others: list[tuple[str, Model]], get_facts: FactsLookup = model_info.read_facts
) -> dict[str, Any]:
    """Build `/api/tags`: the usable models and further names, the newest first. Reads files."""
    found = [
        _describe_tag(name, model, get_facts(model))
        for name, model in [*((model.id, model) for model in models if is_listed(model)), *others]
    ]
    return {"models": sorted(found, key=lambda tag: str(tag["modified_at"]), reverse=True)}


def _describe_tag(name: str, model: Model, facts: ModelFacts) -> dict[str, Any]:
    found = model_info.inspect_files(model)
    length = model_info.get_context_length(model, facts)
    return {
        "name": add_tag(name),
        "model": add_tag(name),
        "modified_at": format_timestamp(found.modified or STARTED_AT),
        "size": found.size,
        "digest": found.digest,
        "details": model_info.get_details(model, facts) | ({"context_length": length} if length else {}),
        "capabilities": model_info.get_capabilities(model, facts),
    }


def describe_model(model: Model, props: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Build `/api/show`, with the `/props` of the model's server. Reads files."""
    facts = model_info.read_facts(model, props)
    length, able = model_info.get_context_length(model, facts), model_info.get_capabilities(model, facts)
    return {
        "modelfile": f"FROM {model.id}\n",
        "parameters": f"num_ctx {length}" if length else "",
        "template": TOOLS_TEMPLATE if "tools" in able else PLAIN_TEMPLATE,
        "details": model_info.get_details(model, facts),
        "model_info": model_info.get_model_info(model, facts),
        "capabilities": able,
        "modified_at": format_timestamp(model_info.inspect_files(model).modified or STARTED_AT),
    }


def describe_process(status: ProcessStatus, taken: Mapping[str, float], now: float) -> dict[str, Any]:
    """Build one entry of `/api/ps` at the Unix time `now`. Reads files.

    `taken` is the memory of the model's process by pool, in bytes; empty for the processes of other servers.
    """
    model, on_gpu = status.model, taken.get("cuda", 0.0)
    facts = model_info.read_facts(model)
    left = status.ttl if status.ttl_remaining is None else status.ttl_remaining
    return {
        "name": add_tag(model.id),
        "model": add_tag(model.id),
        "size": int(taken.get("cpu", 0.0) + on_gpu),
        "digest": model_info.inspect_files(model).digest,
        "details": model_info.get_details(model, facts),
        "expires_at": format_timestamp(now + (left if status.ttl else FOR_EVER_S)),
        "size_vram": int(on_gpu),
        "context_length": model_info.get_context_length(model, facts),
    }


def add_tag(id: str) -> str:
    """Add `:latest` to an id without a tag: clients add it to the names they look up."""
    return id if ":" in id else id + LATEST_TAG


def remove_tag(name: str) -> str:
    """Remove the default tag, `:latest`."""
    return name.removesuffix(LATEST_TAG)


def is_listed(model: Model) -> bool:
    """Whether a model is usable now, in Ollama's API too, and the config does not hide it."""
    speaks = model.is_voice_model and not model.is_external  # Ollama has no such models
    return model.is_runnable and not model.needs_download and not speaks and not (model.entry and model.entry.unlisted)


class OllamaNames:
    """Finds models by name, with Ollama's error messages."""

    def __init__(self, service: Service):
        self._service = service

    def find(self, name: str) -> Model:
        """Find a model by its name, with or without `:latest`, or by an alias, a copy, a pin or a selector.

        Raises:
            ModelNotFoundError: no model has this name.
        """
        return self.resolve(name)[0]

    def resolve(self, name: str) -> tuple[Model, str]:
        """Return the model, and the name that copies, the profile and selectors resolve to.

        Raises:
            ModelNotFoundError: no model has this name.
        """
        with suppress(ModelNotFoundError):
            resolved = self._service.resolve_name(name)
            return self._service.catalog.find_model(resolved), resolved
        hint = ", try pulling it first" if names.find_matches(remove_tag(name)) else ""
        raise ModelNotFoundError(f"model '{_shorten_name(name)}' not found{hint}")

    def copy(self, source: str, destination: str) -> None:
        """Give a model a further name on every edge; an existing copy of that name is replaced.

        Raises:
            ModelNotFoundError: no model has the name `source`.
            InvalidRequestError: a model has the name `destination`, or there are too many copies.
        """
        model, copies = self.find(source), self._service.client_aliases
        if destination not in copies:
            with suppress(ModelNotFoundError):
                taken = self._service.find_model(destination)
                raise InvalidRequestError(f"'{_shorten_name(destination)}' is already a name of {taken.id}.", param="destination")
        copies.add(destination, model.id)

    def forget(self, name: str) -> bool:
        """Drop a copy; False if there is no copy of this name."""
        return self._service.client_aliases.remove(name)

    def list_others(self) -> Iterator[tuple[str, Model]]:
        """Yield further names to list, with their models: selectors, copies, and aliases if the config lists them."""
        if self._service.settings.include_aliases_in_list:
            catalog = self._service.catalog
            yield from ((alias, model) for model in catalog if is_listed(model) for alias in catalog.list_aliases(model))
        selectors = ((id, id) for id, selector in self._service.name_resolver.selectors.items() if not selector.unlisted)
        for name, meaning in (*selectors, *self._service.client_aliases):
            with suppress(ModelNotFoundError):
                yield name, self._service.find_model(meaning)


def _shorten_name(name: str) -> str:
    return name if len(name) <= names.MAX_QUOTED_LENGTH else name[: names.MAX_QUOTED_LENGTH] + "..."
