"""Any command that serves a model over HTTP, as a child process."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from eardrum import config
from eardrum.config import words
from eardrum.errors import ModelLoadError
from eardrum.gateway.logs import Log
from eardrum.gateway.processes import ports, proc
from eardrum.gateway.processes.child import Child
from eardrum.gateway.processes.readiness import Answering, Listening, Readiness
from eardrum.gateway.processes.register import Register

log = logging.getLogger(__name__)

UNASKED = "none"
"""What stands for `checkEndpoint` where nothing is to be asked."""

PORT_S, PORT_EVERY_S = 1.0, 0.1
"""How long, and how often, a port is looked at that should be free."""

LAST_WARNING_S = 2.0
"""Between SIGTERM and SIGKILL for a command that its `cmdStop` did not stop, or that is to have no time."""

LOOK_S = 10.0
"""How often it is looked whether it is stopped."""

FOREGROUND = " It has to stay in the foreground as long as it serves: no `-d`, `--daemon` or `&`."


class Command(Child):
    """The process. `start` returns it when it serves; `ended` completes when it is gone."""

    _stop_command: str
    _environment: dict[str, str]
    _unload_s: float
    _stopping = False
    _still_since: float | None = None
    """Since when it is known to be stopped."""
    _hung = ""
    """Why it was ended that did not work any more."""

    @classmethod
    async def start(
        cls,
        name: str,
        entry: config.Model,
        session: aiohttp.ClientSession,
        *,
        within_s: float,
        unload_s: float,
        said: Log | None = None,
        register: Register | None = None,
    ) -> Command:
        """Start the command of `entry` and wait until it serves, as asked through `session`.

        Raises:
            ModelLoadError: it cannot be started, its port is another's, it died, or was not ready in time.
        """
        environment = dict(variable.split("=", 1) for variable in entry.env if "=" in variable[1:])
        argv = _argv(name, "cmd", entry.cmd, environment)
        if port := ports.claimed(entry.cmd, entry.proxy):
            await _freed(name, port, urlsplit(entry.proxy).hostname or "")
        try:
            command = await cls.spawn(name, argv, environment, said, register)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelLoadError(f"{name} cannot be started: {argv[0]}: {reason} (models.{name}.cmd).") from error
        command._stop_command, command._environment, command._unload_s = entry.cmdStop, environment, unload_s
        try:
            await command._serves(entry, session, within_s)
        except BaseException:
            await command.clear()
            raise
        command.has_started()
        return command

    @property
    def silent_s(self) -> float:
        """Seconds for which it has been stopped."""
        return time.monotonic() - self._still_since if self._still_since is not None else 0.0

    def watch(self, still_s: float) -> None:
        """From now on end it if it is stopped (SIGSTOP) for so long.

        Nothing is asked of it: one that is busy may answer nothing for as long as it works, as whisper-server does.
        """
        self._watching = asyncio.ensure_future(self._watch(still_s))

    async def _watch(self, still_s: float) -> None:
        while not await self.ends_within(min(LOOK_S, still_s / 4)):
            if self._stopping or not await asyncio.to_thread(proc.stands_still, self.pid):
                self._still_since = None
                continue
            self._still_since = self._still_since or time.monotonic()
            if self.silent_s >= still_s:
                self._hung = f"was stopped (SIGSTOP) for {still_s:g} s (answer_seconds) and was killed"
                log.error("The command of %s hangs: it %s.", self.name, self._hung)
                await self.kill()

    async def stop(self) -> None:
        """Ask it to end, by its `cmdStop` if it has one, insist after `unloadTimeout`, and wait until it is gone."""
        self._stopping = True
        deadline = time.monotonic() + self._unload_s
        asked = bool(self._stop_command) and not self.exited.done() and await self._run_stop_command()
        if not asked:
            self.send(signal.SIGTERM)
        if await self.ends_within(deadline - time.monotonic()):
            return
        if asked:
            self.send(signal.SIGTERM)
        if not asked or not await self.ends_within(LAST_WARNING_S):
            log.warning("%s does not end: killed after %.1f s (unloadTimeout).", self.name, self._unload_s)
            await self.kill()

    async def stop_at_once(self) -> None:
        """End it without time for what it is doing: the least it needs to end what it has started, such as a container."""
        if self._stop_command and not self._stopping:
            await self.stop()
            return
        self.send(signal.SIGTERM)
        if not await self.ends_within(LAST_WARNING_S):
            await self.kill()

    async def _serves(self, entry: config.Model, session: aiohttp.ClientSession, within_s: float) -> None:
        """Wait until it does, and make sure that it is not somebody else who does."""
        address = entry.proxy.rstrip("/")
        asked = entry.checkEndpoint != UNASKED
        readiness = Answering(session, f"{address}/{entry.checkEndpoint.lstrip('/')}") if asked else Listening(address)
        if not await self._until(readiness, within_s):
            raise ModelLoadError(
                f"{self.name} was not ready after {within_s:g} s (healthCheckTimeout): {readiness.last}. {self.last_words}"
            )
        if self.exited.done():
            await asyncio.shield(self.ended)
            raise ModelLoadError(f"The command of {self.name} {self.ending} before it served.{self.advice} {self.last_words}")
        await self._owns(entry)

    async def _owns(self, entry: config.Model) -> None:
        """Look who it is that listens. A command that was not told the port may have reasons to leave it to somebody else."""
        port = ports.of_this_machine(entry.proxy)
        other = await asyncio.to_thread(ports.stranger, port, self.pid, self._mark) if port else None
        if other and ports.claimed(entry.cmd, entry.proxy):
            raise ModelLoadError(f"The port {port} of {self.name} is not its own: {ports.named(other)} answers there.")
        if other:
            log.warning(
                "It is %s that listens on port %d, and nothing that the command of %s has started: is models.%s.proxy right?",
                ports.named(other), port, self.name, self.name,
            )  # fmt: skip

    async def _until(self, readiness: Readiness, within_s: float) -> bool:
        """Whether it is ready, or has ended, in time."""
        asking = asyncio.ensure_future(readiness.reached())
        try:
            either: list[asyncio.Future[None]] = [asking, self.exited]
            done, _ = await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        return bool(done)

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        left = ", leaving others behind that have been ended too" if self.left_others else ""
        return self._hung or f"{super().ending}{left}"

    @property
    def advice(self) -> str:
        """What to do about one that ended as if all were well."""
        return FOREGROUND if self._child.returncode == 0 or self.left_others else ""

    async def _run_stop_command(self) -> bool:
        """Whether `cmdStop` did what it should, as far as it says."""
        line = self._stop_command.replace("${PID}", str(self.pid))
        try:
            argv = _argv(self.name, "cmdStop", line, self._environment)
            stopping = await Child.spawn(f"cmdStop of {self.name}", argv, self._environment, self._said, self._register)
        except (OSError, ValueError, ModelLoadError) as error:
            log.warning("%s cannot be stopped by its cmdStop, but by SIGTERM: %s", self.name, error)
            return False
        try:
            await asyncio.wait([stopping.exited, self.ended], timeout=self._unload_s, return_when=asyncio.FIRST_COMPLETED)
            failed = bool(stopping._child.returncode)
            if failed:
                log.warning("The cmdStop of %s %s. %s", self.name, stopping.ending, stopping.last_words)
            return not failed
        finally:
            await stopping.kill()


async def _freed(name: str, port: int, host: str) -> None:
    """Wait for the port a little: what forwards it to a container may outlive the container by a moment."""
    until = time.monotonic() + PORT_S
    while ports.taken(port, host):
        if time.monotonic() > until:
            who = await asyncio.to_thread(ports.holder, port)
            raise ModelLoadError(f"{name} cannot be started: {who} already listens on its port {port}.")
        await asyncio.sleep(PORT_EVERY_S)


def _argv(name: str, key: str, line: str, environment: dict[str, str]) -> Sequence[str]:
    """The words of a command line, its program found."""
    argv = words.split(line)
    if not argv:
        raise ModelLoadError(f"{name} cannot be started: models.{name}.{key} is empty.")
    program = argv[0]
    if shutil.which(program, path=environment.get("PATH", os.environ.get("PATH"))):
        return argv
    if Path(program).is_file() and "/" in program:
        raise ModelLoadError(f"{name} cannot be started: {program} may not be executed (models.{name}.{key}).")
    where = "" if "/" in program else " on the PATH"
    raise ModelLoadError(f"{name} cannot be started: there is no program {program}{where} (models.{name}.{key}).")
