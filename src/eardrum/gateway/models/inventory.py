"""Lists the models there are: from the config, the store, the embedded package, peers, and those that could be downloaded.

Models behind commands and addresses count as speech models by what the config declares (`capabilities`, `metadata`), else by
their names. Peers are other servers whose models are offered here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eardrum import config
from eardrum.engines import registry
from eardrum.engines.registry import EngineCard
from eardrum.errors import ConfigError, ModelNotFoundError
from eardrum.gateway.models import names
from eardrum.gateway.models.names import ModelMatch
from eardrum.gateway.models.store import ModelStore, find_hub_cache, is_written_as_path, measure_size, resolve_folder
from eardrum.gateway.upstreams.transcription_request import RequestStrategy
from eardrum.languages import find_language_in_name
from eardrum.transcription import Capabilities

EMBEDDED_ID = "moonshine-tiny-en"
EMBEDDED_ALIASES = ("UsefulSensors/moonshine-tiny", "moonshine/tiny", "moonshine-tiny")

EMBEDDED_SHA256 = {
    "encoder_model.ort": "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
    "decoder_model_merged.ort": "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
    "tokenizer.bin": "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
}
"""Moonshine Tiny English as `moonshine-voice` 0.1.0 carries it (weights under the MIT licence)."""

COMMAND, ADDRESS = "command", "address"
"""What stands in the place of an engine for models that a command or another server brings."""

EXTERNAL_CAPABILITIES = Capabilities(
    detects_language=True, translate=True, words=True, prompt=True, hotwords=True, temperature=True
)
"""What is let through to an upstream of which nothing is known: it refuses itself what it cannot do."""

COMMON_OPTIONS = ("device", "compute_type")
"""Options that every engine has."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be asked for."""

    id: str
    engine: str
    source: Path | None
    """Its files; None if they are not on this machine, or if the engine calls another server."""
    capabilities: Capabilities
    origin: str
    """Where it comes from: "config", "disk", "embedded", "peer" or "hub"."""
    repository: str = ""
    """Its name at the Hugging Face hub, if it is known from there."""
    aliases: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    scheduling: config.SchedulingSettings = field(default_factory=config.SchedulingSettings)
    """The settings that the scheduler heeds."""
    python: str = ""
    """The interpreter of its process; empty is our own."""
    fallback: tuple[str, ...] = ()
    entry: config.ModelSettings | None = None
    """What the config says of it, if it names it."""
    is_speech_model: bool = True
    """Whether it turns speech into text. True of every engine's models; see `looks_like_speech_model` for external ones."""
    key: str = field(default="", repr=False)
    """What its upstream wants to see instead of the client's key."""

    @property
    def is_external(self) -> bool:
        """Whether an HTTP server that is not a runner of ours serves it: a command, or an address."""
        return self.engine in (COMMAND, ADDRESS)

    @property
    def supports_live(self) -> bool:
        """Whether it takes live sessions. A server behind a command or an address takes whole recordings only."""
        return not self.is_external

    @property
    def is_chat_model(self) -> bool:
        """Whether it is declared as one for chats, whatever else it does."""
        return self.is_external and self.entry is not None and declares_chat(self.entry)

    @property
    def card(self) -> EngineCard:
        """What its engine declares. A foreign model has none."""
        return registry.find_card(self.engine)

    @property
    def needs_download(self) -> bool:
        """Whether its files must be fetched first."""
        return not self.is_external and self.source is None and not self.card.remote

    @property
    def is_runnable(self) -> bool:
        """Whether the libraries of its engine are installed, as far as can be known without asking another interpreter."""
        return self.is_external or bool(self.python) or not self.card.missing_packages

    def format_pull_command(self, called: str = "") -> str:
        """The command that fetches its files, for a shell that knows no config: by what it is called, if it is so there too."""
        source = self.entry.source if self.entry else ""
        for name in (called or self.id, source):
            for engine in ("", self.engine):
                if _is_name_of(name, engine, self):
                    return f"eardrum pull {shlex.quote(name)}" + (f" --engine {engine}" if engine else "")
        other = names.find_matches(self.repository)
        option = f" --engine {self.engine}" if other and other[0].card.name != self.engine else ""
        return f"eardrum pull {shlex.quote(self.repository)}{option}"

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return measure_size(self.source) if self.source else 0

    @property
    def created(self) -> int:
        """Unix time of its newest file; 0 when it has none."""
        files = [self.source, *self.source.rglob("*")] if self.source else []
        return int(max((path.stat().st_mtime for path in files if path.is_file()), default=0))

    @property
    def ttl(self) -> float:
        """Seconds without a request after which the model is unloaded; 0: never."""
        return self.scheduling.ttl or 0.0

    def with_ttl(self, ttl: float) -> Model:
        """The model with another time to live, in seconds; 0: it is never unloaded."""
        return replace(self, scheduling=self.scheduling.model_copy(update={"ttl": ttl}))

    def with_capabilities(self, capabilities: Capabilities) -> Model:
        """The model with what it said of itself once loaded, less what its kind is known not to do."""
        if self.is_external:
            return self
        return replace(self, capabilities=self.card.find_capabilities(self.repository or self.id, capabilities))


