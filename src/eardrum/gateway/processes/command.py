"""A command's process: any program that serves a model over HTTP.

It is ready once a readiness probe succeeds, and the process that listens on its port is checked, so that an unrelated server
there is not taken for the model.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import shutil
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from eardrum import config
from eardrum.config import command_line
from eardrum.errors import ModelLoadError
from eardrum.gateway.logs import LogBuffer
from eardrum.gateway.processes import process_info
from eardrum.gateway.processes.child import ChildProcess
from eardrum.gateway.processes.orphans import ProcessRegistry

log = logging.getLogger(__name__)

NO_CHECK = "none"
"""What stands for `checkEndpoint` where nothing is to be asked."""

PORT_TIMEOUT_S, PORT_INTERVAL_S = 1.0, 0.1
"""How long, and how often, a port is looked at that should be free."""

TERM_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL for a command that its `cmdStop` did not stop, or that is to have no time."""

LOOK_S = 10.0
"""How often it is looked whether it is stopped."""

FOREGROUND_HINT = " It has to stay in the foreground as long as it serves: no `-d`, `--daemon` or `&`."


class CommandProcess(ChildProcess):
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
        entry: config.ModelSettings,
        session: aiohttp.ClientSession,
        *,
        within_s: float,
        unload_s: float,
        said: LogBuffer | None = None,
        register: ProcessRegistry | None = None,
    ) -> CommandProcess:
        """Start the command of `entry` and wait until it serves, as asked through `session`.

        Raises:
            ModelLoadError: it cannot be started, its port is another's, it died, or was not ready in time.
        """
        environment = dict(variable.split("=", 1) for variable in entry.env if "=" in variable[1:])
        argv = _parse_command(name, "cmd", entry.cmd, environment)
        if port := find_claimed_port(entry.cmd, entry.proxy):
            await _wait_for_port(name, port, urlsplit(entry.proxy).hostname or "")
        try:
            command = await cls.spawn(name, argv, environment, said, register)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelLoadError(f"{name} cannot be started: {argv[0]}: {reason} (models.{name}.cmd).") from error
        command._stop_command, command._environment, command._unload_s = entry.cmdStop, environment, unload_s
        try:
            await command._wait_serving(entry, session, within_s)
        except BaseException:
            await command.clean_up()
            raise
        command.mark_started()
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
            if self._stopping or not await asyncio.to_thread(process_info.stands_still, self.pid):
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
            self.send_signal(signal.SIGTERM)
        if await self.ends_within(deadline - time.monotonic()):
            return
        if asked:
            self.send_signal(signal.SIGTERM)
        if not asked or not await self.ends_within(TERM_GRACE_S):
            log.warning("%s does not end: killed after %.1f s (unloadTimeout).", self.name, self._unload_s)
            await self.kill()

    async def stop_now(self) -> None:
        """End it without time for what it is doing: the least it needs to end what it has started, such as a container."""
        if self._stop_command and not self._stopping:
            await self.stop()
            return
        self.send_signal(signal.SIGTERM)
        if not await self.ends_within(TERM_GRACE_S):
            await self.kill()

    async def _wait_serving(self, entry: config.ModelSettings, session: aiohttp.ClientSession, within_s: float) -> None:
        """Wait until it does, and make sure that it is not somebody else who does."""
        address = entry.proxy.rstrip("/")
        asked = entry.checkEndpoint != NO_CHECK
        readiness = (
            HttpReadinessProbe(session, f"{address}/{entry.checkEndpoint.lstrip('/')}") if asked else TcpReadinessProbe(address)
        )
        if not await self._wait_ready_or_exit(readiness, within_s):
            raise ModelLoadError(
                f"{self.name} was not ready after {within_s:g} s (healthCheckTimeout): {readiness.last_result}. "
                f"{self.last_output}"
            )
        if self.exited.done():
            await asyncio.shield(self.ended)
            raise ModelLoadError(
                f"The command of {self.name} {self.exit_description} before it served.{self.exit_hint} {self.last_output}"
            )
        await self._check_port_owner(entry)

    async def _check_port_owner(self, entry: config.ModelSettings) -> None:
        """Look who it is that listens. A command that was not told the port may have reasons to leave it to somebody else."""
        port = find_local_port(entry.proxy)
        other = await asyncio.to_thread(find_stranger, port, self.pid, self._mark) if port else None
        if other and find_claimed_port(entry.cmd, entry.proxy):
            raise ModelLoadError(f"The port {port} of {self.name} is not its own: {describe_process(other)} answers there.")
        if other:
            log.warning(
                "It is %s that listens on port %d, and nothing that the command of %s has started: is models.%s.proxy right?",
                describe_process(other), port, self.name, self.name,
            )  # fmt: skip

    async def _wait_ready_or_exit(self, readiness: ReadinessProbe, within_s: float) -> bool:
        """Whether it is ready, or has ended, in time."""
        asking = asyncio.ensure_future(readiness.wait_ready())
        try:
            either: list[asyncio.Future[None]] = [asking, self.exited]
            done, _ = await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        return bool(done)

    @property
    def exit_description(self) -> str:
        """How it ended, in words."""
        left = ", leaving others behind that have been ended too" if self.left_descendants else ""
        return self._hung or f"{super().exit_description}{left}"

    @property
    def exit_hint(self) -> str:
        """What to do about one that ended as if all were well."""
        return FOREGROUND_HINT if self._child.returncode == 0 or self.left_descendants else ""

    async def _run_stop_command(self) -> bool:
        """Whether `cmdStop` did what it should, as far as it says."""
        line = self._stop_command.replace("${PID}", str(self.pid))
        try:
            argv = _parse_command(self.name, "cmdStop", line, self._environment)
            stopping = await ChildProcess.spawn(f"cmdStop of {self.name}", argv, self._environment, self._log, self._registry)
        except (OSError, ValueError, ModelLoadError) as error:
            log.warning("%s cannot be stopped by its cmdStop, but by SIGTERM: %s", self.name, error)
            return False
        try:
            await asyncio.wait([stopping.exited, self.ended], timeout=self._unload_s, return_when=asyncio.FIRST_COMPLETED)
            failed = bool(stopping._child.returncode)
            if failed:
                log.warning("The cmdStop of %s %s. %s", self.name, stopping.exit_description, stopping.last_output)
            return not failed
        finally:
            await stopping.kill()


