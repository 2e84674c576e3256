"""Pools of memory: what fits stays loaded, and the least recently used goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from eardrum.gateway.rules.base import Loaded

Need = Mapping[str, float]
"""Bytes of each pool that a model takes."""


@dataclass(frozen=True, slots=True)
class Pools:
    """How much there is, and who takes how much of it.

    A model without a need takes nothing and is let alone. One whose need is larger than the pool gets all of it, alone.
    Models of `kept` are not evicted: they were told to stay.
    """

    kind: ClassVar[str] = "pool"
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
