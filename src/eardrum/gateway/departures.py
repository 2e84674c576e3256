"""Which models have gone, why, and how often: for the log, for people, and for whoever counts."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from eardrum.gateway.scheduler import Going, Reason

log = logging.getLogger(__name__)

ALREADY_LOGGED = (Reason.CRASH, Reason.FAILED)
"""Ends that have a line of their own, with the last words of the process."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A model's last end."""

    model: str
    going: Going
    at: float
    """Unix time."""
    said: str = ""
    """What is known beyond that: how its process ended, or why it could not be started."""

    def __str__(self) -> str:
        """Why, in words."""
        return self.said or str(self.going)


class Departures:
    """The last end of every model, the latest last, and how many there were of each kind."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Reason]] = Counter()
        """By model and reason, since the server was started."""
        self._last: dict[str, Departure] = {}

    def __iter__(self) -> Iterator[Departure]:
        return iter(self._last.values())

    def of(self, model: str) -> Departure | None:
        """The model's last end."""
        return self._last.get(model)

    def add(self, model: str, going: Going, said: str = "") -> None:
        """A model has gone."""
        self.counts[model, going.reason] += 1
        self._last.pop(model, None)
        self._last[model] = departure = Departure(model, going, time.time(), said)
        if going.reason not in ALREADY_LOGGED:
            log.info("%s was unloaded: %s.", model, departure)

    def forget(self, model: str) -> None:
        """It is there again."""
        self._last.pop(model, None)