async def _wait_for_port(name: str, port: int, host: str) -> None:
    """Wait for the port a little: what forwards it to a container may outlive the container by a moment."""
    until = time.monotonic() + PORT_TIMEOUT_S
    while is_port_taken(port, host):
        if time.monotonic() > until:
            who = await asyncio.to_thread(describe_port_holder, port)
            raise ModelLoadError(f"{name} cannot be started: {who} already listens on its port {port}.")
        await asyncio.sleep(PORT_INTERVAL_S)


def _parse_command(name: str, key: str, line: str, environment: dict[str, str]) -> Sequence[str]:
    """The words of a command line, its program found."""
    argv = command_line.split_command(line)
    if not argv:
        raise ModelLoadError(f"{name} cannot be started: models.{name}.{key} is empty.")
    program = argv[0]
    if shutil.which(program, path=environment.get("PATH", os.environ.get("PATH"))):
        return argv
    if Path(program).is_file() and "/" in program:
        raise ModelLoadError(f"{name} cannot be started: {program} may not be executed (models.{name}.{key}).")
    where = "" if "/" in program else " on the PATH"
    raise ModelLoadError(f"{name} cannot be started: there is no program {program}{where} (models.{name}.{key}).")


FIRST_PROBE_PAUSE_S = 0.05
MAX_PROBE_PAUSE_S = 1.0
PROBE_PAUSE_GROWTH = 1.25
PROBE_TIMEOUT_S = 5.0
"""Time for one answer: a server that loads may take connections long before it answers."""


class ReadinessProbe(ABC):
    """Tries a server until it is ready. `last` says in words what came of it so far."""

    last_result: str

    async def wait_ready(self) -> None:
        """Wait for it. Tries at once, then quickly, then every second."""
        pause = FIRST_PROBE_PAUSE_S
        while not await self._is_ready():
            await asyncio.sleep(pause)
            pause = min(MAX_PROBE_PAUSE_S, pause * PROBE_PAUSE_GROWTH)

    @abstractmethod
    async def _is_ready(self) -> bool: ...


