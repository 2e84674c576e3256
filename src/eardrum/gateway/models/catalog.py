"""Finds models by name, checks requests against models' capabilities, and compares the models of two configs.

A running server takes a new config without a restart: models that it does not change keep serving (`ConfigChanges`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from eardrum import config, transcription
from eardrum.config import Settings
from eardrum.engines import registry
from eardrum.errors import ConfigError, ModelNotFoundError, UnsupportedFeatureError
from eardrum.gateway.key_usage import is_model_visible
from eardrum.gateway.models import names
from eardrum.gateway.models.inventory import Model, ModelInventory
from eardrum.gateway.models.names import DEFAULT_ALIASES, VOICE_ALIASES
from eardrum.transcription import Capabilities, TranscriptionRequest

log = logging.getLogger(__name__)

RESCAN_PAUSE_FACTOR = 20
"""Pause after a scan of the disk, as a multiple of its duration, so that many requests do not cause many scans."""

DEFAULT_REASONS = {"config": "the first in the config", "disk": "the largest on disk", "peer": "the first of a peer"}
"""Origins of default models in the order of preference, with the reason that is shown. The embedded model comes last."""


class ModelCatalog:
    """All models by name."""

    def __init__(self, settings: config.Settings):
        self._settings = settings
        self.inventory = ModelInventory(settings)
        self._reported_capabilities: dict[str, Capabilities] = {}
        self._default: Model | None = None
        self.why_default = ""
        self._fingerprint: object = None
        self._next_scan_at = self._next_search_at = 0.0
        self.scan()
        for model in self:
            for name in model.fallback:
                if problem := self.find_fallback_problem(model.id, name):
                    log.warning("%s", problem)

    def scan(self) -> None:
        """Read the models again; the default model may change."""
        began = time.monotonic()
        self._fingerprint = self.inventory.store.compute_fingerprint()  # before reading: later changes cause another scan
        models = list(self.inventory)  # first, so that a failure leaves everything as it was
        self._models: dict[str, Model] = {}
        self._names: dict[str, str] = {}
        for model in models:
            self._add_model(
                model.with_capabilities(self._reported_capabilities[model.id])
                if model.id in self._reported_capabilities
                else model
            )
        self._ranking = sorted((model for model in self if _is_usable(model)), key=_get_sort_key)
        before, self._default = self._default, self._update_default()
        self._models.setdefault(self._default.id, self._default)
        self._names.setdefault(self._default.id, self._default.id)
        self._default_names = frozenset({"", *DEFAULT_ALIASES} - self._names.keys())
        # `eardrum list` shows this order: that of the lists, because the order of a set differs from process to process.
        self._names |= {name: self._default.id for name in DEFAULT_ALIASES if name in self._default_names}
        self._default_voice_id = self._choose_default_voice()
        self._default_voice_names = frozenset(VOICE_ALIASES) - self._names.keys() if self._default_voice_id else frozenset()
        self._names |= {name: self._default_voice_id for name in VOICE_ALIASES if name in self._default_voice_names}
        self._aliases: dict[str, list[str]] = {}
        for name, id in self._names.items():
            if name != id:
                self._aliases.setdefault(id, []).append(name)
        if before and before.id != self._default.id:
            log.info("The default model is now %s: %s.", self._default.id, self.why_default)
        self._next_search_at = _compute_next_scan(began)

    def rescan_if_changed(self) -> None:
        """Scan if the models on disk have changed. If they cannot be read, everything stays as it was."""
        began = time.monotonic()
        if began < self._next_scan_at:
            return
        if (fingerprint := self.inventory.store.compute_fingerprint()) != self._fingerprint:
            try:
                self.scan()
            except ConfigError as error:
                self._fingerprint = fingerprint
                log.warning("The models on disk have changed, but cannot be read: %s", error.message)
        self._next_scan_at = _compute_next_scan(began)

    @property
    def default(self) -> Model:
        """The model for requests that name none."""
        assert self._default
        return self._models[self._default.id]

    @property
    def default_voice(self) -> Model | None:
        """The model that speaks for requests that name none; None if no model speaks."""
        return self._models.get(self._default_voice_id)

    def is_default_voice_name(self, name: str) -> bool:
        """Whether a name is one of OpenAI's that stands for the default voice model."""
        return name in self._default_voice_names

    def find_live_model(self, name: str, request: TranscriptionRequest | None = None) -> Model:
        """Find a model for a live session.

        A command or an address takes whole recordings only. If one is the default without `default_model`, sessions that name
        no model get the best model of a runner.

        Raises:
            ModelNotFoundError: see `find_model`.
        """
        return self.find_model(name, request, live=True)

    @property
    def can_do_without_default(self) -> bool:
        """Whether another model becomes the default if this one is deleted."""
        return not self._settings.default_model and any(model.id != self.default.id for model in self._ranking)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def list_visible(self) -> list[Model]:
        """List the models that the key of the current request may use."""
        return [model for model in self if is_model_visible(model.id, model.aliases)]

    def is_visible(self, name: str) -> bool:
        """Whether the key of the current request may use the model of this name. A name that no model has counts itself."""
        model = self.find_named(name)
        return is_model_visible(model.id, model.aliases) if model else is_model_visible(name)

    def list_aliases(self, model: Model) -> list[str]:
        """All names of `model` except its id."""
        return self._aliases.get(model.id, [])

    def find_model(self, name: str, request: TranscriptionRequest | None = None, *, live: bool = False) -> Model:
        """Find the model that a client names. With `pull_missing`, its files may be missing (`Model.needs_download`).

        Without a name, the default model is used if it knows the request's language and supports the `live` session, else the
        best model that does.

        Raises:
            ModelNotFoundError: there is no such model; the message lists the models, or how to download it.
        """
        if name in self._default_names:
            self.rescan_if_changed()
            if name in self._default_names:
                return self._choose_unnamed(request or TranscriptionRequest(), live=live)
        if model := self._find_present(name):
            if model.needs_download:  # another program may have fetched it meanwhile
                self.rescan_if_changed()
                return self._find_present(name) or model
            return model
        if len(name) <= names.MAX_NAME_LENGTH:
            self._search_disk()
        return self._find_by_name(name)

    def _search_disk(self) -> None:
        """Scan for an unknown name: not every new model changes the fingerprint. Many unknown names cause few scans."""
        if time.monotonic() < self._next_search_at:
            self.rescan_if_changed()
        else:
            self.scan()

    def _choose_unnamed(self, request: TranscriptionRequest, *, live: bool) -> Model:
        """Choose the model for a request that names none."""
        default = self.default
        if live and not default.supports_live and not self._settings.default_model:  # a configured default is refused
            request = request if request.language else self._default_language_request
        elif transcription.has_feature(default.capabilities, transcription.ModelFeature.LANGUAGE, request):
            return default  # other missing features are refused later, with a message
        listed = [self._models[ranked.id] for ranked in self._ranking if not _is_unlisted(ranked)]
        suitable = [model for model in listed if model.supports_live or not live] or [default]
        in_language = [
            model
            for model in suitable
            if transcription.has_feature(model.capabilities, transcription.ModelFeature.LANGUAGE, request)
        ]
        in_language = in_language or [default if default in suitable else suitable[0]]
        complete = (model for model in in_language if not transcription.find_missing_feature(model.capabilities, request))
        return next(complete, in_language[0])

    def _find_by_name(self, name: str) -> Model:
        """Find a model by its name, without a scan of the disk."""
        if model := self._find_present(name):
            return model
        try:
            match = names.choose_match(name)
        except ModelNotFoundError as error:
            known = ", ".join([*(model.id for model in self.list_visible()), *DEFAULT_ALIASES])
            raise ModelNotFoundError(f"There is no model {names.quote_name(name)}. Models: {known}. {error.message}") from None
        model = self.inventory.build_downloadable(match)
        if self._settings.pull_missing:
            return model
        raise ModelNotFoundError(self.explain_download(model, name))

    def has_name(self, name: str) -> bool:
        """Whether a model has exactly this name or alias, without a scan of the disk."""
        return name in self._names

    def defines(self, name: str) -> bool:
        """Whether a model has exactly this id or alias. OpenAI's names, which stand for the default models, do not count."""
        return name in self._names and name not in self._default_names | self._default_voice_names

    def find_named(self, name: str) -> Model | None:
        """The model with this name or alias, or None, without a scan of the disk."""
        return self._find_present(name) if name else None

    def find_fallback_problem(self, id: str, name: str) -> str:
        """Explain why a fallback cannot be used, or not until it is downloaded; empty if it can.

        Raises:
            ConfigError: the name is unknown.
        """
        try:
            other = self.find_model(name)
        except ModelNotFoundError as error:
            problem = f"models.{id}.fallback: {error.message}"
            if not names.find_matches(name):
                raise ConfigError(problem) from None
            return problem
        if other.id == id:
            return f"models.{id}.fallback: {name} is the model itself, so it is ignored."
        model = self._models[id]
        if model.is_external and not model.is_speech_model and not other.is_external:
            return f"models.{id}.fallback: {name} is a speech model, but {id} is not, so it is ignored for text requests."
        return ""

    def explain_download(self, model: Model, requested_name: str = "") -> str:
        """Explain how to get a model that is not on this machine."""
        name = requested_name or model.id
        state = "is only partly downloaded" if self.inventory.store.is_unfinished(model.repository) else "is not on this machine"
        full = "" if name == model.repository else f" ({model.repository})"
        command = model.format_pull_command(requested_name)
        return f"The model {name}{full} {state}: run `{command}`, or set `pull_missing: true` in the config."

    def replace_with(self, other: ModelCatalog, unchanged: Set[str]) -> None:
        """Take over another catalog's settings and models. Unchanged models keep the capabilities that they reported."""
        reported = {id: capabilities for id, capabilities in self._reported_capabilities.items() if id in unchanged}
        vars(self).update(vars(other))
        for id, capabilities in reported.items():
            if model := self._models.get(id):
                self.update_capabilities(model, capabilities)

    def update_capabilities(self, model: Model, capabilities: Capabilities) -> None:
        """Replace the engine's declared capabilities by those that the loaded model reported."""
        if current := self._models.get(model.id):  # `model` may be older, or have the time to live of one request
            self._reported_capabilities[model.id] = capabilities
            self._models[model.id] = current.with_capabilities(capabilities)

    def find_current(self, model: Model) -> Model:
        """Return the model as it is to be started now: another config may be in force since a request found it.

        Raises:
            ModelNotFoundError: the config no longer has it, or its files are not on this machine any more.
        """
        current = self._models.get(model.id)
        if current is model or (not current and model.origin not in CONFIGURED_ORIGINS):
            return model
        if not current:
            raise ModelNotFoundError(f"{model.id} is no longer in the config.")
        if _collect_process_inputs(current) == _collect_process_inputs(model):
            return model  # perhaps with the time to live of its request
        if current.needs_download:
            raise ModelNotFoundError(self.explain_download(current))
        return current

    def check_request(self, model: Model, request: TranscriptionRequest) -> None:
        """Refuse a request for features that the model lacks.

        Raises:
            UnsupportedFeatureError: the message names the model's features, and models with the missing one.
        """
        transcription.check_hotwords(request)
        capabilities = self._models.get(model.id, model).capabilities  # a model to be downloaded is not in the catalog yet
        if feature := transcription.find_missing_feature(capabilities, request):
            self.rescan_if_changed()  # a new model may be worth suggesting
            suggestion = self._suggest_models(lambda other: transcription.has_feature(other, feature, request))
            lack = transcription.describe_missing_feature(capabilities, feature, request)
            raise UnsupportedFeatureError(f"{model.id} {lack}. {suggestion}", param=feature)

    def _suggest_models(self, has_feature: Callable[[Capabilities], bool]) -> str:
        names = [model.id for model in self.list_visible() if model.is_speech_model and has_feature(model.capabilities)]
        if names:
            return f"Models that can: {', '.join(names)}."
        engines = [card.name for card in registry.list_cards().values() if has_feature(card.capabilities)]
        if engines:
            return f"No model on this server can, but models of these engines can: {', '.join(engines)}."
        return "No model or engine of this server can."

    def _find_present(self, name: str) -> Model | None:
        """The model with this name, or with another name for the same weights."""
        if not name:
            return self.default
        if id := self._names.get(name):
            return self._models[id]
        repositories = (match.repository for match in names.find_matches(name))
        return next((self._models[self._names[r]] for r in repositories if r in self._names), None)

    def _add_model(self, model: Model) -> None:
        if owner := self._names.get(model.id):
            if model.origin == "config":
                raise ConfigError(f"The alias {model.id!r} of {owner} is also the name of a model.")
            if self._models[owner].source == model.source:  # the embedded model, named in the config
                self._names |= {alias: owner for alias in model.aliases if alias not in self._names}
            return  # the config takes precedence over the disk, the disk over the embedded model
        self._models[model.id] = model
        self._names[model.id] = model.id
        for alias in model.aliases:
            owner = self._names.setdefault(alias, model.id)
            if owner != model.id and model.origin == "config":
                raise ConfigError(f"The alias {alias!r} of {model.id} already belongs to {owner}.")

    def _update_default(self) -> Model:
        try:
            default, self.why_default = self._choose_default()
        except ConfigError:  # at start an error; later its files may have been deleted, which loading it reports
            if not self._default:
                raise
            return self._default
        return default

    def _choose_default(self) -> tuple[Model, str]:
        engine = self.inventory.default_engine
        if self._settings.default_model:
            model = self._find_configured_default(self._settings.default_model, engine)
            if not model.is_runnable:
                raise ConfigError(f"default_model {model.id}: {model.card.install_hint}")
            return model, "set by default_model"
        candidates = [model for model in self._ranking if engine in ("", model.engine)]
        if not candidates:
            wanted = f" of the engine {engine}" if engine else ""
            hint = f" {registry.find_card(engine).install_hint}" if engine and registry.find_card(engine).missing_packages else ""
            raise ConfigError(
                f"There is no model{wanted}: add one under `models:` in the config, put one into model_dir, "
                f"run `eardrum pull NAME`, or install the embedded model with `pip install moonshine-voice==0.1.0`.{hint}"
            )
        language = self._default_language_request
        for model in candidates:
            if model.origin in DEFAULT_REASONS and transcription.has_feature(
                model.capabilities, transcription.ModelFeature.LANGUAGE, language
            ):
                return model, DEFAULT_REASONS[model.origin]
        return candidates[-1], "the embedded model, as no other is installed"

    def _choose_default_voice(self) -> str:
        """Return the id of the model that speaks for requests that name none; empty if no model speaks.

        Raises:
            ConfigError: the configured one does not exist, or does not speak.
        """
        if name := self._settings.default_voice_model:
            model = self._models.get(self._names.get(name, ""))
            if not model or not (model.is_voice_model or model.is_external):
                raise ConfigError(f"default_voice_model is {name}, which is not a voice model.")
            return model.id
        speaking = [model for model in self if model.is_voice_model and model.is_runnable and not model.needs_download]
        return min(speaking, key=_get_sort_key).id if speaking else ""

    @property
    def _default_language_request(self) -> TranscriptionRequest:
        """A request in the default language."""
        return TranscriptionRequest(language=self._settings.default_language or "en")

    def _find_configured_default(self, name: str, engine: str) -> Model:
        try:
            model = None if self._find_present(name) else self._find_at_path(name)
            model = model or (self._find_for_engine(name, engine) if engine else self._find_by_name(name))
        except ModelNotFoundError as error:
            raise ConfigError(f"default_model (STT_DEFAULT_MODEL, WHISPER_MODEL): {error.message}") from None
        if engine not in ("", model.engine):
            raise ConfigError(
                f"default_model (STT_DEFAULT_MODEL, WHISPER_MODEL) is {name}, which {model.engine} runs, "
                f"but default_engine (STT_DEFAULT_BACKEND, ASR_BACKEND) is {engine}: change one of them."
            )
        return model

    def _find_at_path(self, path: str) -> Model | None:
        """The model in a folder, or None; it may be in the catalog already."""
        if not (model := self.inventory.find_at_path(path)):
            return None
        for other in self:
            if (
                other.source
                and model.source
                and other.engine == model.engine
                and other.source.resolve() == model.source.resolve()
            ):
                return other
        return replace(model, id=str(model.source)) if model.id in self._names else model

    def _find_for_engine(self, name: str, engine: str) -> Model:
        """Find a model of this engine by name: another engine may use the same name for other weights."""
        if id := self._names.get(name):
            return self._models[id]
        match = names.choose_match(name, engine)
        if id := self._names.get(match.repository):
            return self._models[id]
        model = self.inventory.build_downloadable(match)
        if self._settings.pull_missing:
            return model
        raise ModelNotFoundError(self.explain_download(model, name))


