"""Lists all models: those of the config, the store, the embedded package and peers, and those that could be downloaded.

Commands and addresses count as speech models if the config declares it (`capabilities`, `metadata`) or their names suggest it.
Peers are other servers whose models are offered here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from eardrum import config
from eardrum.engines import registry
from eardrum.engines.registry import EngineCard
from eardrum.errors import ConfigError, ModelNotFoundError
from eardrum.gateway.models import names
from eardrum.gateway.models.names import ModelMatch
from eardrum.gateway.models.store import (
    ModelStore,
    expand_home,
    find_hub_cache,
    is_written_as_path,
    list_file_states,
    measure_size,
    resolve_folder,
)
from eardrum.gateway.upstreams.transcription_request import RequestStrategy
from eardrum.languages import find_language_in_name
from eardrum.speech import list_languages
from eardrum.transcription import Capabilities

EMBEDDED_ID = "moonshine-tiny-en"
EMBEDDED_ALIASES = ("UsefulSensors/moonshine-tiny", "moonshine/tiny", "moonshine-tiny")

EMBEDDED_SHA256 = {
    "encoder_model.ort": "94e90a4654fc45cdfedb77c4c08e1739f48862998e58fada384b25118134f221",
    "decoder_model_merged.ort": "cf524c4862d36e9e5ab032eddc73637efd822d70e868ac575cf1a46e1e4708a0",
    "tokenizer.bin": "6884b35fd6377d4c4d32336a0bc152f36b64d1e45b6503683cdc238250a8472d",
}
"""Moonshine Tiny English as `moonshine-voice` 0.1.0 carries it (weights under the MIT licence)."""

EMBEDDED_VOICE_ID = "hibari-en"

RECOGNITION_TASK, SPEECH_TASK = "automatic-speech-recognition", "text-to-speech"
"""The Hugging Face hub's names of the tasks of models, which speaches' clients use."""

COMMAND, ADDRESS = "command", "address"
"""Values of `Model.engine` for models that a command or another server runs."""

EMBEDDED_FILES = (
    ("moonshine_voice", "assets/tiny-en", EMBEDDED_ID, "moonshine"),
    ("hibari", "assets", EMBEDDED_VOICE_ID, "hibari"),
    ("py_nanotts", "lang", "nanotts", "nanotts"),
)
"""Packages that ship weights: module, folder in it, the model's id, and its engine."""

EXTERNAL_CAPABILITIES = Capabilities(
    detects_language=True, translate=True, words=True, prompt=True, hotwords=True, temperature=True
)
"""Capabilities assumed of an external server: it refuses unsupported requests itself."""

UNKNOWN_LABEL = "unknown"
"""Name in metrics of all models that are neither in the config nor on this machine."""

COMMON_OPTIONS = ("device", "compute_type")
"""Options of all engines."""