class HttpReadinessProbe(ReadinessProbe):
    """Asks `url` until the answer is 200."""

    def __init__(self, session: aiohttp.ClientSession, url: str):
        self._session = session
        self._url = url
        self.last_result = f"{url} was never asked"

    async def _is_ready(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S), self._session.get(self._url) as response:
                self.last_result = f"{self._url} answers {response.status} and not 200 (checkEndpoint)"
                return response.status == 200
        except TimeoutError:
            self.last_result = f"{self._url} does not answer"
        except (aiohttp.ClientConnectorError, ConnectionError):
            self.last_result = f"nothing listens at {self._url}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.last_result = f"{self._url} does not speak HTTP: {error}"
        return False


class TcpReadinessProbe(ReadinessProbe):
    """Connects until somebody takes the connection: more cannot be known of a server that is not to be asked."""

    def __init__(self, address: str):
        url = urlsplit(address)
        self._hosts = LOCAL_HOSTS.get(url.hostname or "", (url.hostname,))
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self.last_result = f"nothing listens at {address}"

    async def _is_ready(self) -> bool:
        for host in self._hosts:
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    _, writer = await asyncio.open_connection(host, self._port)
            except OSError:  # a timeout is one too
                continue
            writer.close()
            return True
        return False


LOCAL_HOSTS = {"localhost": ("127.0.0.1", "::1"), "0.0.0.0": ("127.0.0.1",), "::": ("::1",)}  # noqa: S104 -- compared, not bound
"""Hosts that are this machine, and the addresses by which it is reached."""

FORWARDERS = ("docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "gvproxy")
"""Programs that hold a port for a container which a command of ours may have started."""


def find_local_port(address: str) -> int:
    """The port of an address on this machine; 0 if it has none, or is elsewhere."""
    url = urlsplit(address)
    local = url.hostname in LOCAL_HOSTS or (url.hostname or "").startswith("127.") or url.hostname == "::1"
    return url.port if local and url.port else 0


def find_claimed_port(command: str, address: str) -> int:
    """The port of this machine on which a command is to serve; 0 if it is not told one, or serves from another machine."""
    port = find_local_port(address)
    return port if port and re.search(rf"(?<!\d){port}(?!\d)", command) else 0


def is_port_taken(port: int, host: str) -> bool:
    """Whether somebody listens where a command is to."""
    return any(_is_bind_refused(address, port) and _has_listener(address, port) for address in LOCAL_HOSTS.get(host, (host,)))


def find_stranger(port: int, root: int, mark: str) -> int | None:
    """Who else listens on the port of a command with process `root`, whose offspring carries `mark`; None if nobody is seen."""
    family = {process.pid for process in process_info.list_family(root) | process_info.find_marked(mark)}
    if process_info.find_port_holders(port, family):
        return None
    return next((pid for pid in sorted(process_info.find_port_holders(port)) if not _is_forwarder(pid)), None)


def describe_port_holder(port: int) -> str:
    """The program that listens on a port, in words."""
    pid = min(process_info.find_port_holders(port), default=None)
    return describe_process(pid) if pid else "a program of another user"


def describe_process(pid: int) -> str:
    """A process in words."""
    return f"{process_info.read_program_name(pid)} (pid {pid})"


def _is_forwarder(pid: int) -> bool:
    return process_info.read_program_name(pid) in FORWARDERS or process_info.is_in_other_container(pid)


def _is_bind_refused(address: str, port: int) -> bool:
    """Whether the port cannot be bound because somebody else has it."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(kind) as trial:  # a machine may have no IPv6
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _has_listener(address: str, port: int) -> bool:
    """Whether the port is refused because of somebody who listens, where the system tells.

    Linux also refuses it for a minute because of connections that are over, if their server did not set SO_REUSEADDR: those of
    cpp-httplib (whisper-server, older llama-servers) set SO_REUSEPORT alone. The next process of such a server gets the port.
    """
    listening = process_info.find_listen_addresses(port)
    return listening is None or any(found.is_unspecified or found == ip_address(address) for found in listening)
