"""The models of other servers that are offered here: `peers` of the config."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from eardrum import config


@dataclass(frozen=True, slots=True)
class Offered:
    """One of them, as an entry of the config that nobody wrote."""

    id: str
    """The peer's id, a slash, and the name it has there."""
    aliases: tuple[str, ...]
    """The bare name, if no other peer has a model of that name. A model of our own with that name comes before it."""
    entry: config.Model
    key: str = field(repr=False)


def offered(settings: config.Settings) -> Iterator[Offered]:
    """All of them, in the config's order."""
    owners = Counter(name for peer in settings.peers.values() for name in dict.fromkeys(peer.models))
    for id, peer in settings.peers.items():
        for name in dict.fromkeys(peer.models):
            entry = config.Model(
                proxy=peer.proxy.rstrip("/"),
                useModelName=name,
                filters=peer.filters,
                timeouts=peer.timeouts,
                checkEndpoint="none",
            )
            yield Offered(f"{id}/{name}", (name,) if owners[name] == 1 else (), entry, peer.apiKey)
