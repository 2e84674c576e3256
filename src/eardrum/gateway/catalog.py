"""Names to models, and what each can do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import replace

from eardrum import abilities, config
from eardrum.engines import registry
from eardrum.errors import ConfigError, ModelNotFoundError, UnsupportedFeatureError
from eardrum.gateway import names
from eardrum.gateway.inventory import Inventory, Model
from eardrum.gateway.names import DEFAULT_ALIASES
from eardrum.types import Capabilities, Request

log = logging.getLogger(__name__)

LOOK_SHARE = 20
"""A look at the disk is followed by so many times as long without one, so that many requests do not make many of them."""

REASONS = {"config": "the first of the config", "disk": "the largest on disk", "peer": "the first of a peer"}
"""Whose models come first where nobody has named one, and what is then said of the default. The embedded one is the last."""


class Catalog:
    """All models by name."""

    def __init__(self, settings: config.Settings):
        self._settings = settings
        self.inventory = Inventory(settings)
        self._refined: dict[str, Capabilities] = {}
        self._default: Model | None = None
        self.why_default = ""
        self._seen: object = None
        self._look_at = self._scan_at = 0.0
        self.scan()
        for model in self:
            for name in model.fallback:
                if doubt := self.doubt_of_fallback(model.id, name):
                    log.warning("%s", doubt)

    def scan(self) -> None:
        """Look again at what is there; the default model may become another one."""
        began = time.monotonic()
        self._seen = self.inventory.store.fingerprint()  # before anything is read: what comes meanwhile is seen next time
        found = list(self.inventory)  # first, so that a failure leaves everything as it was
        self._models: dict[str, Model] = {}
        self._names: dict[str, str] = {}
        for model in found:
            self._add(model.refined(self._refined[model.id]) if model.id in self._refined else model)
        self._ranking = sorted((model for model in self if _usable(model)), key=_rank)
        before, self._default = self._default, self._new_default()
        self._models.setdefault(self._default.id, self._default)
        self._names.setdefault(self._default.id, self._default.id)
        self._naming_none = frozenset({"", *DEFAULT_ALIASES} - self._names.keys())
        self._names |= dict.fromkeys(self._naming_none - {""}, self._default.id)
        self._aliases: dict[str, list[str]] = {}
        for name, id in self._names.items():
            if name != id:
                self._aliases.setdefault(id, []).append(name)
        if before and before.id != self._default.id:
            log.info("The default model is now %s: %s.", self._default.id, self.why_default)
        self._scan_at = _rested(began)

    def look(self) -> None:
        """Scan, if something has come to the disk or gone since. What cannot be read now leaves everything as it was."""
        began = time.monotonic()
        if began < self._look_at:
            return
        if (seen := self.inventory.store.fingerprint()) != self._seen:
            try:
                self.scan()
            except ConfigError as error:
                self._seen = seen
                log.warning("The models on disk have changed and cannot be read again: %s", error.message)
        self._look_at = _rested(began)

    @property
    def default(self) -> Model:
        """The model behind requests that name none."""
        assert self._default
        return self._models[self._default.id]

    def for_live(self, name: str, request: Request | None = None) -> Model:
        """As `find`, for a live session. A server behind a command or an address takes whole recordings only: where such a one
        has become the default by itself, whoever names none gets the best one of ours.

        Raises:
            ModelNotFoundError: as `find`.
        """
        return self.find(name, request, live=True)

    @property
    def can_do_without_default(self) -> bool:
        """Whether another model becomes the default one when this one goes."""
        return not self._settings.default_model and any(model.id != self.default.id for model in self._ranking)

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def aliases(self, model: Model) -> list[str]:
        """All names that mean `model`, its id excepted."""
        return self._aliases.get(model.id, [])

    def find(self, name: str, request: Request | None = None, *, live: bool = False) -> Model:
        """The model that a client names. Its files may have to be fetched first (`Model.absent`), if the config allows that.

        A client that names none gets the default model, or, if that does not know the language of the request or cannot have
        the `live` session it is for, the best that can.

        Raises:
            ModelNotFoundError: none; the message lists those there are, or says how to fetch it.
        """
        if name in self._naming_none:
            self.look()
            if name in self._naming_none:
                return self._unnamed(request or Request(), live=live)
        if model := self._present(name):
            return model
        if len(name) <= names.LONGEST:
            self._search()
        return self._found(name)

    def _search(self) -> None:
        """Scan for a name that nobody knows: it may have come in a way that `look` does not see. Who asks for many of them
        takes a small share of the time with it."""
        if time.monotonic() < self._scan_at:
            self.look()
        else:
            self.scan()

    def _unnamed(self, request: Request, *, live: bool) -> Model:
        """The model for a request that names none."""
        default = self.default
        if (
            live and default.foreign and not self._settings.default_model
        ):  # else somebody wants it so, and is told why it cannot be
            request = request if request.language else self._usual_language
        elif abilities.has(default.capabilities, abilities.Ability.LANGUAGE, request):
            return default  # what it lacks beside the language is for its refusal to say
        models = [self._models[ranked.id] for ranked in self._ranking if not _hidden(ranked)]
        able = [model for model in models if not (live and model.foreign)] or [default]
        knowing = [model for model in able if abilities.has(model.capabilities, abilities.Ability.LANGUAGE, request)]
        knowing = knowing or [default if default in able else able[0]]
        return next((model for model in knowing if not abilities.lacking(model.capabilities, request)), knowing[0])

    def _found(self, name: str) -> Model:
        """As `find`, but for names only, and without a look at the disk."""
        if model := self._present(name):
            return model
        try:
            match = names.choose(name)
        except ModelNotFoundError as error:
            known = ", ".join([*self._models, *DEFAULT_ALIASES])
            raise ModelNotFoundError(f"There is no model {names.shown(name)}. Models: {known}. {error.message}") from None
        model = self.inventory.fetchable(match)
        if self._settings.pull_missing:
            return model
        raise ModelNotFoundError(self.how_to_fetch(model, name))

    def has(self, name: str) -> bool:
        """Whether a model has exactly this name or alias, without a look at what may have come since."""
        return name in self._names

    def named(self, name: str) -> Model | None:
        """The model of this name or alias if there is one, without a look at what may have come since."""
        return self._present(name) if name else None

    def doubt_of_fallback(self, id: str, name: str) -> str:
        """Why a model's fallback is no help, or none yet: one that is not here is passed over until it is. Empty if it is one.

        Raises:
            ConfigError: nobody knows it.
        """
        try:
            other = self.find(name)
        except ModelNotFoundError as error:
            doubt = f"models.{id}.fallback: {error.message}"
            if not names.matches(name):
                raise ConfigError(doubt) from None
            return doubt
        if other.id == id:
            return f"models.{id}.fallback: {name} is the model itself and no help."
        model = self._models[id]
        if model.foreign and not model.hears and not other.foreign:
            return f"models.{id}.fallback: {name} is a speech model and no help where {id} is asked for text."
        return ""

    def how_to_fetch(self, model: Model, called: str = "") -> str:
        """What to do about a model that is not on this machine, and that was called so."""
        name = called or model.id
        state = "is only half fetched" if self.inventory.store.unfinished(model.repository) else "is not on this machine"
        full = "" if name == model.repository else f" ({model.repository})"
        return f"The model {name}{full} {state}: run `{model.pull_command(called)}`, or set `pull_missing: true` in the config."

    def adopt(self, other: Catalog, unchanged: Set[str]) -> None:
        """Become what another catalog is. What loaded models have said of themselves stays true of those that did not change."""
        self._settings, self.inventory = other._settings, other.inventory
        self._default, self.why_default = other._default, other.why_default
        self._refined = {id: capabilities for id, capabilities in self._refined.items() if id in unchanged}
        self.scan()

    def refine(self, model: Model, capabilities: Capabilities) -> None:
        """Replace what the engine's card promised by what the loaded model said of itself."""
        self._refined[model.id] = capabilities
        self._models[model.id] = model.refined(capabilities)

    def check(self, model: Model, request: Request) -> None:
        """Refuse what the model cannot do.

        Raises:
            UnsupportedFeatureError: the message names what the model can do and which models can do more.
        """
        abilities.check_hints(request)
        can = self._models.get(model.id, model).capabilities  # one that is fetched on demand is not in the catalog yet
        if ability := abilities.lacking(can, request):
            self.look()  # at what could be named as able
            others = self._others(lambda c: abilities.has(c, ability, request))
            lack = abilities.in_words(can, ability, request)
            raise UnsupportedFeatureError(f"{model.id} {lack}. {others}", param=ability)

    def _others(self, able: Callable[[Capabilities], bool]) -> str:
        names = [model.id for model in self if model.hears and able(model.capabilities)]
        if names:
            return f"Models that can: {', '.join(names)}."
        engines = [card.name for card in registry.cards().values() if able(card.capabilities)]
        if engines:
            return f"No model here can; one of the engine {' or '.join(engines)} could."
        return "No model or engine of this server can."

    def _present(self, name: str) -> Model | None:
        """The model of this name, or of another name for the same weights."""
        if not name:
            return self.default
        if id := self._names.get(name):
            return self._models[id]
        repositories = (match.repository for match in names.matches(name))
        return next((self._models[self._names[r]] for r in repositories if r in self._names), None)

    def _add(self, model: Model) -> None:
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

    def _new_default(self) -> Model:
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
            model = self._named_default(self._settings.default_model, engine)
            if not model.runnable:
                raise ConfigError(f"default_model {model.id}: {model.card.how_to_install}")
            return model, "set by default_model"
        fitting = [model for model in self._ranking if engine in ("", model.engine)]
        if not fitting:
            wanted = f" of the engine {engine}" if engine else ""
            hint = f" {registry.card(engine).how_to_install}" if engine and registry.card(engine).missing else ""
            raise ConfigError(
                f"There is no model{wanted}: name one under `models:` in the config, put one into model_dir, "
                f"run `eardrum pull NAME`, or install the embedded one with `pip install moonshine-voice==0.1.0`.{hint}"
            )
        language = self._usual_language
        for model in fitting:
            if model.origin in REASONS and abilities.has(model.capabilities, abilities.Ability.LANGUAGE, language):
                return model, REASONS[model.origin]
        return fitting[-1], "embedded: nothing better is on disk"

    @property
    def _usual_language(self) -> Request:
        """A request in the language of those who name none."""
        return Request(language=self._settings.default_language or "en")

    def _named_default(self, name: str, engine: str) -> Model:
        try:
            model = None if self._present(name) else self._at(name)
            model = model or (self._of_engine(name, engine) if engine else self._found(name))
        except ModelNotFoundError as error:
            raise ConfigError(f"default_model (STT_DEFAULT_MODEL, WHISPER_MODEL): {error.message}") from None
        if engine not in ("", model.engine):
            raise ConfigError(
                f"default_model (STT_DEFAULT_MODEL, WHISPER_MODEL) is {name}, which {model.engine} runs, "
                f"but default_engine (STT_DEFAULT_BACKEND, ASR_BACKEND) is {engine}: change one of them."
            )
        return model

    def _at(self, path: str) -> Model | None:
        """The model in a folder, if it is one; it may be in the catalog already."""
        if not (model := self.inventory.at(path)):
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

    def _of_engine(self, name: str, engine: str) -> Model:
        """What the name means to this engine: another engine may know the same name for other weights."""
        if id := self._names.get(name):
            return self._models[id]
        match = names.choose(name, engine)
        if id := self._names.get(match.repository):
            return self._models[id]
        model = self.inventory.fetchable(match)
        if self._settings.pull_missing:
            return model
        raise ModelNotFoundError(self.how_to_fetch(model, name))


def _usable(model: Model) -> bool:
    """Whether speech can be given to it now."""
    return model.hears and model.runnable and not model.absent


def _hidden(model: Model) -> bool:
    return bool(model.entry and model.entry.unlisted)


def _rank(model: Model) -> tuple[int, bool, int]:
    """Sorts by where models come from, those for speech alone before those that also chat, the largest on disk first."""
    origins = [*REASONS, model.origin]
    return origins.index(model.origin), model.chats, -model.size if model.origin == "disk" else 0


def _rested(began: float) -> float:
    """When what began then, and ends now, may be done again."""
    ended = time.monotonic()
    return ended + LOOK_SHARE * (ended - began)
