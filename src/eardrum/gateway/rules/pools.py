"""Pools of memory: what fits stays loaded, and the least recently used goes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from eardrum.gateway.rules.base import Loaded

Need = Mapping[str, float]
"""Bytes of each pool that a model takes."""

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?", re.IGNORECASE)


def bytes_of(size: str) -> int:
    """`2.1G`, `500M`, `22GiB`, `4096` in bytes: G is 10⁹ and Gi 2³⁰; a B at the end changes nothing.

    Raises:
        ValueError: it is no size, or none above nothing.
    """
    found = SIZE.fullmatch(size.strip())
    if not found or (found["binary"] and not found["unit"]):
        raise ValueError(f"{size!r} is not a size such as 2.1G, 500M or 22GiB.")
    unit = (BINARY_UNITS if found["binary"] else UNITS)[found["unit"].upper()]
    if (number := round(float(found["number"]) * unit)) <= 0:
        raise ValueError(f"{size!r} is not a size above 0.")
    return number


@dataclass(frozen=True, slots=True)
class Pools:
    """How much there is, and who takes how much of it.

    A model without a need takes nothing and is let alone. One whose need is larger than the pool gets all of it, alone.
    Models of `kept` are not evicted: they were told to stay.
    """

    sizes: Mapping[str, float]
    needs: Mapping[str, Need] = field(default_factory=dict)
    kept: frozenset[str] = frozenset()

    def evicted(self, target: str, loaded: Loaded) -> frozenset[str]:
        """The least recently used ones, as many as it takes in every pool, and none for nothing."""
        gone: frozenset[str] = frozenset()
        for pool in self.needs.get(target, {}):
            stay = {model: used for model, used in loaded.items() if model not in gone and model != target}
            gone |= self._evicted_from(pool, self._need(target, pool), stay)
        return gone

    def allows(self, models: Collection[str]) -> bool:
        """Whether they fit, or one of them has all of the pool to itself, the kept ones aside."""
        return all(self._fit(pool, models) or len(self._movable(pool, models)) <= 1 for pool in self.sizes)

    def _evicted_from(self, pool: str, need: float, loaded: Loaded) -> frozenset[str]:
        taken = {model: self._need(model, pool) for model in loaded}
        over = sum(taken.values()) + need - self.sizes[pool]
        gone: list[str] = []
        for model in sorted(self._movable(pool, loaded), key=lambda model: loaded[model]):
            if over <= 0:
                break
            over -= taken[model]
            gone.append(model)
        for model in reversed(gone):  # a large one may have made the small ones before it needless
            if over + taken[model] <= 0:
                over += taken[model]
                gone.remove(model)
        return frozenset(gone)

    def _need(self, model: str, pool: str) -> float:
        return min(self.needs.get(model, {}).get(pool, 0), self.sizes[pool])

    def _fit(self, pool: str, models: Collection[str]) -> bool:
        return sum(self._need(model, pool) for model in models) <= self.sizes[pool]

    def _movable(self, pool: str, models: Collection[str]) -> list[str]:
        return [model for model in models if model not in self.kept and self._need(model, pool)]
