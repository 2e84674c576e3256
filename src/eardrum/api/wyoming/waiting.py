"""Audio on its way from a client to its session, which may be far behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

AHEAD = 1 << 20
"""Bytes that may wait, besides those that wait in the session. Then the client is not read until some are gone."""


class Waiting:
    """A bounded stretch of bytes: one task puts, another takes."""

    def __init__(self, most: int = AHEAD) -> None:
        self._most = most
        self._held = bytearray()
        self._ended = False
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, audio: bytes) -> None:
        """Add these bytes, and wait while there are too many."""
        if self._ended:
            return  # nobody takes them
        self._held += audio
        self._more.set()
        if len(self._held) > self._most:
            self._room.clear()
        await self._room.wait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """What there is, as soon as there is any, until the end."""
        while self._held or not self._ended:
            if not self._held:
                self._more.clear()
                await self._more.wait()
                continue
            taken = bytes(self._held)
            self._held.clear()
            self._room.set()
            yield taken

    def end(self) -> None:
        """No more comes."""
        self._ended = True
        self._more.set()
        self._room.set()
