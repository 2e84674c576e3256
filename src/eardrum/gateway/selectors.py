"""Resolves the names that clients send: profile pins, selectors, and aliases that clients added. Pure, no I/O.

A profile's pins come first, then selectors (`pin`, `warm`, `spillover`), as in llama-swap. Aliases come from Ollama's
`/api/copy` and live as long as the server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from eardrum.config import Settings
from eardrum.config.llama_swap import ModelSelector
from eardrum.errors import InvalidRequestError, ModelNotFoundError, NotFoundError
from eardrum.gateway.models.names import LATEST_TAG, list_spellings
from eardrum.gateway.scheduler import ModelState

log = logging.getLogger(__name__)

LEAVING_STATES = (ModelState.DRAINING, ModelState.STOPPING)


class SelectorTarget(Struct, frozen=True):
    """One target of a selector, with its current state."""

    name: str
    state: ModelState | None = None
    """None if the name is not a model of this server."""
    requests: int = 0
    """Requests that the model holds, including waiting ones."""


class NameResolver:
    """Resolves names with the profiles and selectors of the config. No profile is active at first."""

    def __init__(self, settings: Settings):
        self.profiles = settings.profiles
        self.selectors = settings.selectors
        self.active_profile = ""
        """The active profile; empty if none is."""

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
        """Whether a selector or the active profile defines this name."""
        return name in self.selectors or (bool(self.active_profile) and name in self.profiles[self.active_profile].pins)

    def list_targets(self, name: str) -> Sequence[str]:
        """List the names that requests for `name` may get: those of a selector, else the name itself."""
        selector = self.selectors.get(name)
        if not selector:
            return (name,)
        return selector.targets[:1] if selector.strategy == "pin" else selector.targets

    def resolve_name(self, name: str, look_up: Callable[[str], SelectorTarget]) -> str:
        """Return the name or alias of the model that requests for `name` get.

        `look_up` returns the current state of a target.

        Raises:
            ModelNotFoundError: the active profile refuses the name.
        """
        name = self._apply_pin(name)
        selector = self.selectors.get(name)
        return (
            choose_target(selector, [look_up(target) for target in selector.targets]) if selector and selector.targets else name
        )

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
    """Choose the target of the next request. There must be at least one."""
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
    """Find the loaded target with the fewest requests while it has room for one more, else the next target that is not loaded."""
    staying = [target for target in targets if target.state not in LEAVING_STATES]
    up = [target for target in staying if target.requests or target.state in (ModelState.READY, ModelState.STARTING)]
    least_busy = min(up, key=lambda target: target.requests, default=None)
    if least_busy and least_busy.requests < room:
        return least_busy
    down = [target for target in staying if target not in up]
    down.sort(key=lambda target: target.state is ModelState.FAILED)  # a target that failed to start recently comes last
    return next(iter(down), least_busy or targets[0])


MAX_ALIASES = 1000
"""Maximum number of names that clients may add; they are kept in memory."""

MAX_ALIAS_LENGTH = 500
"""Longest such name. Ollama's own names, with host, owner, model and tag, have at most 350 characters."""


class ClientAliases:
    """Maps names that clients added to the names of models. A suffix `:latest` makes no difference.

    `is_defined` returns whether a model or a selector has exactly a name. One that gets the name of a copy later takes its place.
    """

    def __init__(self, is_defined: Callable[[str], bool] = lambda name: False) -> None:
        self._targets: dict[str, str] = {}
        self._is_defined = is_defined

    def __contains__(self, name: str) -> bool:
        return bool(self.get(name))

    def __len__(self) -> int:
        return len(self._targets)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Iterate over names and their targets."""
        return iter([(name, target) for name in list(self._targets) if (target := self.get(name))])

    def get(self, name: str) -> str:
        """Return the target of a name; empty if clients have not added the name."""
        added = self._find_spelling(name) if self._targets else ""
        if added and any(map(self._is_defined, list_spellings(added))):
            log.warning("The copy %s of %s was dropped: a model or selector has this name now.", added, self._targets.pop(added))
        return self._targets.get(added, "")

    def add(self, name: str, target: str) -> None:
        """Add a name for a target, or give an existing name another target.

        Raises:
            InvalidRequestError: the name is too long, or there are too many.
        """
        if len(name) > MAX_ALIAS_LENGTH:
            raise InvalidRequestError(f"The name of a copy has at most {MAX_ALIAS_LENGTH} characters.", param="destination")
        self.remove(name)
        if len(self._targets) >= MAX_ALIASES:
            raise InvalidRequestError(f"There are {MAX_ALIASES} copies already: delete some, or use `aliases:` in the config.")
        self._targets[name.removesuffix(LATEST_TAG)] = target

    def remove(self, name: str) -> bool:
        """Remove a name. Return False if clients have not added it."""
        return bool(self.get(name)) and bool(self._targets.pop(self._find_spelling(name)))

    def _find_spelling(self, name: str) -> str:
        return next((spelling for spelling in list_spellings(name) if spelling in self._targets), "")
