"""Eviction policies: which loaded models must go before another one is loaded. Pure.

`GroupPolicy` has llama-swap's groups. `swap`: one member at a time. `exclusive`: loading a member unloads the models of other
groups. `persistent`: other groups do not unload its members. The policy looks at the model that is being loaded, so a group
that is not exclusive leaves an exclusive one alone, and both are then loaded.

`MatrixPolicy` has llama-swap's sets of models that may be loaded together. A set is an expression: `a & (b | c)` stands for
the sets {a, b} and {a, c}. Ten groups of ten make 10¹⁰ sets, so they are never listed: an expression is only asked which of
the few loaded models its sets could keep.

`MemoryPolicy` has pools of memory: models that fit stay loaded, and the least recently used goes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar, Protocol

from eardrum.config.matrix import MatrixExpression, ModelReference, OrExpression

__all__ = [
    "CLAIMED",
    "LEAVING",
    "CombinedPolicy",
    "EvictionPolicy",
    "GroupPolicy",
    "LoadedModels",
    "MatrixPolicy",
    "MemoryNeed",
    "MemoryPolicy",
    "ModelGroup",
    "NoEviction",
    "attribute_evictions",
]


LoadedModels = Mapping[str, float]
"""Models that hold memory now, with the time of their last use: `LEAVING` and `CLAIMED` are two times that are none."""

LEAVING = float("-inf")
"""It is on its way out already: evicting it costs nothing more."""

CLAIMED = float("inf")
"""Somebody waits for it and is ahead: to be evicted only if nothing else helps."""


class EvictionPolicy(Protocol):
    """Which models may be loaded together."""

    @property
    def kind(self) -> str:
        """What they are about, in a word."""
        ...

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """The models of `loaded` that must be gone before `target` may be started; never `target` itself."""
        ...

    def allows(self, models: Collection[str]) -> bool:
        """Whether these could have come to be loaded together, in some order."""
        ...


@dataclass(frozen=True, slots=True)
class NoEviction:
    """No rules: what is loaded stays."""

    kind: ClassVar[str] = "nothing"

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def allows(self, models: Collection[str]) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class CombinedPolicy:
    """Several rules at once. Those behind are asked about what those before them let stay."""

    policies: tuple[EvictionPolicy, ...]
    kind: ClassVar[str] = "rules"

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """Whom any of them evicts."""
        return frozenset(self.attribute_evictions(target, loaded))

    def attribute_evictions(self, target: str, loaded: LoadedModels) -> dict[str, str]:
        """Whom any of them evicts, and of which kind that one is."""
        gone: dict[str, str] = {}
        for rules in self.policies:
            stay = {model: used for model, used in loaded.items() if model not in gone}
            gone |= dict.fromkeys(rules.find_evictions(target, stay), rules.kind)
        return gone

    def allows(self, models: Collection[str]) -> bool:
        """Whether all of them do."""
        return all(rules.allows(models) for rules in self.policies)


def attribute_evictions(rules: EvictionPolicy, target: str, loaded: LoadedModels) -> dict[str, str]:
    """The models that must be gone before `target` may be started, each with the kind of the rule that says so."""
    return (
        rules.attribute_evictions(target, loaded)
        if isinstance(rules, CombinedPolicy)
        else dict.fromkeys(rules.find_evictions(target, loaded), rules.kind)
    )


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """One group; the defaults are llama-swap's."""

    members: frozenset[str]
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """Models in no group evict nobody and are evicted by nobody.

    llama-swap's default group, of all commands that are in no other, is a group like others here.
    """

    kind: ClassVar[str] = "group"
    groups: tuple[ModelGroup, ...]
    _group_of: Mapping[str, ModelGroup] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        of = {member: group for group in self.groups for member in group.members}
        object.__setattr__(self, "_group_of", of)

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """Whom loading `target` unloads."""
        return frozenset(model for model in loaded if model != target and self._evicts(target, model))

    def allows(self, models: Collection[str]) -> bool:
        """Whether of every two one may be loaded while the other is up."""
        return not any(self._evicts(one, other) and self._evicts(other, one) for one, other in combinations(models, 2))

    def _evicts(self, target: str, model: str) -> bool:
        theirs, its = self._group_of.get(target), self._group_of.get(model)
        if theirs is None or its is None:
            return False
        if theirs is its:
            return theirs.swap
        return theirs.exclusive and not its.persistent


PROHIBITIVE_COST = 1e12
"""The cost of evicting a model that somebody ahead waits for."""


