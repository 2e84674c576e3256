"""Names to models, and what each can do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Set

from eardrum import abilities, config
from eardrum.engines import registry
from eardrum.errors import ConfigError, ModelNotFoundError, UnsupportedFeatureError
from eardrum.gateway import names
from eardrum.gateway.inventory import Inventory, Model
from eardrum.types import Capabilities, Request

log = logging.getLogger(__name__)

DEFAULT_ALIASES = (
    *("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe"),
    *("gpt-live-transcribe", "gpt-realtime-whisper"),
)
"""Names that clients cannot help sending; they mean the default model unless the config says otherwise."""


class Catalog:
    """All models by name."""

    def __init__(self, settings: config.Settings):
        self._settings = settings
        self.inventory = Inventory(settings)
        self._refined: dict[str, Capabilities] = {}
        self._default: Model | None = None
        self.scan()
        self._default, self.why_default = self._choose_default()
        self._live_default = self._choose_live_default(self._default)
        self.scan()
        for model in self:
            for name in model.fallback:
                self._check_fallback(model, name)

    def scan(self) -> None:
        """Look again at what is there."""
        found = list(self.inventory)  # first, so that a failure leaves everything as it was
        self._models: dict[str, Model] = {}
        self._names: dict[str, str] = {}
        for model in found:
            self._add(model.refined(self._refined[model.id]) if model.id in self._refined else model)
        if self._default:
            self._models.setdefault(self._default.id, self._default)
            for name in (self._default.id, *DEFAULT_ALIASES):
                self._names.setdefault(name, self._default.id)

    @property
    def default(self) -> Model:
        """The model behind requests that name none."""
        assert self._default
        return self._models[self._default.id]

    def for_live(self, name: str) -> Model:
        """As `find`, for a live session. A server behind a command or an address takes whole recordings only: where such a one
        has become the default by itself, whoever names none gets the best one of ours.

        Raises:
            ModelNotFoundError: as `find`.
        """
        found = self.find(name)
        nameless = name in ("", *DEFAULT_ALIASES) and name not in (found.id, *found.aliases)
        return self._models[self._live_default.id] if nameless and found.id == self.default.id else found

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models.values())

    def aliases(self, model: Model) -> list[str]:
        """All names that mean `model`, its id excepted."""
        return [name for name, id in self._names.items() if id == model.id and name != id]

    def find(self, name: str) -> Model:
        """The model that a client names. Its files may have to be fetched first (`Model.absent`), if the config allows that.

        Raises:
            ModelNotFoundError: none; the message lists those there are, or says how to fetch it.
        """
        if model := self._present(name):
            return model
        self.scan()
        if model := self._present(name):
            return model
        try:
            match = names.choose(name)
        except ModelNotFoundError as error:
            known = ", ".join([*self._models, *DEFAULT_ALIASES])
            raise ModelNotFoundError(f"There is no model {names.shown(name)}. Models: {known}. {error.message}") from None
        if self._settings.pull_missing:
            return self.inventory.fetchable(match)
        raise ModelNotFoundError(self.how_to_fetch(name, match.repository))

    def named(self, name: str) -> Model | None:
        """The model of this name or alias if there is one, without a look at what may have come since."""
        return self._present(name) if name else None

    def how_to_fetch(self, name: str, repository: str, engine: str = "") -> str:
        """What to do about a model that is not on this machine."""
        state = "is only half fetched" if self.inventory.store.unfinished(repository) else "is not on this machine"
        full = "" if name == repository else f" ({repository})"
        option = f" --engine {engine}" if engine else ""
        return f"The model {name}{full} {state}: run `eardrum pull {name}{option}`, or set `pull_missing: true` in the config."

    def adopt(self, other: Catalog, unchanged: Set[str]) -> None:
        """Become what another catalog is. What loaded models have said of themselves stays true of those that did not change."""
        self._settings, self.inventory = other._settings, other.inventory
        self._default, self.why_default, self._live_default = other._default, other.why_default, other._live_default
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
        can = self._models.get(model.id, model).capabilities  # one that is fetched on demand is not in the catalog yet
        if ability := abilities.lacking(can, request):
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

    def _check_fallback(self, model: Model, name: str) -> None:
        """A fallback that is not here yet is passed over until it is; one that nobody knows is a mistake."""
        try:
            if self.find(name).id == model.id:
                log.warning("models.%s.fallback: %s is the model itself and no help.", model.id, name)
        except ModelNotFoundError as error:
            if not names.matches(name):
                raise ConfigError(f"models.{model.id}.fallback: {error.message}") from None
            log.warning("models.%s.fallback: %s", model.id, error.message)

    def _choose_default(self) -> tuple[Model, str]:
        engine = self.inventory.default_engine
        if self._settings.default_model:
            model = self._named_default(self._settings.default_model, engine)
            if not model.runnable:
                raise ConfigError(f"default_model {model.id}: {model.card.how_to_install}")
            return model, "set by default_model"
        fitting = [m for m in self if engine in ("", m.engine) and m.hears and m.runnable and not m.absent]
        if not fitting:
            wanted = f" of the engine {engine}" if engine else ""
            hint = f" {registry.card(engine).how_to_install}" if engine and registry.card(engine).missing else ""
            raise ConfigError(
                f"There is no model{wanted}: name one under `models:` in the config, put one into model_dir, "
                f"run `eardrum pull NAME`, or install the embedded one with `pip install moonshine-voice==0.1.0`.{hint}"
            )
        return _best(fitting)

    def _choose_live_default(self, default: Model) -> Model:
        """The default model, or the best one of ours if that is another server's and nobody has chosen it."""
        ours = [m for m in self if not m.foreign and m.runnable and not m.absent]
        return _best(ours)[0] if default.foreign and not self._settings.default_model and ours else default

    def _named_default(self, name: str, engine: str) -> Model:
        try:
            model = self._of_engine(name, engine) if engine else self.find(name)
        except ModelNotFoundError as error:
            raise ConfigError(f"default_model (STT_DEFAULT_MODEL, WHISPER_MODEL): {error.message}") from None
        if engine not in ("", model.engine):
            raise ConfigError(
                f"default_model (STT_DEFAULT_MODEL, WHISPER_MODEL) is {name}, which {model.engine} runs, "
                f"but default_engine (STT_DEFAULT_BACKEND, ASR_BACKEND) is {engine}: change one of them."
            )
        return model

    def _of_engine(self, name: str, engine: str) -> Model:
        """What the name means to this engine: another engine may know the same name for other weights."""
        if id := self._names.get(name):
            return self._models[id]
        match = names.choose(name, engine)
        if id := self._names.get(match.repository):
            return self._models[id]
        if self._settings.pull_missing:
            return self.inventory.fetchable(match)
        raise ModelNotFoundError(self.how_to_fetch(name, match.repository, engine))


def _best(fitting: Sequence[Model]) -> tuple[Model, str]:
    """The model for requests that name none, and why it is that one. One for speech alone comes before one that also chats."""
    for origin, why in (("config", "the first of the config"), ("disk", "the largest on disk"), ("peer", "the first of a peer")):
        if candidates := [model for model in fitting if model.origin == origin and _knows_english(model)]:
            best = max(candidates, key=lambda m: m.size) if origin == "disk" else min(candidates, key=lambda m: m.chats)
            return best, why
    return fitting[-1], "embedded: nothing better is on disk"


def _knows_english(model: Model) -> bool:
    return not model.capabilities.languages or "en" in model.capabilities.languages
