"""Errors as Ollama words them: `error` is a string and never an object."""

from __future__ import annotations

import math
import re
from typing import Any

from starlette.responses import JSONResponse, Response

from eardrum.errors import BusyError, EardrumError

BUSY = "server busy, please try again.  maximum pending requests exceeded"

OWN = re.compile(
    r"/api/(version|tags|show|ps|chat|generate|embed|embeddings|pull|delete|copy|create|push|blobs/.*|me|status|experimental/.*)"
)
"""Paths at which only Ollama's clients knock, those that are not served included."""


def speaks(path: str) -> bool:
    """Whether a path is Ollama's, so that its clients must understand what goes wrong there."""
    return bool(OWN.fullmatch(path))


def body(error: EardrumError) -> dict[str, Any]:
    """An error as the body of an answer, or as the last line of one that has begun."""
    return {"error": BUSY if isinstance(error, BusyError) else error.message}


def refusal(error: EardrumError) -> Response:
    """An error as a response."""
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    return JSONResponse(body(error), 503 if isinstance(error, BusyError) else error.status, headers)
