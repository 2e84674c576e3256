"""Resolves the names that clients send: profile pins, selectors, and aliases that clients added. Pure, no I/O.

A profile's pins come first, then selectors (`pin`, `warm`, `spillover`), as in llama-swap. Aliases come from Ollama's
`/api/copy` and live as long as the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from eardrum.config import Settings
from eardrum.config.llama_swap import ModelSelector
from eardrum.errors import InvalidRequestError, ModelNotFoundError, NotFoundError
from eardrum.gateway.models.names import LATEST_TAG, list_spellings
from eardrum.gateway.scheduler import ModelState

LEAVING_STATES = (ModelState.DRAINING, ModelState.STOPPING)


@dataclass(frozen=True, slots=True)
class SelectorTarget:
    """One of a selector's models, as it is now."""

    name: str
    state: ModelState | None = None
    """None if another server has it, which tells nobody."""
    requests: int = 0
    """Those it holds, waiting ones included, whichever name they asked for."""


class NameResolver:
    """The profiles and selectors of the config, and which profile is active: none at first."""

    def __init__(self, settings: Settings):
        self.profiles = settings.profiles
        self.selectors = settings.selectors
        self.active_profile = ""
        """The active profile; empty is none."""

    def activate_profile(self, profile: str) -> bool:
        """Make a profile the active one, or none if the name is empty. Returns whether that changes anything.

        Raises:
            NotFoundError: there is no such profile.
        """
        if profile and profile not in self.profiles:
            known = f"Profiles: {', '.join(self.profiles)}." if self.profiles else "The config has no `profiles:`."
            raise NotFoundError(f"There is no profile {profile!r}. {known}")
        before, self.active_profile = self.active_profile, profile
        return self.active_profile != before

    def has(self, name: str) -> bool:
        """Whether it decides what this name stands for."""
        return name in self.selectors or (bool(self.active_profile) and name in self.profiles[self.active_profile].pins)

    def resolve_name(self, name: str, look: Callable[[str], SelectorTarget]) -> str:
        """The name of the model, or of an alias of it, that a client gets who asks for `name`.

        `look` tells how a target is now.

        Raises:
            ModelNotFoundError: the active profile refuses the name.
        """
        name = self._apply_pin(name)
        selector = self.selectors.get(name)
        return choose_target(selector, [look(target) for target in selector.targets]) if selector and selector.targets else name

    def _apply_pin(self, name: str) -> str:
        pins = self.profiles[self.active_profile].pins if self.active_profile else {}
        if name not in pins:
            return name
        if target := pins[name]:
            return target
        raise ModelNotFoundError(
            f"The active profile {self.active_profile} has no model for {name!r}: "
            "ask for another name, or choose another profile "
            f"with PUT /api/profiles/active."
        )


def choose_target(selector: ModelSelector, targets: Sequence[SelectorTarget]) -> str:
    """The target that the next request gets. There is at least one."""
    match selector.strategy:
        case "pin":
            return targets[0].name
        case "warm":
            return _find_warmest(targets).name
        case "spillover":
            return _find_with_room(targets, selector.settings.spillover).name


def _find_warmest(targets: Sequence[SelectorTarget]) -> SelectorTarget:
    for state in (ModelState.READY, ModelState.STARTING):
        if up := next((target for target in targets if target.state is state), None):
            return up
    return targets[0]


def _find_with_room(targets: Sequence[SelectorTarget], room: int) -> SelectorTarget:
    """The calmest of those that are up, while it has room for one more; then the next that is not up yet."""
    staying = [target for target in targets if target.state not in LEAVING_STATES]
    up = [target for target in staying if target.requests or target.state in (ModelState.READY, ModelState.STARTING)]
    calmest = min(up, key=lambda target: target.requests, default=None)
    if calmest and calmest.requests < room:
        return calmest
    down = [target for target in staying if target not in up]
    down.sort(key=lambda target: target.state is ModelState.FAILED)  # one that could not be started a moment ago comes last
    return next(iter(down), calmest or targets[0])


MAX_ALIASES = 1000
"""How many names clients may add: they live in memory."""

MAX_ALIAS_LENGTH = 500
"""Characters of such a name: Ollama's own, with host, owner, model and tag, have 350 at most."""


class ClientAliases:
    """Names to the names that they stand for, which are no copies themselves. `:latest` behind a name changes nothing."""

    def __init__(self) -> None:
        self._meanings: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return bool(self.get(name))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Names and what they stand for."""
        return iter(self._meanings.items())

    def get(self, name: str) -> str:
        """What a name stands for; empty if it is no copy."""
        if not self._meanings:
            return ""
        return next((self._meanings[spelling] for spelling in list_spellings(name) if spelling in self._meanings), "")

    def add(self, name: str, meaning: str) -> None:
        """Let a name stand for another, instead of what it stood for before.

        Raises:
            InvalidRequestError: the name is too long, or there are too many.
        """
        if len(name) > MAX_ALIAS_LENGTH:
            raise InvalidRequestError(f"The name of a copy has at most {MAX_ALIAS_LENGTH} characters.", param="destination")
        self.remove(name)
        if len(self._meanings) >= MAX_ALIASES:
            raise InvalidRequestError(f"There are {MAX_ALIASES} copies already: delete some, or use `aliases:` in the config.")
        self._meanings[name.removesuffix(LATEST_TAG)] = meaning

    def remove(self, name: str) -> bool:
        """Drop a copy; False if the name is none."""
        with suppress(StopIteration):
            del self._meanings[next(spelling for spelling in list_spellings(name) if spelling in self._meanings)]
            return True
        return False
