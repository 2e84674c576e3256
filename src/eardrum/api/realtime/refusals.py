"""Errors as the Realtime API words them. Pure."""

from __future__ import annotations

from typing import Any

from eardrum.errors import EardrumError, InvalidRequestError


class UnknownEventError(InvalidRequestError):
    """The API has no event of this type."""

    code = "unknown_event"


def worded(error: EardrumError) -> dict[str, Any]:
    """The error as an object."""
    return {"type": _kind(error), "code": error.code, "message": error.message, "param": error.param}


def reason(error: EardrumError) -> str:
    """Why a connection ends with this error."""
    return f"{_kind(error)}.{error.code}"


def _kind(error: EardrumError) -> str:
    if error.status == 401:
        return "authentication_error"
    if error.status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if error.status < 500 else "server_error"
