"""Further names for models that clients have added, as Ollama's `/api/copy` does. They live as long as the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from eardrum.errors import InvalidRequestError
from eardrum.gateway.names import LATEST, spellings

MOST = 1000
"""How many names clients may add: they live in memory."""

LONGEST = 500
"""Characters of such a name: Ollama's own, with host, owner, model and tag, have 350 at most."""


class Copies:
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
        return next((self._meanings[spelling] for spelling in spellings(name) if spelling in self._meanings), "")

    def add(self, name: str, meaning: str) -> None:
        """Let a name stand for another, instead of what it stood for before.

        Raises:
            InvalidRequestError: the name is too long, or there are too many.
        """
        if len(name) > LONGEST:
            raise InvalidRequestError(f"The name of a copy has at most {LONGEST} characters.", param="destination")
        self.forget(name)
        if len(self._meanings) >= MOST:
            raise InvalidRequestError(f"There are {MOST} copies already: delete some, or use `aliases:` in the config.")
        self._meanings[name.removesuffix(LATEST)] = meaning

    def forget(self, name: str) -> bool:
        """Drop a copy; False if the name is none."""
        with suppress(StopIteration):
            del self._meanings[next(spelling for spelling in spellings(name) if spelling in self._meanings)]
            return True
        return False
