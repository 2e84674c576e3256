"""A runner: a child process of our own program that serves one model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from eardrum.engines import cuda
from eardrum.errors import DeviceError, ModelLoadError, error_from_json
from eardrum.gateway.logs import Log
from eardrum.gateway.processes.child import GRACE_S, Child


class Process(Child):
    """One runner. `start` returns it when it serves; `ended` completes when it is gone."""

    hears_stdout = False
    ready: dict[str, Any]
    """What the runner said when it was ready."""
    trying = ""
    """The device on which it was loading the model when it was last heard of, where that is known to end processes."""

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        within_s: float,
        environment: Mapping[str, str] | None = None,
        hint: str = "",
        said: Log | None = None,
    ) -> Process:
        """Start `command`, with `environment` added to our own, and wait for its line of JSON on stdout.

        What it logs goes into `said`. `hint` is told to whoever reads that it did not behave like a runner. The child gets a
        pipe as stdin whose end tells it that the gateway is gone.

        Raises:
            DeviceError: it died when it tried a GPU.
            ModelLoadError: it said why it failed, died, or was not ready in time.
            OSError: it cannot be started.
        """
        process = await cls.spawn(name, command, environment or {}, said)
        try:
            async with asyncio.timeout(within_s):
                await process._greet(hint)
        except TimeoutError:
            await process.clear()
            raise ModelLoadError(f"{name} was not ready after {within_s:g} s (start_seconds). {process.last_words}") from None
        except BaseException:
            await process.clear()
            raise
        process.has_started()
        return process

    async def _greet(self, hint: str) -> None:
        """Listen until it is ready."""
        message = await self._message(hint)
        while "trying" in message:
            self.trying = message["trying"]
            message = await self._message(hint)
        if "failed" in message:
            raise error_from_json(message["failed"])
        self.ready = message["ready"]

    async def _message(self, hint: str) -> dict[str, Any]:
        assert self._child.stdout
        reading = asyncio.ensure_future(self._child.stdout.readline())
        either: list[asyncio.Future[Any]] = [reading, self.exited]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([reading], timeout=GRACE_S)  # what the process said last may still be on its way
        if not reading.done() or not reading.result():
            reading.cancel()
            await asyncio.shield(self.ended)
            if self.trying:
                tried = f"The process of {self.name} {self.ending} when it tried the GPU"
                raise DeviceError(f"{tried} ({self.last_line}): {cuda.remedy_for(self.last_line)}.")
            raise ModelLoadError(f"The process of {self.name} {self.ending} before it was ready. {self.last_words}{hint}")
        line = reading.result()
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            said = line.decode(errors="replace").strip()
            raise ModelLoadError(f"The process of {self.name} is no runner: it says {said[:100]!r}.{hint}") from None
        return message
