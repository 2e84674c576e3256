"""Names to models: those of the config, those found on disk, and the embedded one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eardrum import config
from eardrum.engines import registry
from eardrum.errors import ConfigError, ModelNotFoundError, UnsupportedFeatureError
from eardrum.languages import language_in_name, language_name
from eardrum.types import Capabilities, Request, Task

EMBEDDED_ID = "moonshine-tiny-en"
EMBEDDED_ALIASES = ("UsefulSensors/moonshine-tiny", "moonshine/tiny", "moonshine-tiny")

EMBEDDED_SHA256 = {
    "encoder_model.ort": "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
    "decoder_model_merged.ort": "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
    "tokenizer.bin": "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
}
"""Moonshine Tiny English as `moonshine-voice` 0.1.0 carries it (weights under the MIT licence)."""

COMMON_OPTIONS = ("device", "compute_type")
"""Options that every engine has."""

DEFAULT_ALIASES = ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe")
"""Names that clients cannot help sending; they mean the default model unless the config says otherwise."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be asked for."""

    id: str
    engine: str
    source: Path
    capabilities: Capabilities
    origin: str
    """Where it comes from: "config", "disk" or "embedded"."""
    aliases: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 0
    max_requests: int = 64

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in _files(self.source))

    @property
    def created(self) -> int:
        """Unix time of its newest file; 0 when it has none."""
        return int(max((path.stat().st_mtime for path in _files(self.source)), default=0))


class Catalog:
    """All models by name. Built once from the settings."""

    def __init__(self, settings: config.Settings):
        self._models: dict[str, Model] = {}
        self._names: dict[str, str] = {}
        for model in (*_configured(settings), *_on_disk(settings), *_embedded(settings)):
            self._add(model)
        default, self.why_default = self._choose_default(settings)
        self._default = default.id
        for alias in DEFAULT_ALIASES:
            self._names.setdefault(alias, self._default)

    @property
    def default(self) -> Model:
        """The model behind requests that name none."""
        return self._models[self._default]

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def aliases(self, model: Model) -> list[str]:
        """All names that mean `model`, its id excepted."""
        return [name for name, id in self._names.items() if id == model.id and name != id]

    def find(self, name: str) -> Model:
        """The model that a client names.

        Raises:
            ModelNotFoundError: none; the message lists those there are.
        """
        if not name:
            return self.default
        try:
            return self._models[self._names[name]]
        except KeyError:
            known = ", ".join([*self._models, *DEFAULT_ALIASES])
            raise ModelNotFoundError(f"There is no model {name!r}. Models: {known}.") from None

    def refine(self, model: Model, capabilities: Capabilities) -> None:
        """Replace what the engine's card promised by what the loaded model said of itself."""
        self._models[model.id] = replace(model, capabilities=capabilities)

    def check(self, model: Model, request: Request) -> None:
        """Refuse what the model cannot do.

        Raises:
            UnsupportedFeatureError: the message names what the model can do and which models can do more.
        """
        can = self._models[model.id].capabilities
        if request.language and can.languages and request.language not in can.languages:
            knows = ", ".join(f"{language_name(code)} ({code})" for code in can.languages)
            wants = f"{language_name(request.language)} ({request.language})"
            raise UnsupportedFeatureError(
                f"{model.id} does not know {wants}, only {knows}. "
                f"{self._others(lambda c: not c.languages or request.language in c.languages)}",
                param="language",
            )
        if request.task is Task.TRANSLATE and not can.translate:
            others = self._others(lambda c: c.translate)
            raise UnsupportedFeatureError(f"{model.id} transcribes but does not translate. {others}", param="model")
        if request.words and not can.words:
            others = self._others(lambda c: c.words)
            raise UnsupportedFeatureError(
                f"{model.id} gives times per segment but not per word. {others}", param="timestamp_granularities"
            )
        if request.logprobs and not can.logprobs:
            others = self._others(lambda c: c.logprobs)
            raise UnsupportedFeatureError(f"{model.id} gives no token probabilities. {others}", param="include")
        if request.speakers and not can.speakers:
            others = self._others(lambda c: c.speakers)
            raise UnsupportedFeatureError(f"{model.id} does not tell speakers apart. {others}", param="response_format")

    def _others(self, able: Any) -> str:
        names = [model.id for model in self if able(model.capabilities)]
        if names:
            return f"Models that can: {', '.join(names)}."
        engines = [card.name for card in registry.cards().values() if able(card.capabilities)]
        if engines:
            return f"No model here can; one of the engine {' or '.join(engines)} could."
        return "No model or engine of this server can."

    def _add(self, model: Model) -> None:
        if owner := self._names.get(model.id):
            if model.origin == "config":
                raise ConfigError(f"The alias {model.id!r} of {owner} is also the name of a model.")
            return  # the config wins over the disk, the disk over the embedded one
        self._models[model.id] = model
        self._names[model.id] = model.id
        for alias in model.aliases:
            owner = self._names.setdefault(alias, model.id)
            if owner != model.id and model.origin == "config":
                raise ConfigError(f"The alias {alias!r} of {model.id} already belongs to {owner}.")

    def _choose_default(self, settings: config.Settings) -> tuple[Model, str]:
        if settings.default_model:
            try:
                return self.find(settings.default_model), "set by default_model"
            except ModelNotFoundError as error:
                raise ConfigError(f"default_model (STT_DEFAULT_MODEL, WHISPER_MODEL): {error.message}") from None
        if settings.default_engine:
            registry.card(settings.default_engine)
        fitting = [m for m in self if settings.default_engine in ("", m.engine)]
        if not fitting:
            wanted = f" of the engine {settings.default_engine}" if settings.default_engine else ""
            raise ConfigError(
                f"There is no model{wanted}: name one under `models:` in the config, put one into model_dir, "
                "or install the embedded one with `pip install moonshine-voice==0.1.0`."
            )
        for origin, why in (("config", "the first of the config"), ("disk", "the largest on disk")):
            if candidates := [m for m in fitting if m.origin == origin and _knows_english(m)]:
                best = candidates[0] if origin == "config" else max(candidates, key=lambda m: m.size)
                return best, why
        return fitting[-1], "embedded: nothing better is on disk"


