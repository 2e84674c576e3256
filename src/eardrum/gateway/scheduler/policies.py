"""Eviction policies: the loaded models that a starting model excludes, by groups, a matrix or pools of memory. Pure.

`GroupPolicy` has llama-swap's groups. `swap`: one member at a time. `exclusive`: loading a member unloads the models of other
groups. `persistent`: other groups do not unload its members. The policy looks at the model that is being loaded, so a group
that is not exclusive leaves an exclusive one alone, and both are then loaded.

`MatrixPolicy` has llama-swap's sets of models that may be loaded together. A set is an expression: `a & (b | c)` stands for
the sets {a, b} and {a, c}. Ten groups of ten make 10¹⁰ sets, so they are never listed: an expression is only evaluated for the
few loaded models.

`MemoryPolicy` has pools of memory: models stay loaded as long as they fit, then the least recently used is unloaded.

`PolicyFactory` builds the policy of a config, with the memory needs of models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import ClassVar, Protocol

from msgspec import Struct

from eardrum.config import Settings, matrix
from eardrum.config.diagnostics import KeyPath, format_path
from eardrum.config.matrix import MatrixExpression, ModelReference, OrExpression
from eardrum.errors import ConfigError
from eardrum.gateway.models.inventory import ADDRESS, Model
from eardrum.units import parse_size

LoadedModels = Mapping[str, float]
"""Models that take memory now, with the time of their last use, or `LEAVING` or `CLAIMED` instead."""

LEAVING = float("-inf")
"""The model is being unloaded: evicting it costs nothing."""

CLAIMED = float("inf")
"""A request ahead in the queue waits for the model: it is evicted only as a last resort."""


class EvictionPolicy(Protocol):
    """Which models may be loaded together."""

    @property
    def kind(self) -> str:
        """The `UnloadReason` of its evictions; not used for policies that evict nothing or combine others."""
        ...

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """The models of `loaded` that must be unloaded before `target` is started; never `target` itself."""
        ...

    def allows(self, models: Collection[str]) -> bool:
        """Whether these models can be loaded together, in some order."""
        ...


class NoEviction(Struct, frozen=True):
    """All models may be loaded together."""

    kind: ClassVar[str] = "nothing"

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """Return no model."""
        return frozenset()

    def allows(self, models: Collection[str]) -> bool:
        """Return True."""
        return True


class CombinedPolicy(Struct, frozen=True):
    """Several policies in a row. Each sees only the models that those before it keep."""

    policies: tuple[EvictionPolicy, ...]
    kind: ClassVar[str] = "rules"

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """All models that one of the policies evicts."""
        return frozenset(self.attribute_evictions(target, loaded))

    def attribute_evictions(self, target: str, loaded: LoadedModels) -> dict[str, str]:
        """The evicted models, with the kind of the policy that evicts them."""
        evicted: dict[str, str] = {}
        for policy in self.policies:
            kept = {model: used for model, used in loaded.items() if model not in evicted}
            evicted |= dict.fromkeys(policy.find_evictions(target, kept), policy.kind)
        return evicted

    def allows(self, models: Collection[str]) -> bool:
        """Whether all policies allow these models together."""
        return all(policy.allows(models) for policy in self.policies)


def attribute_evictions(policy: EvictionPolicy, target: str, loaded: LoadedModels) -> dict[str, str]:
    """The models that must be unloaded before `target` is started, with the kind of the policy that evicts them."""
    return (
        policy.attribute_evictions(target, loaded)
        if isinstance(policy, CombinedPolicy)
        else dict.fromkeys(policy.find_evictions(target, loaded), policy.kind)
    )


class ModelGroup(Struct, frozen=True):
    """A group of models; the defaults are llama-swap's."""

    members: frozenset[str]
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class GroupPolicy:
    """Evicts by groups. Models in no group evict no model and are not evicted.

    llama-swap's default group, of all commands that are in no other group, is passed as one of the groups.
    """

    kind: ClassVar[str] = "group"
    groups: tuple[ModelGroup, ...]
    _group_of: Mapping[str, ModelGroup] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        of = {member: group for group in self.groups for member in group.members}
        object.__setattr__(self, "_group_of", of)

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """The models that loading `target` unloads."""
        return frozenset(model for model in loaded if model != target and self._evicts(target, model))

    def allows(self, models: Collection[str]) -> bool:
        """Whether, of every two, one can be loaded while the other stays."""
        grouped: dict[int, str] = {}
        """A model of each group, by the group's identity: two that swap are refused, and others of a group behave alike."""
        for model in models:
            if group := self._group_of.get(model):
                if id(group) in grouped and group.swap:
                    return False
                grouped[id(group)] = model
        return not any(self._evicts(one, other) and self._evicts(other, one) for one, other in combinations(grouped.values(), 2))

    def _evicts(self, target: str, model: str) -> bool:
        theirs, its = self._group_of.get(target), self._group_of.get(model)
        if theirs is None or its is None:
            return False
        if theirs is its:
            return theirs.swap
        return theirs.exclusive and not its.persistent


