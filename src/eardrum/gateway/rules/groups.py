"""llama-swap's groups.

`swap`: one member at a time. `exclusive`: loading a member unloads the models of other groups. `persistent`: other
groups do not unload its members. The rules look at the model that is being loaded, so a group that is not exclusive
leaves an exclusive one alone, and both are then up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

from eardrum.gateway.rules.base import Loaded


@dataclass(frozen=True, slots=True)
class Group:
    """One group; the defaults are llama-swap's."""

    members: frozenset[str]
    swap: bool = True
    exclusive: bool = True
    persistent: bool = False


@dataclass(frozen=True, slots=True)
class Groups:
    """Models in no group evict nobody and are evicted by nobody.

    llama-swap's default group, of all commands that are in no other, is a group like others here.
    """

    kind: ClassVar[str] = "group"
    groups: tuple[Group, ...]
    _of: Mapping[str, Group] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        of = {member: group for group in self.groups for member in group.members}
        object.__setattr__(self, "_of", of)

    def evicted(self, target: str, loaded: Loaded) -> frozenset[str]:
        """Whom loading `target` unloads."""
        return frozenset(model for model in loaded if model != target and self._evicts(target, model))

    def allows(self, models: Collection[str]) -> bool:
        """Whether of every two one may be loaded while the other is up."""
        return not any(self._evicts(one, other) and self._evicts(other, one) for one, other in combinations(models, 2))

    def _evicts(self, target: str, model: str) -> bool:
        theirs, its = self._of.get(target), self._of.get(model)
        if theirs is None or its is None:
            return False
        if theirs is its:
            return theirs.swap
        return theirs.exclusive and not its.persistent