class Model(Struct, frozen=True):
    """A model that requests can name."""

    id: str
    engine: str
    source: Path | None
    """Its files; None if they are not on this machine, or if another server has them."""
    capabilities: Capabilities
    origin: str
    """"config", "disk", "embedded", "peer" or "hub"."""
    repository: str = ""
    """Its id at the Hugging Face hub, if it has one."""
    aliases: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    batch_size: int | None = None
    scheduling: config.SchedulingSettings = field(default_factory=config.SchedulingSettings)
    """The settings that the scheduler uses."""
    python: str = ""
    """The interpreter of its process; empty: the gateway's."""
    fallback: tuple[str, ...] = ()
    entry: config.ModelSettings | None = None
    """Its entry in the config, if it has one."""
    is_speech_model: bool = True
    """Whether it transcribes; see `looks_like_speech_model` for external models."""
    is_voice_model: bool = False
    """Whether it turns text into speech; see `looks_like_voice_model` for external models."""
    key: str = ""
    """The API key for its upstream, sent instead of the client's key."""
    is_internal: bool = False
    """Whether it does a part of the work for other models. It is not in the catalog, and no client names it."""

    def __repr__(self) -> str:  # without the key
        return f"Model({self.id!r}, engine={self.engine!r})"

    @property
    def is_external(self) -> bool:
        """Whether a command or an address serves it, not a runner."""
        return self.engine in (COMMAND, ADDRESS)

    @property
    def is_replicated(self) -> bool:
        """Whether runners on this or other machines serve it, which the config lists, or Ray runs."""
        return self.entry is not None and (bool(self.entry.replicas.addresses) or self.entry.replicas.runs_on_ray)

    @property
    def runs_on_ray(self) -> bool:
        """Whether Ray runs its replicas."""
        return self.entry is not None and self.entry.replicas.runs_on_ray

    @property
    def supports_live(self) -> bool:
        """Whether it takes live sessions; commands and addresses take whole recordings only."""
        return not self.is_external and not self.is_voice_model

    @property
    def is_chat_model(self) -> bool:
        """Whether the config declares it as a chat model, perhaps in addition to transcription."""
        return self.is_external and self.entry is not None and declares_chat(self.entry)

    @property
    def card(self) -> EngineCard:
        """The declarations of its engine; external models have none."""
        return registry.find_card(self.engine)

    @property
    def needs_download(self) -> bool:
        """Whether its files must be downloaded first."""
        return not (self.is_external or self.is_replicated) and self.source is None and not self.card.remote

    @property
    def label(self) -> str:
        """Its name in metrics. Models that are only known from the hub share one: clients may name any number of them."""
        return UNKNOWN_LABEL if self.origin == "hub" else self.id

    @property
    def is_runnable(self) -> bool:
        """Whether the libraries of its engine are installed. Of other interpreters (`python:`) and machines this is assumed."""
        return self.is_external or self.is_replicated or bool(self.python) or not self.card.missing_packages

    def format_pull_command(self, requested_name: str = "") -> str:
        """The command that downloads its files without a config: with the requested name, if that works there too."""
        source = self.entry.source if self.entry else ""
        for name in (requested_name or self.id, source):
            for engine in ("", self.engine):
                if _is_name_of(name, engine, self):
                    return f"eardrum pull {shlex.quote(name)}" + (f" --engine {engine}" if engine else "")
        matches = names.find_matches(self.repository)
        option = f" --engine {self.engine}" if matches and matches[0].card.name != self.engine else ""
        return f"eardrum pull {shlex.quote(self.repository)}{option}"

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return measure_size(self.source) if self.source else 0

    @property
    def created(self) -> int:
        """Unix time of its newest file; 0 without files."""
        states = list_file_states(self.source) if self.source else []
        return int(max((status.st_mtime for status in states), default=0))

    @property
    def ttl(self) -> float:
        """Seconds without a request after which the model is unloaded; 0: never."""
        return self.scheduling.ttl or 0.0

    def with_ttl(self, ttl: float) -> Model:
        """Copy the model with another TTL in seconds; 0: it is never unloaded for lack of requests."""
        return replace(self, scheduling=self.scheduling.model_copy(update={"ttl": ttl}))

    def with_capabilities(self, capabilities: Capabilities) -> Model:
        """Copy the model with the capabilities that it reported, less those that its engine's card excludes."""
        if self.is_external:
            return self
        return replace(self, capabilities=self.card.find_capabilities(self.repository or self.id, capabilities))


