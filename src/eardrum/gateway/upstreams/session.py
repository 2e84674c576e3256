"""A live session with a runner: audio and commands go up while events come down, over one exchange."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Protocol

import aiohttp

from eardrum.errors import EardrumError, RunnerCrashedError, shortage
from eardrum.live import Clear, Commit, Configure, Ended, Finish, LiveEvent, Settings
from eardrum.wall import audio_message, command_message, event_from

AHEAD = 1 << 16
"""Bytes that may wait to be sent; whoever has more to say waits."""


def broken(error: aiohttp.ClientError | ConnectionError) -> EardrumError:
    """What it means that an exchange with a runner failed: mostly that the process is gone."""
    known = shortage(error, "to reach the model's process") if isinstance(error, OSError) else None
    return known or RunnerCrashedError(f"The connection to the model's process broke: {error}")


class LiveSession(Protocol):
    """One stream of audio. `feed` and the commands belong to one task, `events` to another."""

    async def feed(self, audio: bytes) -> None:
        """Hand over the next bytes of audio, any number of them; waits while too many were not heard."""

    async def configure(self, settings: Settings) -> None:
        """Go by other settings; answered by `Refused` where that cannot be."""

    async def commit(self) -> None:
        """End the utterance; answered by `Committed`, then `Final` or `Failed`, or by `Refused`."""

    async def clear(self) -> None:
        """Forget the utterance in progress; answered by `Cleared`."""

    async def finish(self) -> None:
        """No more audio comes; answered by the last finals and `Ended`, which ends `events`."""

    def events(self) -> AsyncGenerator[LiveEvent, None]:
        """Events as they come, up to `Ended`.

        Raises:
            EardrumError: the session is over, and why.
        """


class RunnerSession:
    """One that ends with the runner's process."""

    def __init__(self, http: aiohttp.ClientSession, settings: Settings):
        self._http = http
        self._settings = settings
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.over = False
        """Nobody listens any more, and whoever reads the events knows why."""

    async def feed(self, audio: bytes) -> None:
        """Hand over the next bytes of audio, any number of them; waits while the runner is far behind."""
        await self._put(audio_message(audio))

    async def configure(self, settings: Settings) -> None:
        """Go by other settings; answered by `Refused` where that cannot be."""
        await self._put(command_message(Configure(settings)))

    async def commit(self) -> None:
        """End the utterance; answered by `Committed`, then `Final` or `Failed`, or by `Refused`."""
        await self._put(command_message(Commit()))

    async def clear(self) -> None:
        """Forget the utterance in progress; answered by `Cleared`."""
        await self._put(command_message(Clear()))

    async def finish(self) -> None:
        """No more audio comes; answered by the last finals and `Ended`, which ends `events`."""
        await self._put(command_message(Finish()))

    async def events(self) -> AsyncGenerator[LiveEvent, None]:
        """Events as they come, up to `Ended`. Closing the iterator hangs up.

        Raises:
            RunnerCrashedError: the model's process died.
            EardrumError: the session is over, and why.
        """
        headers = {"x-eardrum-live": json.dumps(self._settings.to_json())}
        try:
            async with self._http.post("http://runner/live", data=self._messages(), headers=headers) as response:
                async for line in response.content:
                    event = event_from(line)
                    yield event
                    if isinstance(event, Ended):
                        return
        except (aiohttp.ClientError, ConnectionError) as error:
            raise broken(error) from error
        finally:
            self.over = True
            self._room.set()
            self._more.set()
        raise RunnerCrashedError("The model's process ended in the middle of a live session.")

    async def _put(self, message: bytes) -> None:
        if self.over:
            return
        self._waiting.append(message)
        self._size += len(message)
        self._more.set()
        if self._size > AHEAD:
            self._room.clear()
        await self._room.wait()

    async def _messages(self) -> AsyncIterator[bytes]:
        """Never ends by itself: the exchange does, with the last event."""
        while not self.over:
            await self._more.wait()
            self._more.clear()
            if self._waiting:
                piece = b"".join(self._waiting)
                self._waiting.clear()
                self._size = 0
                yield piece
                self._room.set()