PROHIBITIVE_COST = 1e12
"""The additional cost of evicting a model that a request ahead in the queue waits for."""


@dataclass(frozen=True, slots=True)
class MatrixPolicy:
    """Evicts by sets, in the order of the config.

    `costs` are the costs of evicting models where there is a choice, 1 by default. A model of `solitary` that is in no set
    runs alone, as in llama-swap. Other models in no set evict no model and are not evicted.
    """

    kind: ClassVar[str] = "matrix"
    sets: tuple[MatrixExpression, ...]
    costs: Mapping[str, float] = field(default_factory=dict)
    solitary: frozenset[str] = frozenset()
    _members: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seen: dict[int, frozenset[str]] = {}
        members = self.solitary.union(*(_collect_models(expression, seen) for expression in self.sets))
        object.__setattr__(self, "_members", members)

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """The cheapest evictions that lead to a set with `target`; of equally cheap ones those of the first set."""
        if target not in self._members:
            return frozenset()
        running = frozenset(loaded) & self._members - {target}
        keeping = [kept for kept in self._find_subsets(running | {target}) if target in kept] or [frozenset((target,))]
        best = min(keeping, key=lambda kept: sum(self._get_cost(model, loaded[model]) for model in running - kept))
        return running - best

    def allows(self, models: Collection[str]) -> bool:
        """Whether one of the sets contains all of them."""
        inside = frozenset(models) & self._members
        return len(inside) <= 1 or inside in self._find_subsets(inside)

    def _find_subsets(self, models: frozenset[str]) -> list[frozenset[str]]:
        """The largest subsets of `models` that the sets allow."""
        seen: dict[int, list[frozenset[str]]] = {}
        return _keep_largest(kept for expression in self.sets for kept in _project_expression(expression, models, seen))

    def _get_cost(self, model: str, used: float) -> float:
        if used == LEAVING:
            return 0.0
        return self.costs.get(model, 1.0) + (PROHIBITIVE_COST if used == CLAIMED else 0.0)


def _project_expression(
    expression: MatrixExpression, models: frozenset[str], seen: dict[int, list[frozenset[str]]]
) -> list[frozenset[str]]:
    """The subsets of `models` that the sets of an expression allow. `seen` caches shared subexpressions."""
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
    """Drop sets that others contain, and keep the order. This keeps products of alternatives small."""
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


class MemoryPolicy(Struct, frozen=True):
    """Evicts by memory: the sizes of the pools, and the needs of the models.

    A model without a need takes nothing and is never evicted. One whose need exceeds the pool gets the whole pool. Models of
    `persistent` are not evicted.
    """

    kind: ClassVar[str] = "pool"
    sizes: Mapping[str, float]
    needs: Mapping[str, MemoryNeed] = {}
    persistent: frozenset[str] = frozenset()

    def find_evictions(self, target: str, loaded: LoadedModels) -> frozenset[str]:
        """The least recently used models, only as many as each pool requires."""
        gone: frozenset[str] = frozenset()
        for pool in self.needs.get(target, {}):
            stay = {model: used for model, used in loaded.items() if model not in gone and model != target}
            gone |= self._find_pool_evictions(pool, self._get_need(target, pool), stay)
        return gone

    def allows(self, models: Collection[str]) -> bool:
        """Whether they fit, or all but one of them in each pool are persistent or take nothing."""
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
        for model in reversed(gone):  # after a large model, the small ones before it may not be needed
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


CPU = "cpu"


OVERHEAD_BYTES = 3e8
"""Bytes that libraries and buffers take in addition to a model's weights, until they are measured."""


def _is_elsewhere(model: Model) -> bool:
    """Whether others run the model's processes, perhaps on other machines: it takes no memory of this server's."""
    return model.engine == ADDRESS or model.is_replicated