class ModelInventory:
    """Finds models in the settings, the store and the installed packages."""

    def __init__(self, settings: config.Settings):
        if settings.model_dir and not os.path.isdir(settings.model_dir):  # noqa: PTH112 -- Path's raises for what it cannot look at
            raise ConfigError(f"model_dir {settings.model_dir} is not a directory, or its folder cannot be read.")
        self._settings = settings
        self._last_configured: dict[str, Model] = {}
        self.store = ModelStore(settings.model_dir or find_hub_cache())
        self.default_engine = _parse_default_engine(settings)
        """The preferred engine for models that several engines can run; empty: the one with the best rank."""

    def __iter__(self) -> Iterator[Model]:
        """Yield all models: of the config, on disk, embedded, and of peers."""
        for id in self._settings.models:
            yield self._load_configured(id)
        for id, source in self.store:
            if engine := detect_engine(source, self.default_engine):
                yield self._build_model(id, registry.find_card(engine), source, "disk", repository=id if "/" in id else "")
        yield from self._find_embedded()
        for peer in list_peer_models(self._settings):
            yield replace(
                self._build_external(peer.id, peer.entry, peer.aliases),
                origin="peer",
                aliases=peer.aliases,
                key=peer.key,
            )

    def build_downloadable(self, match: ModelMatch) -> Model:
        """Build a model whose files are not on this machine."""
        return self._build_model(match.repository, match.card, None, "hub", repository=match.repository)

    def find_at_path(self, name: str) -> Model | None:
        """Return the model in a folder or file that is given instead of a name; None if it is a name.

        Raises:
            ConfigError: it can only be a path, and there is no model at it.
        """
        path, written_as_path = expand_home(name), is_written_as_path(name)
        if os.path.exists(path):
            source, id = resolve_folder(path.resolve())
            engine = detect_engine(source, self.default_engine) or (self.default_engine if written_as_path else "")
            if engine:
                return self._build_model(id, registry.find_card(engine), source, "config", repository=id if "/" in id else "")
            problem = f"No engine recognises {path} as a model. Set `default_engine`, or check the files ({describe_layouts()})."
            if not os.access(path, os.R_OK):
                problem = f"{path} cannot be read: give the user that runs Eardrum permission to."
        else:
            problem = f"There is no model at {path}: the path does not exist."
        if written_as_path:
            raise ConfigError(problem)
        return None

    def find_configured(self, name: str) -> Model | None:
        """The model in the config with this name or alias, or None."""
        ids = (id for id, entry in self._settings.models.items() if name == id or name in entry.aliases)
        return next((self._load_configured(id) for id in ids), None)

    def _load_configured(self, id: str) -> Model:
        """Build a model of the config. If its files are damaged since the last time, loading them reports it."""
        try:
            self._last_configured[id] = self._build_configured(id, self._settings.models[id])
        except ConfigError:
            if id not in self._last_configured:
                raise
        return self._last_configured[id]

    def _build_configured(self, id: str, entry: config.ModelSettings) -> Model:
        if entry.cmd or entry.proxy:
            return self._build_external(id, entry, entry.aliases)
        is_elsewhere = entry.replicas.addresses or entry.replicas.runs_on_ray
        locate = self._identify_replicated if is_elsewhere else self._locate_files
        engine, source, repository = locate(id, entry)
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

    def _build_external(self, id: str, entry: config.ModelSettings, aliases: tuple[str, ...]) -> Model:
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
            is_speech_model=looks_like_speech_model(id, aliases, entry),
            is_voice_model=looks_like_voice_model(id, aliases, entry),
        )

    def _locate_files(self, id: str, entry: config.ModelSettings) -> tuple[str, Path | None, str]:
        """Find engine, files and repository of a model of the config."""
        forced = registry.find_card(entry.engine).name if entry.engine else ""
        if forced and registry.find_card(forced).remote:
            return forced, None, ""
        name = entry.source or id
        embedded = next((model for model in self._find_embedded() if name in (model.id, *model.aliases)), None)
        if embedded and not entry.engine:
            return embedded.engine, embedded.source, ""
        if (stored := self.store.find_files(name)) and (engine := forced or detect_engine(stored, self.default_engine)):
            return engine, stored, name if names.is_hub_id(name) else ""
        path = expand_home(name)
        if os.path.exists(path) and (engine := forced or detect_engine(path, self.default_engine)):
            return engine, path, ""
        if path.is_absolute() or name.startswith("."):
            raise self._make_missing_error(path, id)
        try:
            match = names.choose_match(name, forced)
        except ModelNotFoundError as error:
            raise (
                self._make_missing_error(stored or path, id)
                if stored or os.path.exists(path)
                else ConfigError(f"models.{id}: {error.message} There is no directory {path.absolute()} either.")
            ) from None
        source = self.store.find_files(match.repository)
        return match.card.name, source if source and match.card.can_run(source) else None, match.repository

    def _identify_replicated(self, id: str, entry: config.ModelSettings) -> tuple[str, None, str]:
        """Find engine and repository of a model whose files are where its runners are."""
        name = entry.source or id
        if entry.engine:
            return registry.find_card(entry.engine).name, None, name if names.is_hub_id(name) else ""
        embedded = next((model for model in self._find_embedded() if name in (model.id, *model.aliases)), None)
        if embedded:
            return embedded.engine, None, ""
        try:
            match = names.choose_match(name, "")
        except ModelNotFoundError:
            raise ConfigError(f"models.{id}: no engine knows this name: set `engine:` to the engine of its runners.") from None
        return match.card.name, None, match.repository

    def _make_missing_error(self, path: Path, id: str) -> ConfigError:
        try:
            path.stat()
        except PermissionError:
            pass  # os.access says so, too
        except (OSError, ValueError):
            return ConfigError(f"models.{id}.source: {path} does not exist.")
        if not os.access(path, os.R_OK):
            return ConfigError(f"models.{id}: {path} cannot be read: give the user that runs the server permission to.")
        return ConfigError(f"models.{id}: no engine recognises {path}. Set `engine:`, or check the files ({describe_layouts()}).")

    def _find_embedded(self) -> Iterator[Model]:
        for module, folder, id, engine in EMBEDDED_FILES:
            card, spec = registry.list_cards().get(engine), find_spec(module)
            for location in (spec.submodule_search_locations or ()) if spec and card else ():
                source = Path(location) / folder
                if card and source.is_dir():
                    is_default = id == EMBEDDED_ID
                    options = {"sha256": EMBEDDED_SHA256} if is_default else {}
                    model = self._build_model(id, card, source, "embedded", options=options)
                    yield replace(model, aliases=EMBEDDED_ALIASES if is_default else ())

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
        capabilities = card.find_capabilities(repository or id)
        if source and (voices := card.find_voices(source)):
            capabilities = replace(capabilities, voices=voices, languages=list_languages(voices) or capabilities.languages)
        language = "language" in card.options and (chosen.get("language") or find_language_in_name(id))
        return Model(
            id=id,
            engine=card.name,
            source=source,
            origin=origin,
            repository=repository,
            capabilities=replace(capabilities, languages=(language,)) if language else capabilities,
            options=chosen,
            scheduling=self._settings.resolve_scheduling(),
            is_speech_model=not capabilities.speak,
            is_voice_model=capabilities.speak,
        )


