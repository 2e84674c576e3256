"""Names that stand for models: the pins of a profile, and selectors. Which model a name means is decided here, purely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eardrum.config import Settings
from eardrum.config.llama_swap import Selector
from eardrum.errors import ModelNotFoundError, NotFoundError
from eardrum.gateway.scheduler import State

GOING = (State.DRAINING, State.STOPPING)


@dataclass(frozen=True, slots=True)
class Target:
    """One of a selector's models, as it is now."""

    name: str
    state: State | None = None
    """None if another server has it, which tells nobody."""
    requests: int = 0
    """Those it holds, waiting ones included, whichever name they asked for."""


class Selection:
    """The profiles and selectors of the config, and which profile is active: none at first."""

    def __init__(self, settings: Settings):
        self.profiles = settings.profiles
        self.selectors = settings.selectors
        self.active = ""
        """The active profile; empty is none."""

    def activate(self, profile: str) -> bool:
        """Make a profile the active one, or none if the name is empty. Returns whether that changes anything.

        Raises:
            NotFoundError: there is no such profile.
        """
        if profile and profile not in self.profiles:
            known = f"Profiles: {', '.join(self.profiles)}." if self.profiles else "The config has no `profiles:`."
            raise NotFoundError(f"There is no profile {profile!r}. {known}")
        before, self.active = self.active, profile
        return self.active != before

    def has(self, name: str) -> bool:
        """Whether it decides what this name stands for."""
        return name in self.selectors or (bool(self.active) and name in self.profiles[self.active].pins)

    def meant(self, name: str, look: Callable[[str], Target]) -> str:
        """The name of the model, or of an alias of it, that a client gets who asks for `name`.

        `look` tells how a target is now.

        Raises:
            ModelNotFoundError: the active profile refuses the name.
        """
        name = self._pinned(name)
        selector = self.selectors.get(name)
        return chosen(selector, [look(target) for target in selector.targets]) if selector and selector.targets else name

    def _pinned(self, name: str) -> str:
        pins = self.profiles[self.active].pins if self.active else {}
        if name not in pins:
            return name
        if target := pins[name]:
            return target
        raise ModelNotFoundError(
            f"The active profile {self.active} has no model for {name!r}: ask for another name, or choose another profile "
            f"with PUT /api/profiles/active."
        )


def chosen(selector: Selector, targets: Sequence[Target]) -> str:
    """The target that the next request gets. There is at least one."""
    match selector.strategy:
        case "pin":
            return targets[0].name
        case "warm":
            return _warmest(targets).name
        case "spillover":
            return _with_room(targets, selector.settings.spillover).name


def _warmest(targets: Sequence[Target]) -> Target:
    for state in (State.READY, State.STARTING):
        if up := next((target for target in targets if target.state is state), None):
            return up
    return targets[0]


def _with_room(targets: Sequence[Target], room: int) -> Target:
    """The calmest of those that are up, while it has room for one more; then the next that is not up yet."""
    staying = [target for target in targets if target.state not in GOING]
    up = [target for target in staying if target.requests or target.state in (State.READY, State.STARTING)]
    calmest = min(up, key=lambda target: target.requests, default=None)
    if calmest and calmest.requests < room:
        return calmest
    down = [target for target in staying if target not in up]
    down.sort(key=lambda target: target.state is State.FAILED)  # one that could not be started a moment ago comes last
    return next(iter(down), calmest or targets[0])
