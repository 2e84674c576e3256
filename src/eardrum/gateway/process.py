"""A child process that serves one model: started, watched, stopped, its last words kept."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from asyncio.subprocess import PIPE
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from eardrum.errors import ModelLoadError, error_from_json

log = logging.getLogger(__name__)

LAST_LINES = 12
GRACE_S = 5.0
LIKELY: dict[int, str] = {
    signal.SIGILL: " (a library built for another processor)",
    signal.SIGKILL: " (by the system, if memory ran out)",
}
"""What usually lies behind a signal."""

LEVELS = {"DEBUG": logging.DEBUG, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.CRITICAL}


class Process:
    """One runner. `start` returns it when it serves; `ended` completes when it is gone."""

    def __init__(self, name: str, child: asyncio.subprocess.Process):
        self.name = name
        self.ready: dict[str, Any] = {}
        """What the runner said when it was ready."""
        self._child = child
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._reading = asyncio.ensure_future(self._read_log())
        self.ended = asyncio.ensure_future(self._wait())

    @classmethod
    async def start(
        cls, name: str, command: Sequence[str], *, within_s: float, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start `command`, with `environment` added to our own, and wait for its line of JSON on stdout.

        The child gets a session of its own, so that Ctrl-C reaches only the gateway, and a pipe as stdin whose
        end tells it that the gateway is gone.

        Raises:
            ModelLoadError: it said why it failed, died, or was not ready in time.
        """
        child = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **(environment or {})},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        process = cls(name, child)
        try:
            async with asyncio.timeout(within_s):
                await process._greet()
        except TimeoutError:
            await process.stop()
            raise ModelLoadError(f"{name} was not ready after {within_s:g} s (start_seconds). {process.last_words}") from None
        except BaseException:
            await process.stop()
            raise
        return process

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        code = self._child.returncode
        if code is None:
            return "is still running"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}{LIKELY.get(-code, '')}"
        return f"ended with exit code {code}"

    @property
    def last_words(self) -> str:
        """The last lines it logged."""
        return f"Its last words: {' / '.join(self._last_lines)}" if self._last_lines else "It logged nothing."

    async def stop(self) -> None:
        """Ask it to end, insist after `GRACE_S`, and wait until it is gone."""
        with suppress(ProcessLookupError):
            self._child.terminate()
        try:
            async with asyncio.timeout(GRACE_S):
                await asyncio.shield(self.ended)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._child.kill()
            await asyncio.shield(self.ended)

    async def _greet(self) -> None:
        assert self._child.stdout
        line = await self._child.stdout.readline()
        if not line:
            await asyncio.shield(self.ended)
            raise ModelLoadError(f"The process of {self.name} {self.ending} before it was ready. {self.last_words}")
        message = json.loads(line)
        if "failed" in message:
            raise error_from_json(message["failed"])
        self.ready = message["ready"]

    async def _wait(self) -> None:
        await self._child.wait()
        await self._reading

    async def _read_log(self) -> None:
        assert self._child.stderr
        while raw := await self._child.stderr.readline():
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.append(line)
            level = LEVELS.get(line.split(" ", 1)[0], logging.DEBUG)
            log.log(level, "%s: %s", self.name, line)