def model_store() -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _configured(settings: config.Settings) -> Iterator[Model]:
    for id, entry in settings.models.items():
        if not entry.source.exists():
            raise ConfigError(f"models.{id}.source: there is nothing at {entry.source}.")
        engine = entry.engine or _engine_of(entry.source)
        if not engine:
            layouts = "; ".join(f"{c.name}: {', '.join(layout)}" for c in registry.cards().values() for layout in c.layouts)
            raise ConfigError(f"models.{id}: no engine recognises {entry.source}. Set `engine:`, or check the files ({layouts}).")
        options = {*registry.card(engine).options, *COMMON_OPTIONS}
        if unknown := sorted(entry.options.keys() - options):
            raise ConfigError(f"models.{id}.options: {engine} has no option {unknown[0]}, only {', '.join(sorted(options))}.")
        model = _model(settings, id, engine, entry.source, "config", options=entry.options)
        yield replace(
            model,
            aliases=entry.aliases,
            batch=entry.batch,
            max_requests=entry.max_requests or settings.limits.requests,
        )


def _on_disk(settings: config.Settings) -> Iterator[Model]:
    """Models in the model folder: plain directories, or snapshots of a Hugging Face cache."""
    store = settings.model_dir or model_store()
    if settings.model_dir and not store.is_dir():
        raise ConfigError(f"model_dir {store} is not a directory.")
    for directory in sorted(store.iterdir()) if store.is_dir() else ():
        if directory.name.startswith("models--"):
            id = directory.name.removeprefix("models--").replace("--", "/")
            candidates = sorted((directory / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)[-1:]
        else:
            id, candidates = directory.name, [directory]
        for source in candidates:
            if engine := _engine_of(source):
                yield _model(settings, id, engine, source, "disk")


def _embedded(settings: config.Settings) -> Iterator[Model]:
    spec = find_spec("moonshine_voice")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        source = Path(location) / "assets" / "tiny-en"
        if source.is_dir():
            options = {"sha256": EMBEDDED_SHA256}
            model = _model(settings, EMBEDDED_ID, "moonshine", source, "embedded", options=options)
            yield replace(model, aliases=EMBEDDED_ALIASES)


def _model(
    settings: config.Settings, id: str, engine: str, source: Path, origin: str, options: dict[str, Any] | None = None
) -> Model:
    card = registry.card(engine)
    chosen = {"device": settings.device, "compute_type": settings.compute_type} | (options or {})
    language = chosen.get("language") or language_in_name(id)
    return Model(
        id=id,
        engine=engine,
        source=source,
        origin=origin,
        capabilities=replace(card.capabilities, languages=(language,)) if language else card.capabilities,
        options=chosen,
        max_requests=settings.limits.requests,
    )


def _engine_of(source: Path) -> str:
    fitting = [card for card in registry.cards().values() if card.runs(source)]
    return min(fitting, key=lambda card: (bool(card.missing), card.rank)).name if fitting else ""


def _files(source: Path) -> list[Path]:
    return [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source] * source.is_file()


def _knows_english(model: Model) -> bool:
    return not model.capabilities.languages or "en" in model.capabilities.languages
