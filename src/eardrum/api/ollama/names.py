"""Models by Ollama's names: always listed with a tag, `latest` if there is no other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from eardrum.errors import InvalidRequestError, ModelNotFoundError
from eardrum.gateway import names
from eardrum.gateway.inventory import Model
from eardrum.gateway.names import LATEST
from eardrum.gateway.service import Service


def listed(id: str) -> str:
    """The name under which an id is listed. Clients add `:latest` to any name without a tag and then look for that."""
    return id if ":" in id else id + LATEST


def bare(name: str) -> str:
    """The name without the tag that says nothing."""
    return name.removesuffix(LATEST)


def is_listed(model: Model) -> bool:
    """Whether a model can be asked for now and the config does not hide it."""
    return model.runnable and not model.absent and not (model.entry and model.entry.unlisted)


class Names:
    """Finds models, and words what is not found as Ollama does."""

    def __init__(self, service: Service):
        self._service = service

    def find(self, name: str) -> Model:
        """The model of a name, with or without `:latest`, of an alias, a copy, a pin or a selector.

        Raises:
            ModelNotFoundError: there is none.
        """
        return self.resolve(name)[0]

    def resolve(self, name: str) -> tuple[Model, str]:
        """The model, and the name it is asked by once copies, profile and selectors have had their say.

        Raises:
            ModelNotFoundError: there is none.
        """
        with suppress(ModelNotFoundError):
            meant = self._service.meant(name)
            return self._service.catalog.find(meant), meant
        known = ", try pulling it first" if names.matches(bare(name)) else ""
        raise ModelNotFoundError(f"model '{_shown(name)}' not found{known}")

    def copy(self, source: str, destination: str) -> None:
        """Let a model be known by a further name, on every edge, instead of what that name meant to a copy before.

        Raises:
            ModelNotFoundError: there is no such source.
            InvalidRequestError: the name is taken by a model, or there are too many.
        """
        model, copies = self.find(source), self._service.copies
        if destination not in copies:
            with suppress(ModelNotFoundError):
                taken = self._service.find(destination)
                raise InvalidRequestError(f"'{_shown(destination)}' is already a name of {taken.id}.", param="destination")
        copies.add(destination, model.id)

    def forget(self, name: str) -> bool:
        """Drop a copy; False if the name is none."""
        return self._service.copies.forget(name)

    def others(self) -> Iterator[tuple[str, Model]]:
        """Names to list beside the ids, with what they mean just now: selectors, copies, and aliases if the config says so."""
        if self._service.settings.includeAliasesInList:
            catalog = self._service.catalog
            yield from ((alias, model) for model in catalog if is_listed(model) for alias in catalog.aliases(model))
        selectors = ((id, id) for id, selector in self._service.selection.selectors.items() if not selector.unlisted)
        for name, meaning in (*selectors, *self._service.copies):
            with suppress(ModelNotFoundError):
                yield name, self._service.find(meaning)


def _shown(name: str) -> str:
    return name if len(name) <= names.SHOWN else name[: names.SHOWN] + "..."
