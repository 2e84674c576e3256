"""What the scheduler asks of rules, whatever they are about."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

Loaded = Mapping[str, float]
"""Models that hold memory now, with the time of their last use: `LEAVING` and `CLAIMED` are two times that are none."""

LEAVING = float("-inf")
"""It is on its way out already: evicting it costs nothing more."""

CLAIMED = float("inf")
"""Somebody waits for it and is ahead: to be evicted only if nothing else helps."""


class Rules(Protocol):
    """Which models may be loaded together."""

    @property
    def kind(self) -> str:
        """What they are about, in a word."""
        ...

    def evicted(self, target: str, loaded: Loaded) -> frozenset[str]:
        """The models of `loaded` that must be gone before `target` may be started; never `target` itself."""
        ...

    def allows(self, models: Collection[str]) -> bool:
        """Whether these could have come to be loaded together, in some order."""
        ...


@dataclass(frozen=True, slots=True)
class Nothing:
    """No rules: what is loaded stays."""

    kind: ClassVar[str] = "nothing"

    def evicted(self, target: str, loaded: Loaded) -> frozenset[str]:
        """Nobody."""
        return frozenset()

    def allows(self, models: Collection[str]) -> bool:
        """Always."""
        return True


@dataclass(frozen=True, slots=True)
class Every:
    """Several rules at once. Those behind are asked about what those before them let stay."""

    rules: tuple[Rules, ...]
    kind: ClassVar[str] = "rules"

    def evicted(self, target: str, loaded: Loaded) -> frozenset[str]:
        """Whom any of them evicts."""
        return frozenset(self.blamed(target, loaded))

    def blamed(self, target: str, loaded: Loaded) -> dict[str, str]:
        """Whom any of them evicts, and of which kind that one is."""
        gone: dict[str, str] = {}
        for rules in self.rules:
            stay = {model: used for model, used in loaded.items() if model not in gone}
            gone |= dict.fromkeys(rules.evicted(target, stay), rules.kind)
        return gone

    def allows(self, models: Collection[str]) -> bool:
        """Whether all of them do."""
        return all(rules.allows(models) for rules in self.rules)


def blamed(rules: Rules, target: str, loaded: Loaded) -> dict[str, str]:
    """The models that must be gone before `target` may be started, each with the kind of the rule that says so."""
    return rules.blamed(target, loaded) if isinstance(rules, Every) else dict.fromkeys(rules.evicted(target, loaded), rules.kind)
