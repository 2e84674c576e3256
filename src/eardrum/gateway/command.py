"""Any command that serves a model over HTTP, as a child process."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from contextlib import suppress

import aiohttp

from eardrum.errors import ModelLoadError

EVERY_S = 0.1


class Command:
    """The process. `start` returns it when it serves; `ended` completes when it is gone."""

    def __init__(self, child: asyncio.subprocess.Process):
        self._child = child
        self.ended = asyncio.ensure_future(child.wait())

    @classmethod
    async def start(cls, name: str, line: str, *, check: str, within_s: float) -> Command:
        """Start `line` and wait until `check`, an address, answers 200.

        Raises:
            ModelLoadError: it died, or was not ready in time.
        """
        command = cls(await asyncio.create_subprocess_exec(*shlex.split(line), start_new_session=True))
        try:
            async with asyncio.timeout(within_s), aiohttp.ClientSession() as session:
                while not await _answers(session, check):
                    if command.ended.done():
                        raise ModelLoadError(f"The command of {name} {command.ending}.")
                    await asyncio.sleep(EVERY_S)
        except BaseException:
            await command.stop()
            raise
        return command

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        return f"ended with exit code {self._child.returncode}"

    @property
    def last_words(self) -> str:
        """The last lines it logged."""
        return ""

    async def stop(self) -> None:
        """Ask it to end and wait until it is gone."""
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGTERM)
        await self.ended


async def _answers(session: aiohttp.ClientSession, address: str) -> bool:
    with suppress(aiohttp.ClientError, OSError):
        async with session.get(address) as response:
            return response.status == 200
    return False
