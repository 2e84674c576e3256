"""The ports that `${PORT}` stands for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from eardrum.errors import ConfigError

HIGHEST = 65535


@dataclass(frozen=True, slots=True)
class Ports:
    """What is known of ports when a config is read again while models run."""

    held: Mapping[str, int] = field(default_factory=dict)
    """Model to the port it had: it keeps it, so that a model that was added does not move the others."""
    avoided: Collection[int] = ()
    """Ports that must not be given out, such as those of models that are still on their way down."""


def assigned(models: Collection[str], start: int, known: Ports) -> dict[str, int]:
    """A port for each model: what it held, else the next one from `start` on, in the order of the models' names.

    Raises:
        ConfigError: there are not enough.
    """
    kept = {id: known.held[id] for id in models if id in known.held}
    free = _from(start, {*kept.values(), *known.avoided})
    return {id: kept.get(id) or next(free) for id in sorted(models)}


def _from(start: int, taken: Collection[int]) -> Iterator[int]:
    yield from (port for port in range(start, HIGHEST + 1) if port not in taken)
    raise ConfigError(f"startPort {start} is too high: the ports up to {HIGHEST} are not enough for all models.")
