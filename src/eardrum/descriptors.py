"""Descriptors of this process: a reserve of them is kept, so that connections never take what requests need."""

from __future__ import annotations

import logging
import resource
import time
from pathlib import Path

log = logging.getLogger(__name__)

RESERVED = 256
"""At most. A request may need three beside its connection: a file, and a connection to its model and one more."""

SAID_S = 60.0
"""How often it is said that they are short."""


class Descriptors:
    """Tells whether few are left. They are counted only where many connections, or a high number of one, make it likely."""

    def __init__(self) -> None:
        self._said = float("-inf")

    @property
    def limit(self) -> int:
        """How many there can be; 0 if nobody knows."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return 0 if soft == resource.RLIM_INFINITY else soft

    def are_short(self, number: int, connections: int) -> bool:
        """Whether only the reserve is left, beside a new connection of this number and as many. Said in the log, now and then."""
        limit = self.limit
        if not limit or (number < limit // 2 and connections < limit // 4):
            return False
        try:
            used = sum(1 for _ in Path("/dev/fd").iterdir())
        except OSError:  # to look takes one as well
            used = limit
        if used < limit - min(RESERVED, limit // 4):
            return False
        if (now := time.monotonic()) - self._said > SAID_S:
            self._said = now
            log.warning(
                "File descriptors are short: %d of %d are in use. Idle connections are closed, others refused: "
                "raise `ulimit -n` (LimitNOFILE of a service).",
                used,
                limit,
            )
        return True


descriptors = Descriptors()
"""Those of this process."""
