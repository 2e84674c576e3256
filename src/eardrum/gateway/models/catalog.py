"""Finds models by name, checks requests against what models can do, and compares the models of two configs.

Another config reaches a running server without a restart: models that it does not change keep serving (`ConfigChanges`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from eardrum import config, transcription
from eardrum.config import Settings
from eardrum.engines import registry
from eardrum.errors import ConfigError, ModelNotFoundError, UnsupportedFeatureError
from eardrum.gateway.models import names
from eardrum.gateway.models.inventory import Model, ModelInventory
from eardrum.gateway.models.names import DEFAULT_ALIASES
from eardrum.transcription import Capabilities, TranscriptionRequest

log = logging.getLogger(__name__)

RESCAN_PAUSE_FACTOR = 20
"""A look at the disk is followed by so many times as long without one, so that many requests do not make many of them."""

DEFAULT_REASONS = {"config": "the first of the config", "disk": "the largest on disk", "peer": "the first of a peer"}
"""Whose models come first where nobody has named one, and what is then said of the default. The embedded one is the last."""


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
                if doubt := self.find_fallback_problem(model.id, name):
                    log.warning("%s", doubt)

    def scan(self) -> None:
        """Look again at what is there; the default model may become another one."""
        began = time.monotonic()
        self._fingerprint = (
            self.inventory.store.compute_fingerprint()
        )  # before anything is read: what comes meanwhile is seen next time
        found = list(self.inventory)  # first, so that a failure leaves everything as it was
        self._models: dict[str, Model] = {}
        self._names: dict[str, str] = {}
        for model in found:
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
        self._names |= dict.fromkeys(self._default_names - {""}, self._default.id)
        self._aliases: dict[str, list[str]] = {}
        for name, id in self._names.items():
            if name != id:
                self._aliases.setdefault(id, []).append(name)
        if before and before.id != self._default.id:
            log.info("The default model is now %s: %s.", self._default.id, self.why_default)
        self._next_search_at = _compute_next_scan(began)

    def rescan_if_changed(self) -> None:
        """Scan, if something has come to the disk or gone since. What cannot be read now leaves everything as it was."""
        began = time.monotonic()
        if began < self._next_scan_at:
            return
        if (seen := self.inventory.store.compute_fingerprint()) != self._fingerprint:
            try:
                self.scan()
            except ConfigError as error:
                self._fingerprint = seen
                log.warning("The models on disk have changed and cannot be read again: %s", error.message)
        self._next_scan_at = _compute_next_scan(began)

    @property
    def default(self) -> Model:
        """The model behind requests that name none."""
        assert self._default
        return self._models[self._default.id]

    def find_live_model(self, name: str, request: TranscriptionRequest | None = None) -> Model:
        """As `find`, for a live session. A server behind a command or an address takes whole recordings only: where such a one
        has become the default by itself, whoever names none gets the best one of ours.

        Raises:
            ModelNotFoundError: as `find`.
        """
        return self.find_model(name, request, live=True)

    @property
    def can_do_without_default(self) -> bool:
        """Whether another model becomes the default one when this one goes."""
        return not self._settings.default_model and any(model.id != self.default.id for model in self._ranking)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def list_aliases(self, model: Model) -> list[str]:
        """All names that mean `model`, its id excepted."""
        return self._aliases.get(model.id, [])

    def find_model(self, name: str, request: TranscriptionRequest | None = None, *, live: bool = False) -> Model:
        """The model that a client names. Its files may have to be fetched first (`Model.absent`), if the config allows that.

        A client that names none gets the default model, or, if that does not know the language of the request or cannot have
        the `live` session it is for, the best that can.

        Raises:
            ModelNotFoundError: none; the message lists those there are, or says how to fetch it.
        """
        if name in self._default_names:
            self.rescan_if_changed()
            if name in self._default_names:
                return self._choose_unnamed(request or TranscriptionRequest(), live=live)
        if model := self._find_present(name):
            return model
        if len(name) <= names.MAX_NAME_LENGTH:
            self._search_disk()
        return self._find_by_name(name)

    def _search_disk(self) -> None:
        """Scan for a name that nobody knows: it may have come in a way that `look` does not see. Who asks for many of them
        takes a small share of the time with it."""
        if time.monotonic() < self._next_search_at:
            self.rescan_if_changed()
        else:
            self.scan()

    def _choose_unnamed(self, request: TranscriptionRequest, *, live: bool) -> Model:
        """The model for a request that names none."""
        default = self.default
        if (
            live and not default.supports_live and not self._settings.default_model
        ):  # else somebody wants it so, and is told why it cannot be
            request = request if request.language else self._default_language_request
        elif transcription.has_feature(default.capabilities, transcription.ModelFeature.LANGUAGE, request):
            return default  # what it lacks beside the language is for its refusal to say
        models = [self._models[ranked.id] for ranked in self._ranking if not _is_unlisted(ranked)]
        able = [model for model in models if model.supports_live or not live] or [default]
        knowing = [
            model for model in able if transcription.has_feature(model.capabilities, transcription.ModelFeature.LANGUAGE, request)
        ]
        knowing = knowing or [default if default in able else able[0]]
        return next(
            (model for model in knowing if not transcription.find_missing_feature(model.capabilities, request)), knowing[0]
        )

    def _find_by_name(self, name: str) -> Model:
        """As `find`, but for names only, and without a look at the disk."""
        if model := self._find_present(name):
            return model
        try:
            match = names.choose_match(name)
        except ModelNotFoundError as error:
            known = ", ".join([*self._models, *DEFAULT_ALIASES])
            raise ModelNotFoundError(f"There is no model {names.quote_name(name)}. Models: {known}. {error.message}") from None
        model = self.inventory.build_downloadable(match)
        if self._settings.pull_missing:
            return model
        raise ModelNotFoundError(self.explain_download(model, name))

    def has_name(self, name: str) -> bool:
        """Whether a model has exactly this name or alias, without a look at what may have come since."""
        return name in self._names

    def find_named(self, name: str) -> Model | None:
        """The model of this name or alias if there is one, without a look at what may have come since."""
        return self._find_present(name) if name else None

    def find_fallback_problem(self, id: str, name: str) -> str:
        """Why a model's fallback is no help, or none yet: one that is not here is passed over until it is. Empty if it is one.

        Raises:
            ConfigError: nobody knows it.
        """
        try:
            other = self.find_model(name)
        except ModelNotFoundError as error:
            doubt = f"models.{id}.fallback: {error.message}"
            if not names.find_matches(name):
                raise ConfigError(doubt) from None
            return doubt
        if other.id == id:
            return f"models.{id}.fallback: {name} is the model itself and no help."
        model = self._models[id]
        if model.is_external and not model.is_speech_model and not other.is_external:
            return f"models.{id}.fallback: {name} is a speech model and no help where {id} is asked for text."
        return ""

    def explain_download(self, model: Model, called: str = "") -> str:
        """What to do about a model that is not on this machine, and that was called so."""
        name = called or model.id
        state = "is only half fetched" if self.inventory.store.is_unfinished(model.repository) else "is not on this machine"
        full = "" if name == model.repository else f" ({model.repository})"
        command = model.format_pull_command(called)
        return f"The model {name}{full} {state}: run `{command}`, or set `pull_missing: true` in the config."

    def replace_with(self, other: ModelCatalog, unchanged: Set[str]) -> None:
        """Become what another catalog is. What loaded models have said of themselves stays true of those that did not change."""
        self._settings, self.inventory = other._settings, other.inventory
        self._default, self.why_default = other._default, other.why_default
        self._reported_capabilities = {
            id: capabilities for id, capabilities in self._reported_capabilities.items() if id in unchanged
        }
        self.scan()

    def update_capabilities(self, model: Model, capabilities: Capabilities) -> None:
        """Replace what the engine's card promised by what the loaded model said of itself."""
        self._reported_capabilities[model.id] = capabilities
        self._models[model.id] = model.with_capabilities(capabilities)

    def check_request(self, model: Model, request: TranscriptionRequest) -> None:
        """Refuse what the model cannot do.

        Raises:
            UnsupportedFeatureError: the message names what the model can do and which models can do more.
        """
        transcription.check_hotwords(request)
        can = self._models.get(model.id, model).capabilities  # one that is fetched on demand is not in the catalog yet
        if ability := transcription.find_missing_feature(can, request):
            self.rescan_if_changed()  # at what could be named as able
            others = self._suggest_models(lambda c: transcription.has_feature(c, ability, request))
            lack = transcription.describe_missing_feature(can, ability, request)
            raise UnsupportedFeatureError(f"{model.id} {lack}. {others}", param=ability)

    def _suggest_models(self, able: Callable[[Capabilities], bool]) -> str:
        names = [model.id for model in self if model.is_speech_model and able(model.capabilities)]
        if names:
            return f"Models that can: {', '.join(names)}."
        engines = [card.name for card in registry.list_cards().values() if able(card.capabilities)]
        if engines:
            return f"No model here can; one of the engine {' or '.join(engines)} could."
        return "No model or engine of this server can."

    def _find_present(self, name: str) -> Model | None:
        """The model of this name, or of another name for the same weights."""
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
            if self._models[owner].source == model.source:  # the embedded one, which the config names
                self._names |= {alias: owner for alias in model.aliases if alias not in self._names}
            return  # the config wins over the disk, the disk over the embedded one
        self._models[model.id] = model
        self._names[model.id] = model.id
        for alias in model.aliases:
            owner = self._names.setdefault(alias, model.id)
            if owner != model.id and model.origin == "config":
                raise ConfigError(f"The alias {alias!r} of {model.id} already belongs to {owner}.")

    def _update_default(self) -> Model:
        try:
            default, self.why_default = self._choose_default()
        except ConfigError:  # what was right at the start may be gone from the disk later: then loading it says so
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
        fitting = [model for model in self._ranking if engine in ("", model.engine)]
        if not fitting:
            wanted = f" of the engine {engine}" if engine else ""
            hint = f" {registry.find_card(engine).install_hint}" if engine and registry.find_card(engine).missing_packages else ""
            raise ConfigError(
                f"There is no model{wanted}: name one under `models:` in the config, put one into model_dir, "
                f"run `eardrum pull NAME`, or install the embedded one with `pip install moonshine-voice==0.1.0`.{hint}"
            )
        language = self._default_language_request
        for model in fitting:
            if model.origin in DEFAULT_REASONS and transcription.has_feature(
                model.capabilities, transcription.ModelFeature.LANGUAGE, language
            ):
                return model, DEFAULT_REASONS[model.origin]
        return fitting[-1], "embedded: nothing better is on disk"

    @property
    def _default_language_request(self) -> TranscriptionRequest:
        """A request in the language of those who name none."""
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
        """The model in a folder, if it is one; it may be in the catalog already."""
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
        """What the name means to this engine: another engine may know the same name for other weights."""
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
    """Whether speech can be given to it now."""
    return model.is_speech_model and model.is_runnable and not model.needs_download


