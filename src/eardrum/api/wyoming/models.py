"""Which models clients are told of, and which one an utterance gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eardrum import __version__
from eardrum.api.wyoming.asks import Ask
from eardrum.api.wyoming.frames import Event
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.languages import NAMES

PROGRAM = "eardrum"
"""Home Assistant makes the entity's name of it, and remembers it."""

OTHERS = ("tts", "handle", "intent", "wake", "mic", "snd")
"""Other kinds of services, of which there are none here; clients want to be told."""


def listed(service: Service) -> list[Model]:
    """The models for speech that can be used at once, the default first."""
    service.catalog.look()
    usable = [m for m in service.catalog if m.hears and m.runnable and not m.absent and not (m.entry and m.entry.unlisted)]
    default = service.catalog.default.id
    return sorted(usable, key=lambda model: model.id != default)


def chosen(service: Service, ask: Ask) -> Model:
    """The model for an utterance.

    Home Assistant offers the languages of all models together and then names the language only.

    Raises:
        ModelNotFoundError: there is none of this name.
    """
    return service.find("" if ask.name == PROGRAM else ask.name, ask.request)


def info(models: Iterable[Model], *, streaming: bool) -> Event:
    """The answer to `describe`: one program with all models."""
    program = {
        **_artifact(PROGRAM, "Speech to text with every model of this server", "Eardrum", __version__),
        "models": [_model(model) for model in models],
        "supports_transcript_streaming": streaming,
        "requires_external_vad": True,
    }
    return Event("info", {"asr": [program], **{kind: [] for kind in OTHERS}})


def _model(model: Model) -> dict[str, Any]:
    description = f"{model.repository or model.id} ({model.engine})"
    return {
        **_artifact(model.id, description, model.repository.partition("/")[0] or model.engine),
        "languages": _languages(model),
    }


def _languages(model: Model) -> list[str]:
    return list(model.capabilities.languages or NAMES)


def _artifact(name: str, description: str, maker: str, version: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "attribution": {"name": maker, "url": ""},
        "installed": True,
        "description": description,
        "version": version,
    }
