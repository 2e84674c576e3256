"""An HTTP server that serves a model and is not a runner of ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

import aiohttp

from eardrum.errors import UnsupportedFeatureError
from eardrum.types import Event, Request


class ForeignUpstream:
    """The way to it. `address` is its URL without a path of a route, such as `http://127.0.0.1:5800`."""

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )

    def transcribe(self, request: Request, audio: AsyncIterator[bytes]) -> AsyncGenerator[Event, None]:
        """Send the audio as it comes and yield events as they come, as a runner does."""
        raise UnsupportedFeatureError("Models behind a command or an address do not transcribe yet.", param="model")

    async def close(self) -> None:
        """Close all connections."""
        await self.session.close()
