"""Keys that last for minutes and open a WebSocket only, so that a page in a browser may hold one. Time is passed in."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from eardrum.api.realtime.config import Config
from eardrum.errors import BusyError

PREFIX = "ek_"
SHORTEST_S, USUAL_S, LONGEST_S = 10, 600, 7200
MOST = 1000
"""Keys at a time."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A key, and the configuration that sessions begin with which it opens."""

    value: str
    expires_at: float
    """Unix time."""
    config: Config


class Secrets:
    """The keys that are valid, in memory. They end with the server."""

    def __init__(self) -> None:
        self._valid: dict[str, Secret] = {}

    def made(self, config: Config, seconds: float, now: float) -> Secret:
        """A new key. It may be used any number of times until it expires.

        Raises:
            BusyError: there are too many.
        """
        self._valid = {value: secret for value, secret in self._valid.items() if secret.expires_at > now}
        if len(self._valid) >= MOST:
            first = min(secret.expires_at for secret in self._valid.values())
            raise BusyError(
                f"There are {MOST} valid client secrets already: ask for shorter-lived ones.", retry_after=first - now
            )
        secret = Secret(f"{PREFIX}{secrets.token_hex(24)}", now + seconds, config)
        self._valid[secret.value] = secret
        return secret

    def find(self, value: str, now: float) -> Secret | None:
        """The key of this value, if it is one and has not expired."""
        secret = self._valid.get(value)
        return secret if secret and secret.expires_at > now else None