def _is_unlisted(model: Model) -> bool:
    return bool(model.entry and model.entry.unlisted)


def _get_sort_key(model: Model) -> tuple[int, bool, int]:
    """Sorts by where models come from, those for speech alone before those that also chat, the largest on disk first."""
    origins = [*DEFAULT_REASONS, model.origin]
    return origins.index(model.origin), model.is_chat_model, -model.size if model.origin == "disk" else 0


def _compute_next_scan(began: float) -> float:
    """When what began then, and ends now, may be done again."""
    ended = time.monotonic()
    return ended + RESCAN_PAUSE_FACTOR * (ended - began)


COMMAND_KEYS = ("cmd", "cmd_stop", "env", "proxy", "check_endpoint", "timeouts")
"""What of a model's entry its process, or the way to it, is made of. Everything else can change while it runs."""

STARTUP_SETTINGS = (
    *("host", "port", "tls_certificate", "tls_key", "model_dir", "spool_dir", "cache_dir"),
    *("limits", "log", "upstream", "origins", "wyoming"),
)
"""Settings that are read once, when the server is started."""


@dataclass(frozen=True, slots=True)
class ConfigChanges:
    """Models by their ids. The unchanged ones are not told."""

    added: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    """Loaded anew by their next request."""
    removed: frozenset[str] = frozenset()
    deferred: tuple[str, ...] = ()
    """Settings that are other ones too, but count from the next start of the server on."""
    default: str = ""
    """The default model, if it is another one."""

    def __str__(self) -> str:
        """In words, for the log and for whoever asked."""
        parts = [f"{word}: {', '.join(sorted(models))}" for word, models in self._list_models() if models]
        if self.default:
            parts.append(f"the default model: {self.default}")
        if self.deferred:
            parts.append(f"from the next start on: {', '.join(self.deferred)}")
        return "; ".join(parts) or "no model is another one"

    def _list_models(self) -> tuple[tuple[str, frozenset[str]], ...]:
        return ("added", self.added), ("changed", self.changed), ("removed", self.removed)


def compare_models(old: Mapping[str, Model], new: Mapping[str, Model], later: tuple[str, ...] = ()) -> ConfigChanges:
    """How `new` models differ from `old` ones. What was not named by a config does not go with it."""
    both = old.keys() & new.keys()
    return ConfigChanges(
        added=frozenset(new.keys() - old.keys()),
        changed=frozenset(id for id in both if _collect_process_inputs(old[id]) != _collect_process_inputs(new[id])),
        removed=frozenset(id for id in old.keys() - new.keys() if old[id].origin in ("config", "peer")),
        deferred=later,
    )


def defer_startup_settings(old: Settings, new: Settings) -> tuple[Settings, tuple[str, ...]]:
    """The new settings, less those that are read at the start only; the names of those that differ."""
    later = tuple(name for name in STARTUP_SETTINGS if getattr(old, name) != getattr(new, name))
    return new.model_copy(update={name: getattr(old, name) for name in later}), later


def _collect_process_inputs(model: Model) -> dict[str, Any]:
    made: dict[str, Any] = {name: getattr(model, name) for name in ("engine", "source", "options", "batch_size", "python", "key")}
    return made | {name: getattr(model.entry, name) for name in COMMAND_KEYS if model.entry and model.is_external}