def _is_name_of(name: str, engine: str, model: Model) -> bool:
    """Whether a name that engines declare stands for this model."""
    try:
        match = names.choose_match(name, engine) if name and names.find_matches(name) else None
    except ModelNotFoundError:
        return False
    return bool(match and match.repository == model.repository and match.card.name == model.engine)


def detect_engine(source: Path, preferred: str = "") -> str:
    """The engine that can run these files: the preferred one, else the best; empty if none can."""
    candidates = [card for card in registry.list_cards().values() if card.can_run(source)]
    best = min(candidates, key=lambda card: (card.name != preferred, bool(card.missing_packages), card.rank), default=None)
    return best.name if best else ""


def _parse_default_engine(settings: config.Settings) -> str:
    try:
        return registry.find_card(settings.default_engine).name if settings.default_engine else ""
    except ConfigError as error:
        raise ConfigError(f"default_engine (STT_DEFAULT_BACKEND, ASR_BACKEND): {error.message}") from None


def describe_layouts() -> str:
    """List the files that each engine needs, for messages."""
    return "; ".join(f"{card.name}: {', '.join(layout)}" for card in registry.list_cards().values() for layout in card.layouts)


class PeerModel(Struct, frozen=True):
    """A model of a peer, with an entry as the config would have it."""

    id: str
    """The peer's id, a slash, and the name it has there."""
    aliases: tuple[str, ...]
    """The name at the peer, unless several peers have it. A model of this server with that name takes precedence."""
    entry: config.ModelSettings
    key: str

    def __repr__(self) -> str:  # without the key
        return f"PeerModel({self.id!r})"


def list_peer_models(settings: config.Settings) -> Iterator[PeerModel]:
    """Yield the models of all peers, in the order of the config."""
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
"""Matches usual names of speech models and servers: `whisper-server`, `Qwen/Qwen3-ASR-1.7B`, `gpt-4o-transcribe`."""

TTS_NAMES = re.compile(r"(?<![a-z])tts(?![a-z])")
"""Matches names of text-to-speech models, with any other words in the name."""

VOICE_NAMES = re.compile(
    rf"{TTS_NAMES.pattern}|kokoro|(?<![a-z])(piper|xtts|orpheus|chatterbox|fish-?speech|cosyvoice|kittentts)(?![a-z])|openedai-speech"
)
"""Matches usual names of text-to-speech models and servers: `Kokoro-82M`, `openedai-speech`, `qwen3-tts`."""

WORD_BREAKS = re.compile(r"[\s\"';&|=,]+")
"""Separators of words in a command line, also in one for a shell."""


def looks_like_speech_model(id: str, aliases: Sequence[str], entry: config.ModelSettings) -> bool:
    """Whether an external model transcribes.

    The config decides if it declares `capabilities` (`in`, `out`), `capabilities` in `metadata` as Ollama names them, or the
    option `transcriptions`. Else the model's names and those in its command decide.
    """
    declared, listed = entry.capabilities, entry.metadata.get("capabilities")
    if declared.inputs or declared.outputs:
        return "audio" in declared.inputs and ("text" in declared.outputs or not declared.outputs)
    if isinstance(listed, list | tuple):
        return "audio" in listed
    if entry.options:  # all options are paths of audio routes
        return True
    names = [name.lower().replace("_", "-") for name in (id, *aliases, entry.use_model_name, *_split_command(entry.cmd))]
    return any(SPEECH_NAMES.search(name) and not TTS_NAMES.search(name) for name in names)


def looks_like_voice_model(id: str, aliases: Sequence[str], entry: config.ModelSettings) -> bool:
    """Whether an external model turns text into speech. The config decides if it declares `capabilities` or `voice_names`, else
    names."""
    declared = entry.capabilities
    if declared.inputs or declared.outputs:
        return "audio" in declared.outputs and "audio" not in declared.inputs
    if entry.voice_names:
        return True
    if "capabilities" in entry.metadata or entry.options:
        return False
    names = [name.lower().replace("_", "-") for name in (id, *aliases, entry.use_model_name, *_split_command(entry.cmd))]
    return any(VOICE_NAMES.search(name) for name in names)


def declares_chat(entry: config.ModelSettings) -> bool:
    """Whether the config declares the model as a chat model."""
    listed = entry.metadata.get("capabilities")
    return "text" in entry.capabilities.inputs or (isinstance(listed, list | tuple) and "completion" in listed)


def _split_command(line: str) -> Iterator[str]:
    """Yield the words of a command without their folders, which may have any name. Paths of routes stay whole."""
    for word in WORD_BREAKS.split(line):
        yield word if word.endswith("audio/transcriptions") else word.rpartition("/")[2]
