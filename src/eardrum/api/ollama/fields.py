"""Fields that several requests share. Pure."""

from __future__ import annotations

from typing import Any

from eardrum.errors import InvalidRequestError


def named(wish: dict[str, Any]) -> str:
    """The model's name in a request.

    Raises:
        InvalidRequestError: there is none.
    """
    name = wish.get("model") or wish.get("name")
    if not isinstance(name, str) or not name.strip():
        raise InvalidRequestError("model is required", param="model")
    return name.strip()


def streams(wish: dict[str, Any]) -> bool:
    """Whether the answer comes in lines, which it does unless the client says no.

    Raises:
        InvalidRequestError: it says neither.
    """
    stream = wish.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequestError(f"stream must be true or false, not {str(stream)[:40]!r}.", param="stream")
    return stream is not False


def text(given: dict[str, Any], name: str, where: str = "") -> str:
    """A field that holds text, or nothing.

    Raises:
        InvalidRequestError: it holds something else.
    """
    value = given.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRequestError(f"{f'{where}.' if where else ''}{name} must be a string.", param=name)
    return value
