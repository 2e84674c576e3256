"""Models as Ollama lists and describes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from eardrum.api.ollama import abilities, details, files, weights
from eardrum.api.ollama.durations import FOR_EVER_S, timestamp
from eardrum.api.ollama.names import is_listed, listed
from eardrum.api.ollama.weights import Said
from eardrum.gateway.inventory import Model
from eardrum.gateway.status import ProcessStatus

STARTED = time.time()
"""Since when models without files are as they are."""


TEMPLATE = "{{ .Prompt }}"
WITH_TOOLS = "{{ if .System }}{{ .System }}\n{{ end }}{{ if .Tools }}{{ .Tools }}\n{{ end }}{{ .Prompt }}"
"""Clients look into the template for what the model takes. The real one is the server's affair and none of Go's."""

Knows = Callable[[Model], Said]
"""What is known of a model beside the config."""


def tags(models: list[Model], others: list[tuple[str, Model]], knows: Knows = weights.of) -> dict[str, Any]:
    """`/api/tags`: the models that can be asked for now, and what has another name, the newest first. Reads files."""
    found = [
        _tag(name, model, knows(model)) for name, model in [*((model.id, model) for model in models if is_listed(model)), *others]
    ]
    return {"models": sorted(found, key=lambda tag: str(tag["modified_at"]), reverse=True)}


def _tag(name: str, model: Model, said: Said) -> dict[str, Any]:
    found = files.of(model)
    length = details.context(model, said)
    return {
        "name": listed(name),
        "model": listed(name),
        "modified_at": timestamp(found.modified or STARTED),
        "size": found.size,
        "digest": found.digest,
        "details": details.of(model, said) | ({"context_length": length} if length else {}),
        "capabilities": abilities.of(model, said),
    }


def show(model: Model, props: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`/api/show`, with what the model's server has said. Reads files."""
    said = weights.of(model, props)
    length, able = details.context(model, said), abilities.of(model, said)
    return {
        "modelfile": f"FROM {model.id}\n",
        "parameters": f"num_ctx {length}" if length else "",
        "template": WITH_TOOLS if "tools" in able else TEMPLATE,
        "details": details.of(model, said),
        "model_info": details.info(model, said),
        "capabilities": able,
        "modified_at": timestamp(files.of(model).modified or STARTED),
    }


def process(status: ProcessStatus, taken: Mapping[str, float], now: float) -> dict[str, Any]:
    """One entry of `/api/ps` at the Unix time `now`. Reads files.

    `taken` is the memory of its process by pool, in bytes; of another server's process nothing is known.
    """
    model, on_gpu = status.model, taken.get("cuda", 0.0)
    said = weights.of(model)
    left = status.ttl if status.ttl_remaining is None else status.ttl_remaining
    return {
        "name": listed(model.id),
        "model": listed(model.id),
        "size": int(taken.get("cpu", 0.0) + on_gpu),
        "digest": files.of(model).digest,
        "details": details.of(model, said),
        "expires_at": timestamp(now + (left if status.ttl else FOR_EVER_S)),
        "size_vram": int(on_gpu),
        "context_length": details.context(model, said),
    }