class ModelInventory:
    """Finds models by looking at the settings, the store and the installed packages."""

    def __init__(self, settings: config.Settings):
        if settings.model_dir and not settings.model_dir.is_dir():
            raise ConfigError(f"model_dir {settings.model_dir} is not a directory.")
        self._settings = settings
        self._last_configured: dict[str, Model] = {}
        self.store = ModelStore(settings.model_dir or find_hub_cache())
        self.default_engine = _parse_default_engine(settings)
        """The engine that runs what several engines could; empty leaves it to their rank."""

    def __iter__(self) -> Iterator[Model]:
        """All models: the config's first, then the disk's, the embedded one, and those of peers."""
        for id in self._settings.models:
            yield self._load_configured(id)
        for id, source in self.store:
            if engine := detect_engine(source, self.default_engine):
                yield self._build_model(id, registry.find_card(engine), source, "disk", repository=id if "/" in id else "")
        yield from self._find_embedded()
        for offer in list_peer_models(self._settings):
            yield replace(
                self._build_external(offer.id, offer.entry),
                origin="peer",
                aliases=offer.aliases,
                is_speech_model=looks_like_speech_model(offer.id, offer.aliases, offer.entry),
                key=offer.key,
            )

    def build_downloadable(self, match: ModelMatch) -> Model:
        """A model that is not here but could be."""
        return self._build_model(match.repository, match.card, None, "hub", repository=match.repository)

    def find_at_path(self, name: str) -> Model | None:
        """The model in the folder or file that stands in a model's place; None if it is a name.

        Raises:
            ConfigError: it can only be a path, and there is no model.
        """
        path, written_as_path = Path(name).expanduser(), is_written_as_path(name)
        if os.path.exists(path):
            source, id = resolve_folder(path.resolve())
            engine = detect_engine(source, self.default_engine) or (self.default_engine if written_as_path else "")
            if engine:
                return self._build_model(id, registry.find_card(engine), source, "config", repository=id if "/" in id else "")
            problem = f"No engine recognises {path} as a model. Set `default_engine`, or check the files ({describe_layouts()})."
            if not os.access(path, os.R_OK):
                problem = f"{path} cannot be read: give the user that runs Eardrum the right to."
        else:
            problem = f"There is no model at {path}: there is nothing."
        if written_as_path:
            raise ConfigError(problem)
        return None

    def find_configured(self, name: str) -> Model | None:
        """The model of the config that has this name or alias."""
        found = (id for id, entry in self._settings.models.items() if name == id or name in entry.aliases)
        return next((self._load_configured(id) for id in found), None)

    def _load_configured(self, id: str) -> Model:
        """As the config has it. Files that were right once may be damaged later: that is for loading them to say."""
        try:
            self._last_configured[id] = self._build_configured(id, self._settings.models[id])
        except ConfigError:
            if id not in self._last_configured:
                raise
        return self._last_configured[id]

    def _build_configured(self, id: str, entry: config.ModelSettings) -> Model:
        if entry.cmd or entry.proxy:
            return self._build_external(id, entry)
        engine, source, repository = self._locate_files(id, entry)
        card = registry.find_card(engine)
        known = {*card.options, *COMMON_OPTIONS}
        if unknown := sorted(entry.options.keys() - known):
            raise ConfigError(f"models.{id}.options: {engine} has no option {unknown[0]}, only {', '.join(sorted(known))}.")
        model = self._build_model(id, card, source, "config", repository=repository, options=entry.options)
        return replace(
            model,
            aliases=entry.aliases,
            batch_size=entry.batch_size,
            scheduling=self._settings.resolve_scheduling(entry),
            python=entry.python,
            fallback=entry.fallback,
            entry=entry,
        )

    def _build_external(self, id: str, entry: config.ModelSettings) -> Model:
        try:
            RequestStrategy.from_options(entry.options)
        except ConfigError as error:
            raise ConfigError(f"models.{id}.options: {error.message}") from None
        return Model(
            id=id,
            engine=COMMAND if entry.cmd else ADDRESS,
            source=None,
            capabilities=EXTERNAL_CAPABILITIES,
            origin="config",
            aliases=entry.aliases,
            options=entry.options,
            scheduling=self._settings.resolve_scheduling(entry),
            fallback=entry.fallback,
            entry=entry,
            is_speech_model=looks_like_speech_model(id, entry.aliases, entry),
        )

    def _locate_files(self, id: str, entry: config.ModelSettings) -> tuple[str, Path | None, str]:
        """Engine, files and repository of a model of the config."""
        forced = registry.find_card(entry.engine).name if entry.engine else ""
        if forced and registry.find_card(forced).remote:
            return forced, None, ""
        name = entry.source or id
        if name in (EMBEDDED_ID, *EMBEDDED_ALIASES) and not entry.engine and (embedded := next(self._find_embedded(), None)):
            return embedded.engine, embedded.source, ""
        if (stored := self.store.find_files(name)) and (engine := forced or detect_engine(stored, self.default_engine)):
            return engine, stored, name if names.is_hub_id(name) else ""
        path = Path(name).expanduser()
        if path.exists() and (engine := forced or detect_engine(path, self.default_engine)):
            return engine, path, ""
        if path.is_absolute() or name.startswith("."):
            raise self._make_missing_error(path, id)
        try:
            match = names.choose_match(name, forced)
        except ModelNotFoundError as error:
            raise (
                self._make_missing_error(stored or path, id)
                if stored or path.exists()
                else ConfigError(f"models.{id}: {error.message} If it is a directory: there is none at {path.absolute()}.")
            ) from None
        source = self.store.find_files(match.repository)
        return match.card.name, source if source and match.card.can_run(source) else None, match.repository

    def _make_missing_error(self, path: Path, id: str) -> ConfigError:
        if not path.exists():
            return ConfigError(f"models.{id}.source: there is nothing at {path}.")
        if not os.access(path, os.R_OK):
            return ConfigError(f"models.{id}: {path} cannot be read: give the user that runs the server the right to.")
        return ConfigError(f"models.{id}: no engine recognises {path}. Set `engine:`, or check the files ({describe_layouts()}).")

    def _find_embedded(self) -> Iterator[Model]:
        spec = find_spec("moonshine_voice")
        for location in (spec.submodule_search_locations or ()) if spec else ():
            source = Path(location) / "assets" / "tiny-en"
            if source.is_dir():
                options = {"sha256": EMBEDDED_SHA256}
                model = self._build_model(EMBEDDED_ID, registry.find_card("moonshine"), source, "embedded", options=options)
                yield replace(model, aliases=EMBEDDED_ALIASES)

    def _build_model(
        self,
        id: str,
        card: EngineCard,
        source: Path | None,
        origin: str,
        *,
        repository: str = "",
        options: dict[str, Any] | None = None,
    ) -> Model:
        chosen = {"device": self._settings.device, "compute_type": self._settings.compute_type} | (options or {})
        can = card.find_capabilities(repository or id)
        language = "language" in card.options and (chosen.get("language") or find_language_in_name(id))
        return Model(
            id=id,
            engine=card.name,
            source=source,
            origin=origin,
            repository=repository,
            capabilities=replace(can, languages=(language,)) if language else can,
            options=chosen,
            scheduling=self._settings.resolve_scheduling(),
        )


