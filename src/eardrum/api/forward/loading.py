"""Tells a streaming chat that its model is being loaded, as llama-swap's `sendLoadingState` does: as reasoning."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from eardrum.gateway.inventory import Model
from eardrum.gateway.scheduler import State
from eardrum.gateway.service import Service

EVERY_S = 1.0
"""Between two signs of life."""


class Loading:
    """Speaks while the block waits for its model. Says nothing if that is up. `end` it before anything else is said."""

    def __init__(self, service: Service, model: Model, say: Callable[[bytes], Awaitable[None]]):
        self._service = service
        self._model = model
        self._say = say
        self._over = asyncio.Event()
        self._speaking: asyncio.Task[None] | None = None
        self._loaded = False

    async def __aenter__(self) -> Self:
        if self._service.state(self._model) is not State.READY:
            self._speaking = asyncio.create_task(self._speak())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.end(loaded=False)

    async def end(self, *, loaded: bool = True) -> None:
        """Say no more, but for that it is loaded; returns once the last word is out."""
        self._loaded = loaded
        self._over.set()
        if self._speaking:
            await self._speaking
            self._speaking = None

    async def _speak(self) -> None:
        since, said = time.monotonic(), ""
        while not self._over.is_set():
            state = self._service.state(self._model)
            ahead = self._service.load(self._model) - 1
            now = f"{self._model.id} is {_STATES[state]}" + (f", {ahead} ahead" if ahead > 0 else "")
            await self._say(_event(f"{now}\n" if now != said else "."))
            said = now
            try:
                async with asyncio.timeout(EVERY_S):
                    await self._over.wait()
            except TimeoutError:
                continue
        if self._loaded:
            await self._say(_event(f"\n{self._model.id} is loaded ({time.monotonic() - since:.1f} s)\n\n"))


_STATES = dict.fromkeys(State, "waiting to be loaded") | {State.STARTING: "being loaded", State.READY: "loaded"}


def _event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]}).encode() + b"\n\n"
