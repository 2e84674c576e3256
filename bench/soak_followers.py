"""Clients that follow a server's logs and events for as long as it runs."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

EVENTS, LOGS = "/api/events", "/logs/stream"
PATHS = (EVENTS, EVENTS, LOGS, "/logs/stream/upstream")
"""Twice as many for events, which have most to say."""

KINDS = {"logData", "modelStatus", "profileChanged", "inflight", "activity"}


@dataclass(slots=True)
class StreamFollower:
    """One of them: how much came, when last, and why no more comes."""

    path: str
    bytes: int = 0
    heard_at: float = 0.0
    tracebacks: list[str] = field(default_factory=list)
    """Those in the server's log, each with the line before it and the line that ends it."""
    lost: str = ""
    _previous: str = ""
    """The line before."""
    _lines: list[str] = field(default_factory=list)
    """Of a traceback that has not ended."""
    _heard: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, http: aiohttp.ClientSession, port: int) -> None:
        """Read until cancelled. Whatever else ends that is a loss."""
        try:
            async with http.get(f"http://127.0.0.1:{port}{self.path}") as answer:
                if answer.status != 200:
                    self.lost = f"{self.path}: {answer.status}"
                    return
                async for line in _read_lines(answer.content):
                    self._count_line(line)
            self.lost = f"{self.path} ended"
        except (aiohttp.ClientError, ValueError, OSError) as error:
            self.lost = f"{self.path}: {error!r}"

    async def wait_for_event(self, moment: float) -> None:
        """Wait until something comes after that moment, unless nothing comes any more."""
        while self.heard_at < moment and not self.lost:
            self._heard.clear()
            await self._heard.wait()

    def _count_line(self, line: bytes) -> None:
        self.bytes += len(line)
        self.heard_at = time.monotonic()
        self._heard.set()
        if self.path == LOGS:
            self._look_for_tracebacks(line.decode(errors="replace"))
        if self.path == EVENTS and line.startswith(b"data:"):
            event = json.loads(line[5:])
            if event["type"] not in KINDS:
                raise ValueError(f"unknown event {event['type']!r}")
            json.loads(event["data"])

    def _look_for_tracebacks(self, line: str) -> None:
        """Collect the lines from the one before a traceback to the first one after it that is not indented."""
        if self._lines:
            self._lines.append(line)
            if not line.startswith(" "):
                self.tracebacks.append("\n".join(line[:4000] for line in self._lines[:60]))
                self._lines = []
        elif "Traceback" in line:
            self._lines = [self._previous, line]
        self._previous = line


async def _read_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Of any length."""
    rest = b""
    async for data in content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line


@asynccontextmanager
async def run_followers(port: int, count: int) -> AsyncIterator[list[StreamFollower]]:
    """So many of them, until the block ends."""
    followers = [StreamFollower(PATHS[number % len(PATHS)]) for number in range(count)]
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
        tasks = [asyncio.create_task(follower.follow(http, port)) for follower in followers]
        try:
            yield followers
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