def _is_name_of(name: str, engine: str, model: Model) -> bool:
    """Whether a name that engines know stands for this very model."""
    try:
        match = names.choose_match(name, engine) if name and names.find_matches(name) else None
    except ModelNotFoundError:
        return False
    return bool(match and match.repository == model.repository and match.card.name == model.engine)


def detect_engine(source: Path, preferred: str = "") -> str:
    """The engine whose model these files are, the preferred or else the best of several; empty if none."""
    fitting = [card for card in registry.list_cards().values() if card.can_run(source)]
    best = min(fitting, key=lambda card: (card.name != preferred, bool(card.missing_packages), card.rank), default=None)
    return best.name if best else ""


def _parse_default_engine(settings: config.Settings) -> str:
    try:
        return registry.find_card(settings.default_engine).name if settings.default_engine else ""
    except ConfigError as error:
        raise ConfigError(f"default_engine (STT_DEFAULT_BACKEND, ASR_BACKEND): {error.message}") from None


def describe_layouts() -> str:
    """What a directory may hold to be a model, in words."""
    return "; ".join(f"{card.name}: {', '.join(layout)}" for card in registry.list_cards().values() for layout in card.layouts)


@dataclass(frozen=True, slots=True)
class PeerModel:
    """One of them, as an entry of the config that nobody wrote."""

    id: str
    """The peer's id, a slash, and the name it has there."""
    aliases: tuple[str, ...]
    """The bare name, if no other peer has a model of that name. A model of our own with that name comes before it."""
    entry: config.ModelSettings
    key: str = field(repr=False)


