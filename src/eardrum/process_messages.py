"""Messages of a child process to the gateway that started it: lines of JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def reserve_stdout() -> None:
    """Keep stdout for messages to the gateway: anything that a library prints, from Python or C, goes to stderr."""
    sys.__stdout__ = os.fdopen(os.dup(1), "w", encoding="utf-8")  # type: ignore[misc]
    sys.stdout = sys.stderr
    os.dup2(2, 1)


def write_message(message: dict[str, Any]) -> None:
    """Write a message to the gateway."""
    print(json.dumps(message), file=sys.__stdout__, flush=True)
