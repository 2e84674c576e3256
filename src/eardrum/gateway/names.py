"""Names people use for models to the engine and the weights they mean. Pure: what engines declare, nothing on disk."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from eardrum.engines import registry
from eardrum.engines.registry import Card
from eardrum.errors import ModelNotFoundError


@dataclass(frozen=True, slots=True)
class Match:
    """An engine that could run what a name means, and the Hugging Face repository of the weights."""

    card: Card
    repository: str

    @property
    def order(self) -> tuple[bool, int]:
        """Sorts installed engines first, then those meant for such models."""
        return bool(self.card.missing), self.card.rank


def matches(name: str, engine: str = "") -> list[Match]:
    """All that a name could mean, the best first; those of `engine` only, if one is given.

    A short name that an engine knows (`large-v3`), an id with its owner (`nvidia/parakeet-tdt-0.6b-v3`), or such an id
    without its owner.
    """
    cards = [registry.card(engine)] if engine else registry.cards().values()
    found = [match for card in cards for match in _of_card(card, name)]
    return sorted(found, key=lambda match: match.order)


def choose(name: str, engine: str = "") -> Match:
    """The one thing that a name means.

    Raises:
        ModelNotFoundError: nothing, or several things that exclude each other; the message lists what would do.
    """
    found = matches(name, engine)
    if not found:
        raise ModelNotFoundError(f"No engine here knows a model {name!r}.{_nearest(name)}")
    best = [match for match in found if match.order == found[0].order]
    if len({(match.card.name, match.repository) for match in best}) > 1:
        could = ", ".join(f"{match.repository} (engine {match.card.name})" for match in best)
        raise ModelNotFoundError(f"{name!r} could mean {could}: use the full name, or set `engine:`.")
    return found[0]


def _of_card(card: Card, name: str) -> Iterator[Match]:
    wanted = name.lower()
    if repository := {known.lower(): repository for known, repository in card.names.items()}.get(wanted):
        yield Match(card, repository)
    elif "/" in name:
        if any(fnmatchcase(wanted, pattern) for pattern in card.repositories):
            yield Match(card, name)
    else:
        known_repositories = {*card.names.values(), *(known for known in card.names if "/" in known)}
        meant = {card.names.get(id, id) for id in known_repositories if id.rpartition("/")[2].lower() == wanted}
        for repository in sorted(meant):
            yield Match(card, repository)


def _nearest(name: str) -> str:
    known = {known.lower(): known for card in registry.cards().values() for known in card.names}
    close = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)]
    return f" Close to it: {', '.join(close)}." if close else " `eardrum engines` lists the names that engines know."