@dataclass(frozen=True, slots=True)
class MatrixPolicy:
    """The sets in the order of the config.

    `costs` is what evicting a model costs where there is a choice, 1 if it does not say. A model of `alone` that is in no
    set runs alone, as llama-swap has it; one that is in neither is outside: it evicts nobody and nobody evicts it.
    """

    kind: ClassVar[str] = "matrix"
    sets: tuple[MatrixExpression, ...]
    costs: Mapping[str, float] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    _members: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seen: dict[int, frozenset[str]] = {}
        members = self.alone.union(*(_collect_models(expression, seen) for expression in self.sets))
        object.__setattr__(self, "_members", members)

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """The cheapest way to a set with `target`; of equals the one that is written first."""
        if target not in self._members:
            return frozenset()
        running = frozenset(loaded) & self._members - {target}
        keeping = [kept for kept in self._find_subsets(running | {target}) if target in kept] or [frozenset((target,))]
        best = min(keeping, key=lambda kept: sum(self._get_cost(model, loaded[model]) for model in running - kept))
        return running - best

    def allows(self, models: Collection[str]) -> bool:
        """Whether one of the sets holds them all."""
        inside = frozenset(models) & self._members
        return len(inside) <= 1 or inside in self._find_subsets(inside)

    def _find_subsets(self, models: frozenset[str]) -> list[frozenset[str]]:
        """What the sets hold of `models`, less what another one holds all of."""
        seen: dict[int, list[frozenset[str]]] = {}
        return _keep_largest(kept for expression in self.sets for kept in _project_expression(expression, models, seen))

    def _get_cost(self, model: str, used: float) -> float:
        if used == LEAVING:
            return 0.0
        return self.costs.get(model, 1.0) + (PROHIBITIVE_COST if used == CLAIMED else 0.0)


def _project_expression(
    expression: MatrixExpression, models: frozenset[str], seen: dict[int, list[frozenset[str]]]
) -> list[frozenset[str]]:
    """What the sets of an expression hold of `models`; one that is in several places is looked at once."""
    if id(expression) not in seen:
        if isinstance(expression, ModelReference):
            found = [frozenset((expression.model,)) & models]
        elif isinstance(expression, OrExpression):
            found = _keep_largest(kept for part in expression.parts for kept in _project_expression(part, models, seen))
        else:
            found = [frozenset[str]()]
            for part in expression.parts:
                theirs = _project_expression(part, models, seen)
                found = _keep_largest(one | other for one in found for other in theirs)
        seen[id(expression)] = found
    return seen[id(expression)]


def _keep_largest(sets: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """The sets that are in no other, in their order. This is what keeps a product of alternatives small."""
    found: list[frozenset[str]] = []
    for new in sets:
        if not any(new <= old for old in found):
            found = [old for old in found if not old <= new]
            found.append(new)
    return found


def _collect_models(expression: MatrixExpression, seen: dict[int, frozenset[str]]) -> frozenset[str]:
    if id(expression) not in seen:
        if isinstance(expression, ModelReference):
            seen[id(expression)] = frozenset((expression.model,))
        else:
            seen[id(expression)] = frozenset().union(*(_collect_models(part, seen) for part in expression.parts))
    return seen[id(expression)]


MemoryNeed = Mapping[str, float]
"""Bytes of each pool that a model takes."""


@dataclass(frozen=True, slots=True)
class MemoryPolicy:
    """How much there is, and who takes how much of it.

    A model without a need takes nothing and is let alone. One whose need is larger than the pool gets all of it, alone.
    Models of `kept` are not evicted: they were told to stay.
    """

    kind: ClassVar[str] = "pool"
    sizes: Mapping[str, float]
    needs: Mapping[str, MemoryNeed] = field(default_factory=dict)
    persistent: frozenset[str] = frozenset()

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """The least recently used ones, as many as it takes in every pool, and none for nothing."""
        gone: frozenset[str] = frozenset()
        for pool in self.needs.get(target, {}):
            stay = {model: used for model, used in loaded.items() if model not in gone and model != target}
            gone |= self._find_pool_evictions(pool, self._get_need(target, pool), stay)
        return gone

    def allows(self, models: Collection[str]) -> bool:
        """Whether they fit, or one of them has all of the pool to itself, the kept ones aside."""
        return all(self._fits(pool, models) or len(self._list_evictable(pool, models)) <= 1 for pool in self.sizes)

    def _find_pool_evictions(self, pool: str, need: float, loaded: LoadedModels) -> frozenset[str]:
        taken = {model: self._get_need(model, pool) for model in loaded}
        over = sum(taken.values()) + need - self.sizes[pool]
        gone: list[str] = []
        for model in sorted(self._list_evictable(pool, loaded), key=lambda model: loaded[model]):
            if over <= 0:
                break
            over -= taken[model]
            gone.append(model)
        for model in reversed(gone):  # a large one may have made the small ones before it needless
            if over + taken[model] <= 0:
                over += taken[model]
                gone.remove(model)
        return frozenset(gone)

    def _get_need(self, model: str, pool: str) -> float:
        return min(self.needs.get(model, {}).get(pool, 0), self.sizes[pool])

    def _fits(self, pool: str, models: Collection[str]) -> bool:
        return sum(self._get_need(model, pool) for model in models) <= self.sizes[pool]

    def _list_evictable(self, pool: str, models: Collection[str]) -> list[str]:
        return [model for model in models if model not in self.persistent and self._get_need(model, pool)]