def list_peer_models(settings: config.Settings) -> Iterator[PeerModel]:
    """All of them, in the config's order."""
    owners = Counter(name for peer in settings.peers.values() for name in dict.fromkeys(peer.models))
    for id, peer in settings.peers.items():
        for name in dict.fromkeys(peer.models):
            entry = config.ModelSettings(
                proxy=peer.proxy.rstrip("/"),
                use_model_name=name,
                filters=peer.filters,
                timeouts=peer.timeouts,
                check_endpoint="none",
            )
            yield PeerModel(f"{id}/{name}", (name,) if owners[name] == 1 else (), entry, peer.api_key)


SPEECH_NAMES = re.compile(
    r"whisper(?!er|ing|speech)|parakeet|moonshine|sensevoice|paraformer|funasr|wav2vec|voxtral|canary-\d"
    r"|audio/transcriptions|(?<![a-z])(asr|stt|transcribe|transcriptions?|speech-?to-?text)(?![a-z])"
)
"""Speech models and their servers, as people name them: `whisper-server`, `Qwen/Qwen3-ASR-1.7B`, `gpt-4o-transcribe`."""

TTS_NAMES = re.compile(r"(?<![a-z])tts(?![a-z])")
"""A model that goes the other way, whatever else is in its name."""

WORD_BREAKS = re.compile(r"[\s\"';&|=,]+")
"""What stands between the names in a command line, be it for a shell."""


def looks_like_speech_model(id: str, aliases: Sequence[str], entry: config.ModelSettings) -> bool:
    """Whether transcription may be asked of a model that another server serves.

    What the config declares counts, and nothing else if it does: `capabilities` (`in`, `out`), `capabilities` of `metadata` in
    Ollama's words, or the option `transcriptions`. Else its names and those in its command tell.
    """
    declared, said = entry.capabilities, entry.metadata.get("capabilities")
    if declared.inputs or declared.outputs:
        return "audio" in declared.inputs and ("text" in declared.outputs or not declared.outputs)
    if isinstance(said, list | tuple):
        return "audio" in said
    if entry.options:  # there are none but the paths of its audio routes
        return True
    names = [name.lower().replace("_", "-") for name in (id, *aliases, entry.use_model_name, *_split_command(entry.cmd))]
    return any(SPEECH_NAMES.search(name) and not TTS_NAMES.search(name) for name in names)


def declares_chat(entry: config.ModelSettings) -> bool:
    """Whether the config declares the model as one for chats that also listens."""
    said = entry.metadata.get("capabilities")
    return "text" in entry.capabilities.inputs or (isinstance(said, list | tuple) and "completion" in said)


def _split_command(line: str) -> Iterator[str]:
    """The words of a command without their folders, since a folder may have any name. Paths of routes stay whole."""
    for word in WORD_BREAKS.split(line):
        yield word if word.endswith("audio/transcriptions") else word.rpartition("/")[2]
