"""Waits until a server answers as it does once its model is loaded, or at least takes connections."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from urllib.parse import urlsplit

import aiohttp

from eardrum.gateway.processes.ports import LOCAL

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
GROWTH = 1.25
TRY_S = 5.0
"""Time for one answer: a server that loads may take connections long before it answers."""


class Readiness(ABC):
    """Tries a server until it is ready. `last` says in words what came of it so far."""

    last: str

    async def reached(self) -> None:
        """Wait for it. Tries at once, then quickly, then every second."""
        pause = FIRST_PAUSE_S
        while not await self._ready():
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * GROWTH)

    @abstractmethod
    async def _ready(self) -> bool: ...


class Answering(Readiness):
    """Asks `url` until the answer is 200."""

    def __init__(self, session: aiohttp.ClientSession, url: str):
        self._session = session
        self._url = url
        self.last = f"{url} was never asked"

    async def _ready(self) -> bool:
        try:
            async with asyncio.timeout(TRY_S), self._session.get(self._url) as response:
                self.last = f"{self._url} answers {response.status} and not 200 (checkEndpoint)"
                return response.status == 200
        except TimeoutError:
            self.last = f"{self._url} does not answer"
        except (aiohttp.ClientConnectorError, ConnectionError):
            self.last = f"nothing listens at {self._url}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.last = f"{self._url} does not speak HTTP: {error}"
        return False


class Listening(Readiness):
    """Connects until somebody takes the connection: more cannot be known of a server that is not to be asked."""

    def __init__(self, address: str):
        url = urlsplit(address)
        self._hosts = LOCAL.get(url.hostname or "", (url.hostname,))
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self.last = f"nothing listens at {address}"

    async def _ready(self) -> bool:
        for host in self._hosts:
            try:
                async with asyncio.timeout(TRY_S):
                    _, writer = await asyncio.open_connection(host, self._port)
            except OSError:  # a timeout is one too
                continue
            writer.close()
            return True
        return False
