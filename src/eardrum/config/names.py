"""Names in a config: aliases, and everything that refers to a model by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eardrum.config.known import nearest
from eardrum.config.places import Errors, KeyPath, Remark, dotted
from eardrum.config.settings import Model, Settings


class Names:
    """What names mean in one config. `remarks` holds what was odd about them, `errors` is told what is wrong."""

    def __init__(self, settings: Settings, errors: Errors):
        self._settings = settings
        self._errors = errors
        self._owners: dict[str, str] = {}
        self.remarks: list[Remark] = []
        self.aliases: dict[str, list[str]] = {id: [] for id in settings.models}
        """Model to the aliases that mean it."""
        for id, model in settings.models.items():
            for position, alias in enumerate(model.aliases):
                self._claim(id, alias, ("models", id, "aliases", position))
        for id, model in settings.models.items():  # once all aliases are known that are said to be some
            for alias in model.filters.setParamsByID:
                self._claim_by_parameters(id, alias)
        for id, peer in settings.peers.items():
            for position, name in enumerate(peer.models):
                self._look_at_a_peer(id, name, ("peers", id, "models", position))

    def model(self, name: str) -> str | None:
        """The id of the model that has this name or alias."""
        return name if name in self._settings.models else self._owners.get(name)

    def of_a_peer(self, name: str) -> bool:
        """Whether another server has a model that is called so here: `peer/model`, or `model` if no other peer has one."""
        of_one = len(self._peers_with(name)) == 1
        return of_one or any(name == f"{id}/{model}" for id, peer in self._settings.peers.items() for model in peer.models)

    def _peers_with(self, model: str) -> list[str]:
        return [id for id, peer in self._settings.peers.items() if model in peer.models]

    def _look_at_a_peer(self, id: str, model: str, path: KeyPath) -> None:
        if self.model(model):
            self._remark(path, f"{model!r} is a model here; the one of the peer is {id}/{model}.")
        elif (others := self._peers_with(model)) and others[0] != id:
            self._remark(
                path, f"{model!r} is a model of {others[0]}, too: it is only found as {others[0]}/{model} and {id}/{model}."
            )

    def is_before_a_peers(self, selector: str, path: KeyPath) -> None:
        """A selector has the name of a peer's model, and comes before it as models of our own do."""
        others = [f"{peer}/{selector}" for peer in self._peers_with(selector)]
        behind = f"; the one of the peer is {' or '.join(others)}" if others else ", which is then out of reach"
        self._remark(path, f"The selector {selector} has the name of a peer's model{behind}.")

    def is_unknown(self, name: str, path: KeyPath) -> None:
        """Nothing has this name, or it is not to be used here."""
        if self._errors.incomplete:
            return
        if owner := self._owners.get(name):
            self._errors.add(path, f"{dotted(path)}: {name!r} is an alias of {owner}: name the model itself.")
            return
        close = nearest(name, [*self._settings.models, *self._owners])
        hint = f"Did you mean {close}?" if close else f"If it is built in or on the disk, name it there, as in `{name}:`."
        self._errors.add(path, f"{dotted(path)}: there is no model {name!r} under `models:`. {hint}")

    def of(self, id: str) -> Model:
        """The entry of a model, with its aliases worked out."""
        model = self._settings.models[id]
        return model.model_copy(update={"aliases": tuple(self.aliases[id])})

    def _claim(self, id: str, alias: str, path: KeyPath) -> None:
        owner = self._owners.get(alias)
        if owner == id:
            self._remark(path, f"The alias {alias!r} of {id} is here twice.")
        elif owner:
            self._errors.add(path, f"The alias {alias!r} of {id} is already one of {owner}: a name means one model.")
        elif alias in self._settings.models:
            if alias != id:
                self._remark(path, f"The alias {alias!r} of {id} is also the name of a model, which is the one that it means.")
        else:
            self._owners[alias] = id
            self.aliases[id].append(alias)

    def _claim_by_parameters(self, id: str, alias: str) -> None:
        path: KeyPath = ("models", id, "filters", "setParamsByID", alias)
        owner = self._owners.get(alias)
        if id in (alias, owner):
            return
        if owner or alias in self._settings.models:
            whose = f"one of {owner}" if owner else "the name of another model"
            self._errors.add(path, f"Names below {dotted(path[:-1])} are aliases of {id}, but {alias!r} is {whose}.")
            return
        self._owners[alias] = id
        self.aliases[id].append(alias)

    def _remark(self, path: KeyPath, message: str) -> None:
        self.remarks.append(self._errors.places.remark(path, message))


def check_profiles(settings: Settings, names: Names) -> None:
    """Pins have to be to names that mean something."""
    for id, profile in settings.profiles.items():
        for pin, target in profile.pins.items():
            if target and not (names.model(target) or names.of_a_peer(target) or target in settings.selectors):
                names.is_unknown(target, ("profiles", id, "pins", pin))


def checked_selectors(settings: Settings, names: Names, errors: Errors) -> Iterator[tuple[str, Sequence[str]]]:
    """Look whether selectors can work; yields those that fill several targets, with the ids of those that are here."""
    for id, selector in settings.selectors.items():
        path: KeyPath = ("selectors", id)
        if names.model(id):
            errors.add(path, f"The selector {id} has the name of a model: a name means one thing.")
        elif names.of_a_peer(id):
            names.is_before_a_peers(id, path)
        for position, target in enumerate(selector.targets):
            where = (*path, "targets", position)
            if target in settings.selectors and not names.of_a_peer(target):
                errors.add(where, f"{dotted(where)}: {target!r} is a selector itself, and selectors choose among models.")
            elif not names.model(target) and not names.of_a_peer(target):
                names.is_unknown(target, where)
        if selector.strategy == "spillover":
            targets = [names.model(target) or target for target in selector.targets]
            if twice := next((target for target in targets if targets.count(target) > 1), ""):
                errors.add((*path, "targets"), f"The selector {id} has the target {twice} twice.")
            yield id, [target for target in targets if target in settings.models]


def with_priorities(settings: Settings, names: Names) -> Settings:
    """Priorities by id, however they were written."""
    if not settings.routing or not settings.priorities:
        return settings
    path = ("routing", "scheduler", "settings", "fifo", "priority")
    priority = {}
    for name, value in settings.priorities.items():
        if model := names.model(name):
            priority[model] = value
        else:
            names.is_unknown(name, (*path, name))
    scheduler = settings.routing.scheduler
    fifo = scheduler.settings.fifo.model_copy(update={"priority": priority})
    order = scheduler.model_copy(update={"settings": scheduler.settings.model_copy(update={"fifo": fifo})})
    return settings.model_copy(update={"routing": settings.routing.model_copy(update={"scheduler": order})})
