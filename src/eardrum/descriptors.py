"""Descriptors of this process: a reserve of them is kept, so that connections never take what requests need."""

from __future__ import annotations

import logging
import resource
import time

log = logging.getLogger(__name__)

RESERVED = 256
"""At most. A request may need three beside its connection: a file, and a connection to its model and one more."""

SAID_S = 60.0
"""How often it is said that they are short."""


class Descriptors:
    """Tells by the number that a new connection was given whether few are left: systems give the lowest that is free."""

    def __init__(self) -> None:
        self._said = float("-inf")

    @property
    def limit(self) -> int:
        """How many there can be; 0 if nobody knows."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return 0 if soft == resource.RLIM_INFINITY else soft

    def are_short(self, number: int) -> bool:
        """Whether this one is of the reserve. Said in the log, now and then."""
        limit = self.limit
        if not limit or number < limit - min(RESERVED, limit // 4):
            return False
        if (now := time.monotonic()) - self._said > SAID_S:
            self._said = now
            log.warning(
                "File descriptors are short: connection %d of at most %d. Idle connections are closed, others refused: "
                "raise `ulimit -n` (LimitNOFILE of a service).",
                number,
                limit,
            )
        return True


descriptors = Descriptors()
"""Those of this process."""
