"""ASGI in types, and the few replies that edges written without a framework need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientGoneError(Exception):
    """The client hung up; nobody is left to answer."""


def header(scope: Scope, name: bytes) -> str:
    """The first header of this lower-case name; empty when there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
