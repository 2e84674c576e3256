"""The answer to a chat or a prompt: in lines as it comes, or whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from eardrum.api.activity import Tokens
from eardrum.api.ollama.chunks import Piece
from eardrum.api.ollama.context import Turns, packed
from eardrum.api.ollama.durations import timestamp
from eardrum.api.ollama.exchange import Reply
from eardrum.api.ollama.fields import named, streams

Shape = Callable[[Piece], dict[str, Any]]
"""How a route puts a piece into words."""


class Answering:
    """One answer in the shape of its route, in lines or whole."""

    def __init__(self, wish: dict[str, Any], reply: Reply, shape: Shape):
        self._name = named(wish)
        self.lines = streams(wish)
        """Whether the client wants pieces as they come."""
        self._reply = reply
        self._shape = shape
        self._whole = Piece()
        self._said: list[str] = []

    async def add(self, piece: Piece) -> None:
        """Send one more piece, or keep it for the end."""
        if not piece:
            return
        self._said.append(piece.content)
        if self.lines:
            await self._reply.line(self._stamped(piece) | {"done": False})
        else:
            self._whole.add(piece)

    def count(self, last: dict[str, Any]) -> None:
        """Tell whoever runs the server what it took."""
        self._reply.record.tokens = Tokens(last.get("prompt_eval_count", 0), last.get("eval_count", 0))

    async def end(self, last: dict[str, Any], before: Turns | None = None) -> None:
        """Send the end: `last` is what comes after `done`. With what was said `before`, the client can go on from here."""
        if before is not None:
            last = last | {"context": packed((*before, ("assistant", "".join(self._said))))}
        if self.lines:
            await self._reply.line(self._stamped(Piece()) | last, last=True)
        else:
            await self._reply.whole(self._stamped(self._whole) | last)

    async def nothing(self, reason: str) -> None:
        """Answer without a word."""
        await self._reply.whole(self._stamped(Piece()) | {"done": True, "done_reason": reason})

    def _stamped(self, piece: Piece) -> dict[str, Any]:
        return {"model": self._name, "created_at": timestamp(time.time())} | self._shape(piece)
