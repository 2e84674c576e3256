"""Models and engines in words, for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from eardrum import config
from eardrum.config import words
from eardrum.engines.registry import Card
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import COMMON_OPTIONS, Model
from eardrum.redaction import hide_in_command
from eardrum.types import Capabilities
from eardrum.units import size_in_words

ABILITIES = {
    "translate": "translation",
    "words": "word times",
    "logprobs": "token probabilities",
    "prompt": "prompt",
    "hotwords": "keywords",
    "temperature": "temperature",
    "speakers": "speakers",
    "detects_language": "language detection",
}
"""Capabilities that are there or not, and what people call them."""

size = size_in_words


def languages(can: Capabilities) -> str:
    """The codes, or that there are many."""
    return ", ".join(can.languages) or "many"


def abilities(can: Capabilities) -> str:
    """What it can besides plain text."""
    return ", ".join(words for name, words in ABILITIES.items() if getattr(can, name)) or "plain transcription"


def lines(model: Model, catalog: Catalog) -> Iterator[str]:
    """All there is to know of a model."""
    facts = _foreign(model, model.entry) if model.foreign and model.entry else _own(model)
    known = [] if model.foreign else [name for name, repository in model.card.names.items() if repository == model.repository]
    facts = {
        "model": model.id,
        **facts,
        "also called": ", ".join(dict.fromkeys([*catalog.aliases(model), *known])),
        "fallback": ", ".join(model.fallback),
    }
    yield from (f"{label:<13}{text}" for label, text in facts.items() if text)
    if model.absent:
        files = ", ".join(model.card.downloads) or "all files"
        half = "half of it is here already: " if catalog.inventory.store.unfinished(model.repository) else ""
        yield f"\nIt is not on this machine; {half}`{model.pull_command()}` fetches {files} of {model.repository}."
    if not model.runnable:
        yield f"\nIt cannot run yet. {model.card.how_to_install_here}"


def _own(model: Model) -> dict[str, str]:
    """Of a model that an engine of ours runs."""
    return {
        "engine": f"{model.engine} ({model.card.title})",
        "from": model.origin,
        "repository": model.repository,
        "files": str(model.source or ""),
        "size": "" if model.absent else size(model.size),
        "languages": languages(model.capabilities),
        "can": abilities(model.capabilities),
        "windows": f"up to {model.capabilities.max_window_s:g} s, {model.capabilities.max_batch} at once",
        "set": ", ".join(f"{name}={value}" for name, value in model.options.items() if value != "auto"),
        "options": ", ".join(dict.fromkeys([*COMMON_OPTIONS, *model.card.options])),
    }


def _foreign(model: Model, entry: config.Model) -> dict[str, str]:
    """Of a model that another server serves. Its environment is not shown: keys are in it."""
    can = entry.capabilities
    more = [word for word, has in (("tools", can.tools), ("reranking", can.reranker)) if has]
    return {
        "name": entry.name,
        "description": entry.description,
        "engine": model.engine,
        "from": model.origin,
        "command": hide_in_command(" ".join(words.split(entry.cmd))),
        "stopped by": hide_in_command(entry.cmdStop),
        "address": hide_in_command(entry.proxy),
        "ready when": entry.checkEndpoint if entry.cmd else "",
        "takes": ", ".join(can.inputs),
        "gives": ", ".join(can.outputs),
        "can": ", ".join(more),
        "context": f"{can.context} tokens" if can.context else "",
    }


def engine(card: Card) -> Iterator[tuple[str, str]]:
    """Labels and texts for one engine."""
    yield "installed", f"no, it needs {', '.join(card.missing)}: {card.install_here}" if card.missing else "yes"
    yield "languages", languages(card.capabilities)
    yield "can", abilities(card.capabilities)
    if card.options:
        yield "options", ", ".join(card.options)
    if card.names or card.repositories:
        yield "names", known_names(card)
    if card.layouts:
        yield "files", " or ".join(", ".join(layout) for layout in card.layouts)


def known_names(card: Card) -> str:
    """One name for each model an engine knows, and the ids it takes."""
    by_model: dict[str, str] = {}
    for name, repository in card.names.items():
        by_model.setdefault(repository, name)
    return ", ".join([*by_model.values(), *card.repositories])
