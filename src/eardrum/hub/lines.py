"""What this program says: a line of JSON on stdout."""

from __future__ import annotations

import json
from typing import Any


def say(message: dict[str, Any]) -> None:
    """One line, at once: somebody waits for it."""
    print(json.dumps(message), flush=True)
