"""Builds the eviction policy from the config and from what is known of the models' memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from eardrum.config import Settings, matrix
from eardrum.config.diagnostics import KeyPath, format_path
from eardrum.errors import ConfigError
from eardrum.gateway.models.inventory import ADDRESS, Model
from eardrum.gateway.scheduler.policies import (
    CombinedPolicy,
    EvictionPolicy,
    GroupPolicy,
    MatrixPolicy,
    MemoryNeed,
    MemoryPolicy,
    ModelGroup,
    NoEviction,
)
from eardrum.units import parse_size

CPU = "cpu"


OVERHEAD_BYTES = 3e8
"""Bytes that libraries and buffers take beside a model's weights, before it has been measured."""


class PolicyFactory:
    """Groups, matrix and pools of a config. Models are learnt as they are first asked for: nobody else can be loaded.

    Raises:
        ConfigError: a size cannot be read, or names no pool.
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
        """What the models that were learnt take of the pools, as far as that is known."""
        return self._needs

    @property
    def policy(self) -> EvictionPolicy:
        """What holds now."""
        if not self.pools:
            return self._config_policy
        return CombinedPolicy((self._config_policy, MemoryPolicy(self.pools, dict(self._needs), self._persistent)))

    def learn_model(self, model: Model) -> bool:
        """Take in what is known of a model before it is loaded. Whether that changed the rules."""
        if not self.pools or model.engine == ADDRESS or model.id in self._needs:
            return False
        self._needs[model.id] = self._estimate_need(model)
        return True

    def record_measurement(self, model: Model, need: MemoryNeed) -> bool:
        """Take in what the model was seen to take; the most counts. Whether that changed the rules."""
        known = self.measured.get(model.id, {})
        most = {pool: max(known.get(pool, 0), need.get(pool, 0)) for pool in self.pools if pool in known or pool in need}
        if most == known:
            return False
        self.measured[model.id] = self._needs[model.id] = most
        return True

    def needs_measuring(self, model: Model) -> bool:
        """Whether nobody has said what it needs, and somebody would like to know."""
        return bool(self.pools) and model.engine != ADDRESS and not (model.entry and model.entry.memory)

    def _estimate_need(self, model: Model) -> MemoryNeed:
        """What the config says, else what was seen, else what its files suggest; with nothing to go by, all there is."""
        pool = self._choose_pool(model)
        if model.entry and model.entry.memory:
            return _parse_need(model.entry.memory, self.pools, pool)
        if model.id in self.measured:
            return self.measured[model.id]
        if pool not in self.pools:
            return {}
        return {pool: model.size + OVERHEAD_BYTES if model.size else self.pools[pool]}

    def _choose_pool(self, model: Model) -> str:
        """Where it will be loaded, as far as can be told: where there is a pool for a GPU, there."""
        device = str(model.options.get("device", ""))
        return device if device in (*self.pools, CPU) else self._first_pool

    @property
    def _first_pool(self) -> str:
        return _find_first_pool(self.pools)


def find_wrong_sizes(settings: Settings) -> Iterator[tuple[KeyPath, str]]:
    """Sizes of pools and models that cannot be read: the setting, and what is wrong with it."""
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
        return MatrixPolicy(sets, matrix.list_eviction_costs(settings.matrix), alone=frozenset() if settings.memory else commands)
    if settings.groups or not settings.memory:
        return _build_group_policy(settings)
    return NoEviction()


def _build_group_policy(settings: Settings) -> GroupPolicy:
    """Commands in no group are llama-swap's default group, unless memory decides about them."""
    groups = [
        ModelGroup(frozenset(group.members), swap=group.swap, exclusive=group.exclusive, persistent=group.persistent)
        for group in settings.groups.values()
    ]
    grouped = frozenset().union(*(group.members for group in groups))
    rest = frozenset(id for id, entry in settings.models.items() if entry.cmd) - grouped
    return GroupPolicy((*groups, ModelGroup(rest)) if rest and not settings.memory else tuple(groups))


def _parse_need(text: str, pools: Mapping[str, float], pool: str) -> MemoryNeed:
    """`2.1G`, or with pools `cuda 20G, cpu 2G`.

    Raises:
        ValueError: it is no size.
    """
    need: dict[str, float] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition(" ")
        if size and name in pools:
            need[name] = parse_size(size)
        else:
            need[pool] = parse_size(part)
    return need
