"""A client of the stream route for tests: pushes audio at some speed, and keeps what comes with the time it came."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import ServerUnderTest

PIECE_S = 0.1
PATIENCE_S = 60.0


class StreamClient:
    """One open socket."""

    def __init__(self, socket: ClientConnection):
        self.socket = socket
        self.heard: list[tuple[float, dict[str, Any]]] = []
        """Messages and when they came."""
        self.code = 0
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read_messages())

    async def _read_messages(self) -> None:
        try:
            async for message in self.socket:
                self.heard.append((time.monotonic(), json.loads(message)))
                await self._notify()
        except ConnectionClosed:
            pass
        self.code = self.socket.close_code or 0
        await self._notify()

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def push_audio(self, audio: bytes, *, rate: int = 32_000, speed: float = 0.0) -> float:
        """Send audio of so many bytes a second, so many times faster than it was spoken, 0 as fast as can be; when it began."""
        began = time.monotonic()
        size = int(rate * PIECE_S)
        for start in range(0, len(audio), size):
            await self.socket.send(audio[start : start + size])
            if speed:
                await asyncio.sleep(max(0.0, began + (start + size) / rate / speed - time.monotonic()))
        return began

    async def send_message(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def wait_for_message(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Wait for the nth message of this type."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: len(self.list_messages(kind)) >= count or self.code)
        assert len(self.list_messages(kind)) >= count, (self.code, self.socket.close_reason, self.heard)
        return self.list_messages(kind)[count - 1]

    async def wait_for_close(self) -> int:
        """Wait until the server has closed; the code."""
        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: self.code)
        return self.code

    def list_messages(self, kind: str) -> list[dict[str, Any]]:
        """The messages of a type."""
        return [message for _, message in self.heard if message["type"] == kind]

    @property
    def text(self) -> str:
        """What was said, as far as it is certain."""
        return " ".join(message["text"] for message in self.list_messages("final") if message["text"])

    @property
    def errors(self) -> list[dict[str, Any]]:
        return [message["error"] for message in self.list_messages("error")]

    async def close(self) -> None:
        await self.socket.close()
        await self._reading


@asynccontextmanager
async def open_stream(
    server: ServerUnderTest, path: str = "/v1/audio/transcriptions/stream", **query: str
) -> AsyncIterator[StreamClient]:
    """An open session."""
    address = f"ws{server.address.removeprefix('http')}{path}?{urlencode(query)}"
    async with connect(address, max_size=None) as socket:
        session = StreamClient(socket)
        try:
            yield session
        finally:
            await session.close()