class PolicyFactory:
    """Builds the policy from the groups, matrix and pools of a config. Models are added with their first request.

    Raises:
        ConfigError: a size is invalid, or names an unknown pool.
    """

    def __init__(self, settings: Settings, measured: Mapping[str, MemoryNeed] | None = None):
        for _, message in find_wrong_sizes(settings):
            raise ConfigError(message)
        self.pools = _parse_pools(settings)
        self._models = settings.models
        self._needs: dict[str, MemoryNeed] = {}
        self.measured: dict[str, MemoryNeed] = dict(measured or {})
        self._config_policy = _build_config_policy(settings)
        self._persistent = frozenset(member for group in settings.groups.values() if group.persistent for member in group.members)

    @property
    def needs(self) -> Mapping[str, MemoryNeed]:
        """The memory needs of the models that were added."""
        return self._needs

    @property
    def policy(self) -> EvictionPolicy:
        """The policy with the needs that are known now."""
        if not self.pools:
            return self._config_policy
        return CombinedPolicy((self._config_policy, MemoryPolicy(self.pools, dict(self._needs), self._persistent)))

    def add_model(self, model: Model) -> bool:
        """Add a model before it is loaded; returns whether that changed the policy."""
        if not self.pools or _is_elsewhere(model) or model.id in self._needs:
            return False
        self._needs[model.id] = self._estimate_need(model)
        return True

    def record_measurement(self, model: Model, need: MemoryNeed) -> bool:
        """Record a measurement, of which the largest counts; returns whether that changed the policy."""
        before = self.measured.get(model.id, {})
        largest = {pool: max(before.get(pool, 0), need.get(pool, 0)) for pool in self.pools if pool in before or pool in need}
        if largest == before:
            return False
        self.measured[model.id] = self._needs[model.id] = largest
        return True

    def needs_measuring(self, model: Model) -> bool:
        """Whether its need is to be measured: there are pools, and the config does not set it."""
        return bool(self.pools) and not _is_elsewhere(model) and not (model.entry and model.entry.memory)

    def _estimate_need(self, model: Model) -> MemoryNeed:
        """The need by the config, else by measurement, else by the size of its files; else the whole pool."""
        pool = self._choose_pool(model)
        if model.entry and model.entry.memory:
            return self._select_pools(_parse_need(model.entry.memory, self.pools, pool))  # of a CPU, that may be none
        if measured := self._select_pools(self.measured.get(model.id, {})):  # an earlier config may have had others
            return measured
        if pool not in self.pools:
            return {}
        return {pool: model.size + OVERHEAD_BYTES if model.size else self.pools[pool]}

    def _select_pools(self, need: MemoryNeed) -> MemoryNeed:
        """Return the part of a need in pools that the config has."""
        return {pool: size for pool, size in need.items() if pool in self.pools}

    def _choose_pool(self, model: Model) -> str:
        """The pool of its device; for `auto` the first pool of a GPU, if there is one."""
        device = str(model.options.get("device", ""))
        return device if device in (*self.pools, CPU) else self._first_pool

    @property
    def _first_pool(self) -> str:
        return _find_first_pool(self.pools)


def find_wrong_sizes(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Yield the settings of pools and models with an invalid size, with the error."""
    sizes: list[tuple[KeyPath, Callable[[], object]]] = [
        (("memory", name), partial(parse_size, size)) for name, size in settings.memory.items()
    ]
    pools = dict.fromkeys(settings.memory, 0.0)
    sizes += [
        (("models", id, "memory"), partial(_parse_need, entry.memory, pools, _find_first_pool(pools)))
        for id, entry in settings.models.items()
        if entry.memory
    ]
    for path, read in sizes:
        try:
            read()
        except ValueError as error:
            yield path, f"{format_path(path)}: {error}"


def _parse_pools(settings: Settings) -> dict[str, float]:
    return {name: float(parse_size(size)) for name, size in settings.memory.items()}


def _find_first_pool(pools: Iterable[str]) -> str:
    return next((pool for pool in pools if pool != CPU), CPU)


def _build_config_policy(settings: Settings) -> EvictionPolicy:
    if settings.matrix:
        commands = frozenset(id for id, entry in settings.models.items() if entry.cmd)
        sets = tuple(matrix.parse_matrix(settings.matrix, settings.models).values())
        return MatrixPolicy(
            sets, matrix.list_eviction_costs(settings.matrix), solitary=frozenset() if settings.memory else commands
        )
    if settings.groups or not settings.memory:
        return _build_group_policy(settings)
    return NoEviction()


def _build_group_policy(settings: Settings) -> GroupPolicy:
    """Build the groups. Commands in no group form llama-swap's default group, unless the config has memory pools."""
    groups = [
        ModelGroup(frozenset(group.members), swap=group.swap, exclusive=group.exclusive, persistent=group.persistent)
        for group in settings.groups.values()
    ]
    grouped = frozenset().union(*(group.members for group in groups))
    rest = frozenset(id for id, entry in settings.models.items() if entry.cmd) - grouped
    return GroupPolicy((*groups, ModelGroup(rest)) if rest and not settings.memory else tuple(groups))


def _parse_need(text: str, pools: Mapping[str, float], pool: str) -> MemoryNeed:
    """Parse `2.1G`, or with pools `cuda 20G, cpu 2G`.

    Raises:
        ValueError: a size is invalid.
    """
    need: dict[str, float] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition(" ")
        if size and name in pools:
            need[name] = parse_size(size)
        else:
            need[pool] = parse_size(part)
    return need
