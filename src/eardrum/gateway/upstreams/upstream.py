"""Any address that serves a model. Here: a runner of our own, on a unix socket."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aiohttp

from eardrum.errors import RunnerCrashedError, error_from_json
from eardrum.gateway.spool import Source
from eardrum.gateway.upstreams.session import RunnerSession, broken
from eardrum.live import Settings
from eardrum.types import Event, Opened, Request, Segment, Summary

EVENTS: dict[str, Any] = {"opened": Opened, "segment": Segment, "summary": Summary}
CANCEL = aiohttp.ClientTimeout(total=2)
LINE_BYTES = 1 << 20
"""Longest line of an answer that is read; a segment with all its words stays far below."""


class RunnerUpstream:
    """A runner's side of the wall."""

    def __init__(self, socket: str):
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=LINE_BYTES,
        )

    async def transcribe(self, request: Request, audio: Source) -> AsyncGenerator[Event, None]:
        """Send the audio as it comes and yield events as they come. Closing the iterator hangs up.

        Raises:
            RunnerCrashedError: the connection ended before the answer did.
            EardrumError: what the runner answered.
        """
        name = uuid.uuid4().hex
        headers = {"x-eardrum-id": name, "x-eardrum-request": json.dumps(replace(request, extra=()).to_json())}
        ended = False
        try:
            async with self._session.post("http://runner/transcribe", data=audio.read(), headers=headers) as response:
                async for line in response.content:
                    ((kind, data),) = json.loads(line).items()
                    ended = kind in ("summary", "error")
                    if kind == "error":
                        raise error_from_json(data)
                    yield EVENTS[kind].from_json(data)
                    if ended:
                        return
        except (aiohttp.ClientError, ConnectionError) as error:
            raise broken(error) from error
        finally:
            if not ended:
                await self._cancel(name)
        raise RunnerCrashedError("The model's process ended in the middle of its answer.")

    def live(self, settings: Settings) -> RunnerSession:
        """A live session; it begins when its events are asked for."""
        return RunnerSession(self._session, settings)

    async def _cancel(self, name: str) -> None:
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.delete(f"http://runner/transcribe/{name}", timeout=CANCEL):
                pass

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