def _is_usable(model: Model) -> bool:
    """Whether it can transcribe now, without a download or an installation."""
    return model.is_speech_model and model.is_runnable and not model.needs_download


def _is_unlisted(model: Model) -> bool:
    return bool(model.entry and model.entry.unlisted)


def _get_sort_key(model: Model) -> tuple[int, bool, int]:
    """Sorts by origin, then models for speech alone before those that also chat, then those on disk by size, largest first."""
    origins = [*DEFAULT_REASONS, model.origin]
    return origins.index(model.origin), model.is_chat_model, -model.size if model.origin == "disk" else 0


def _compute_next_scan(began: float) -> float:
    """Return when the next scan may begin, after one that began at `began` and ends now."""
    ended = time.monotonic()
    return ended + RESCAN_PAUSE_FACTOR * (ended - began)


COMMAND_KEYS = ("cmd", "cmd_stop", "env", "proxy", "check_endpoint", "timeouts")
"""Keys of an external model whose change restarts it. All others can change while it runs."""

STARTUP_SETTINGS = (
    *("host", "port", "tls_certificate", "tls_key", "model_dir", "spool_dir", "timings_dir"),
    *("limits", "log", "log_to_stdout", "upstream", "origins", "wyoming", "metrics", "page", "jobs", "ray"),
)
"""Settings that are read only at the start of the server."""


