"""llama-swap's matrix: sets of models that may be loaded together.

A set is written as an expression: `a & (b | c)` stands for the sets {a, b} and {a, c}. Ten groups of ten make 10¹⁰
sets, so they are never listed: an expression is only asked which of the few loaded models its sets could keep.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from eardrum.config.matrix import Expression, Ident, Or
from eardrum.gateway.rules.base import CLAIMED, LEAVING, Loaded

FOR_THE_WORLD = 1e12
"""The cost of evicting a model that somebody ahead waits for."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """The sets in the order of the config.

    `costs` is what evicting a model costs where there is a choice, 1 if it does not say. A model of `alone` that is in no
    set runs alone, as llama-swap has it; one that is in neither is outside: it evicts nobody and nobody evicts it.
    """

    kind: ClassVar[str] = "matrix"
    sets: tuple[Expression, ...]
    costs: Mapping[str, float] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    _members: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seen: dict[int, frozenset[str]] = {}
        members = self.alone.union(*(_models(expression, seen) for expression in self.sets))
        object.__setattr__(self, "_members", members)

    def evicted(self, target: str, loaded: Loaded) -> frozenset[str]:
        """The cheapest way to a set with `target`; of equals the one that is written first."""
        if target not in self._members:
            return frozenset()
        running = frozenset(loaded) & self._members - {target}
        keeping = [kept for kept in self._kept(running | {target}) if target in kept] or [frozenset((target,))]
        best = min(keeping, key=lambda kept: sum(self._cost(model, loaded[model]) for model in running - kept))
        return running - best

    def allows(self, models: Collection[str]) -> bool:
        """Whether one of the sets holds them all."""
        inside = frozenset(models) & self._members
        return len(inside) <= 1 or inside in self._kept(inside)

    def _kept(self, models: frozenset[str]) -> list[frozenset[str]]:
        """What the sets hold of `models`, less what another one holds all of."""
        seen: dict[int, list[frozenset[str]]] = {}
        return _largest(kept for expression in self.sets for kept in _projected(expression, models, seen))

    def _cost(self, model: str, used: float) -> float:
        if used == LEAVING:
            return 0.0
        return self.costs.get(model, 1.0) + (FOR_THE_WORLD if used == CLAIMED else 0.0)


def _projected(expression: Expression, models: frozenset[str], seen: dict[int, list[frozenset[str]]]) -> list[frozenset[str]]:
    """What the sets of an expression hold of `models`; one that is in several places is looked at once."""
    if id(expression) not in seen:
        if isinstance(expression, Ident):
            found = [frozenset((expression.model,)) & models]
        elif isinstance(expression, Or):
            found = _largest(kept for part in expression.parts for kept in _projected(part, models, seen))
        else:
            found = [frozenset[str]()]
            for part in expression.parts:
                theirs = _projected(part, models, seen)
                found = _largest(one | other for one in found for other in theirs)
        seen[id(expression)] = found
    return seen[id(expression)]


def _largest(sets: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """The sets that are in no other, in their order. This is what keeps a product of alternatives small."""
    found: list[frozenset[str]] = []
    for new in sets:
        if not any(new <= old for old in found):
            found = [old for old in found if not old <= new]
            found.append(new)
    return found


def _models(expression: Expression, seen: dict[int, frozenset[str]]) -> frozenset[str]:
    if id(expression) not in seen:
        if isinstance(expression, Ident):
            seen[id(expression)] = frozenset((expression.model,))
        else:
            seen[id(expression)] = frozenset().union(*(_models(part, seen) for part in expression.parts))
    return seen[id(expression)]
