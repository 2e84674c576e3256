"""Errors as Ollama words them: `error` is a string and never an object."""

from __future__ import annotations

import math
import re
from typing import Any

from starlette.responses import JSONResponse, Response

from eardrum.errors import BusyError, EardrumError, UpstreamError

BUSY = "server busy, please try again.  maximum pending requests exceeded"

OWN = re.compile(
    r"/api/(version|tags|show|ps|chat|generate|embed|embeddings|pull|delete|copy|create|push|blobs/.*|me|status|experimental/.*)"
)
"""Paths at which only Ollama's clients knock, those that are not served included."""


CLIENTS_FAULT = (400, 413, 422)
"""Statuses with which an upstream refuses what the client asked: whose server it is does not matter."""

OURS_TO_MEND = (404, 405, 500)
"""Statuses of an upstream that would say something wrong as ours: the model is there, and this server has not failed."""


class UpstreamRefusedError(UpstreamError):
    """The server behind a model refuses or fails with a status that tells the client what to do."""

    def __init__(self, message: str, status: int, retry_after: float | None):
        super().__init__(message, retry_after=retry_after)
        self.kept = status


def of_upstream(model: str, status: int, said: str, retry_after: float | None = None) -> UpstreamError:
    """What an upstream answers, as the client's fault or the upstream's."""
    message = f"The server behind {model} answered {status}: {said}" if status else said
    if 400 <= status < 600 and status not in OURS_TO_MEND:
        return UpstreamRefusedError(said if status in CLIENTS_FAULT else message, status, retry_after)
    return UpstreamError(message, retry_after=retry_after)


def speaks(path: str) -> bool:
    """Whether a path is Ollama's, so that its clients must understand what goes wrong there."""
    return bool(OWN.fullmatch(path))


def body(error: EardrumError) -> dict[str, Any]:
    """An error as the body of an answer, or as the last line of one that has begun."""
    return {"error": BUSY if isinstance(error, BusyError) else error.message}


def refusal(error: EardrumError) -> Response:
    """An error as a response."""
    headers = {} if error.retry_after is None else {"retry-after": str(math.ceil(error.retry_after))}
    return JSONResponse(body(error), _status(error), headers)


def _status(error: EardrumError) -> int:
    if isinstance(error, UpstreamRefusedError):
        return error.kept
    return 503 if isinstance(error, BusyError) else error.status