CONFIGURED_ORIGINS = ("config", "peer")
"""Origins of models that another config may no longer have."""


class ConfigChanges(Struct, frozen=True):
    """The ids of models that differ between two configs."""

    added: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    """Models that the next request loads again."""
    removed: frozenset[str] = frozenset()
    deferred: tuple[str, ...] = ()
    """Changed settings that take effect at the next start of the server."""
    default: str = ""
    """The new default model; empty if it is the same."""

    def __str__(self) -> str:
        """Summary for the log and the client that reloaded the config."""
        parts = [f"{word}: {', '.join(sorted(models))}" for word, models in self._list_models() if models]
        if self.default:
            parts.append(f"default model: {self.default}")
        if self.deferred:
            parts.append(f"takes effect at the next start: {', '.join(self.deferred)}")
        return "; ".join(parts) or "no model has changed"

    def _list_models(self) -> tuple[tuple[str, frozenset[str]], ...]:
        return ("added", self.added), ("changed", self.changed), ("removed", self.removed)


def compare_models(old: Mapping[str, Model], new: Mapping[str, Model], deferred: tuple[str, ...] = ()) -> ConfigChanges:
    """Compare models. Removed are only those of a config or a peer: others do not disappear with the config."""
    both = old.keys() & new.keys()
    return ConfigChanges(
        added=frozenset(new.keys() - old.keys()),
        changed=frozenset(id for id in both if _collect_process_inputs(old[id]) != _collect_process_inputs(new[id])),
        removed=frozenset(id for id in old.keys() - new.keys() if old[id].origin in CONFIGURED_ORIGINS),
        deferred=deferred,
    )


def defer_startup_settings(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """Return the new settings with the old values of `STARTUP_SETTINGS`, and the names of those that differ.

    A list of Wyoming's clients takes effect at once: it can lock out a client. Without a list, a start could listen on another
    address, so the old list stays.
    """
    kept = {name: getattr(old, name) for name in STARTUP_SETTINGS}
    if clients := new.wyoming.clients:
        kept["wyoming"] = old.wyoming.model_copy(update={"clients": clients})
    return new.model_copy(update=kept), tuple(name for name, value in kept.items() if value != getattr(new, name))


def _collect_process_inputs(model: Model) -> dict[str, Any]:
    made: dict[str, Any] = {name: getattr(model, name) for name in ("engine", "source", "options", "batch_size", "python", "key")}
    made["is_replicated"] = model.is_replicated  # other addresses and numbers are used without a restart
    if model.entry and model.runs_on_ray:
        made["ray"] = model.entry.replicas.model_dump(include={"resources", "labels", "python", "token"})
    return made | {name: getattr(model.entry, name) for name in COMMAND_KEYS if model.entry and model.is_external}
