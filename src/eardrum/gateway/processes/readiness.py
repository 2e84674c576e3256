"""Waits until a server answers as it does once its model is loaded."""

from __future__ import annotations

import asyncio

import aiohttp

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 1.0
GROWTH = 1.25
TRY_S = 5.0
"""Time for one answer: a server that loads may take connections long before it answers."""


class Readiness:
    """Asks `url` until the answer is 200. `last` says in words what came of it so far."""

    def __init__(self, session: aiohttp.ClientSession, url: str):
        self._session = session
        self._url = url
        self.last = f"{url} was never asked"

    async def reached(self) -> None:
        """Wait for it. Asks at once, then quickly, then every second."""
        pause = FIRST_PAUSE_S
        while not await self._answers():
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE_S, pause * GROWTH)

    async def _answers(self) -> bool:
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
