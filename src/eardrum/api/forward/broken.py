"""How a client learns that an answer it already has a part of will not be finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from eardrum.api.asgi import Receive, Scope
from eardrum.errors import EardrumError

Worded = Callable[[EardrumError], dict[str, Any]]
"""An error as an object of the API."""

TYPED = ("/messages", "/responses")
"""Routes whose streams name the kind of each event; clients of the others look at the data alone."""

LINES = (b"application/x-ndjson", b"application/ndjson", b"application/jsonl", b"application/json-lines")


class CutOffError(Exception):
    """The answer ends here, short of its end. Whoever runs the application closes the connection over it."""


def last_words(kind: bytes, path: str, error: dict[str, Any], sent: bytes) -> bytes:
    """What a stream of this media type says at its end, after what was `sent` last; nothing if its format has no room for it."""
    if kind == b"text/event-stream":
        fresh = b"" if sent.endswith((b"\n\n", b"\r\n\r\n")) or not sent else b"\n\n"
        if path.endswith(TYPED):
            return fresh + b"event: error\ndata: " + json.dumps({"type": "error"} | error).encode() + b"\n\n"
        return fresh + b"data: " + json.dumps(error).encode() + b"\n\n"
    if kind in LINES:
        fresh = b"" if sent.endswith(b"\n") or not sent else b"\n"
        return fresh + json.dumps(error).encode() + b"\n"
    return b""


async def cut_off(scope: Scope, receive: Receive) -> None:
    """End the connection without ending the answer, so that no client takes what it has for the whole.

    Raises:
        CutOffError: the server that runs us has no better way.
    """
    hang_up = scope.get("extensions", {}).get("eardrum.hang_up")
    if not hang_up:
        raise CutOffError
    hang_up["call"]()
    while (await receive())["type"] != "http.disconnect":
        pass
