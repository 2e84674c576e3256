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
LINE_BYTES = 1 << 20
LIKELY: dict[int, str] = {
    signal.SIGILL: " (a library built for another processor)",
    signal.SIGKILL: " (by the system, if memory ran out)",
}
"""What usually lies behind a signal."""

LEVELS = {"DEBUG": logging.DEBUG, "WARNING": logging.WARNING, "ERROR": logging.ERROR, "CRITICAL": logging.CRITICAL}


class Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Knows when the child is gone, even while a grandchild still holds its pipes."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        super().__init__(limit=LINE_BYTES, loop=loop)
        self.exited = loop.create_future()

    def process_exited(self) -> None:
        """Called by the event loop."""
        if not self.exited.done():
            self.exited.set_result(None)
        super().process_exited()


class Process:
    """One runner. `start` returns it when it serves; `ended` completes when it is gone."""

    def __init__(self, name: str, transport: asyncio.SubprocessTransport, protocol: Protocol, hint: str):
        self.name = name
        self.ready: dict[str, Any] = {}
        """What the runner said when it was ready."""
        self._transport = transport
        self._child = asyncio.subprocess.Process(transport, protocol, asyncio.get_running_loop())
        self._exited = protocol.exited
        self._hint = hint
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._reading = asyncio.ensure_future(self._read_log())
        self.ended = asyncio.ensure_future(self._wait())

    @classmethod
    async def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        within_s: float,
        environment: Mapping[str, str] | None = None,
        hint: str = "",
    ) -> Process:
        """Start `command`, with `environment` added to our own, and wait for its line of JSON on stdout.

        `hint` is told to whoever reads that it did not behave like a runner.

        The child gets a session of its own, so that Ctrl-C reaches only the gateway, and a pipe as stdin whose
        end tells it that the gateway is gone.

        Raises:
            ModelLoadError: it said why it failed, died, or was not ready in time.
        """
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.subprocess_exec(
            lambda: Protocol(loop),
            *command,
            env={**os.environ, **(environment or {})},
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )
        process = cls(name, transport, protocol, hint)
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
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(GRACE_S):
                await asyncio.shield(self.ended)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await asyncio.shield(self.ended)

    def _signal(self, number: signal.Signals) -> None:
        """To the child and to whatever it started: the session is its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, number)

    async def _greet(self) -> None:
        assert self._child.stdout
        reading = asyncio.ensure_future(self._child.stdout.readline())
        either: list[asyncio.Future[Any]] = [reading, self._exited]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([reading], timeout=GRACE_S)  # what the process said last may still be on its way
        if not reading.done() or not reading.result():
            reading.cancel()
            await asyncio.shield(self.ended)
            raise ModelLoadError(f"The process of {self.name} {self.ending} before it was ready. {self.last_words}{self._hint}")
        line = reading.result()
        try:
            message = json.loads(line)
        except ValueError:
            said = line.decode(errors="replace").strip()
            raise ModelLoadError(f"The process of {self.name} is no runner: it says {said[:100]!r}.{self._hint}") from None
        if "failed" in message:
            raise error_from_json(message["failed"])
        self.ready = message["ready"]

    async def _wait(self) -> None:
        await self._exited
        self._signal(signal.SIGKILL)  # what it has left behind would keep its memory, and our pipes
        await asyncio.wait([self._reading], timeout=GRACE_S)
        self._transport.close()

    async def _read_log(self) -> None:
        assert self._child.stderr
        while raw := await self._child.stderr.readline():
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.append(line)
            level = LEVELS.get(line.split(" ", 1)[0], logging.DEBUG)
            log.log(level, "%s: %s", self.name, line)
