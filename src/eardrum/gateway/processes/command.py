"""A command's process: any program that serves a model over HTTP.

The command is ready once a readiness probe succeeds. Then the process that listens on the port is checked, so that an
unrelated server there is not taken for the model.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from eardrum import config
from eardrum.aiohttp_import import aiohttp
from eardrum.concurrency import run_until_first
from eardrum.config.macros import split_command
from eardrum.errors import ModelLoadError
from eardrum.gateway.logs import LogBuffer
from eardrum.gateway.processes import process_info
from eardrum.gateway.processes.child import ChildProcess
from eardrum.gateway.processes.orphans import ProcessRegistry

log = logging.getLogger(__name__)

NO_CHECK = "none"
"""Value of `check_endpoint` that turns the HTTP check off."""

PORT_TIMEOUT_S, PORT_INTERVAL_S = 1.0, 0.1
"""Seconds that a port has to become free, and seconds between two looks."""

TERM_GRACE_S = 2.0
"""Seconds between SIGTERM and SIGKILL after a `cmd_stop` that failed, and for an unload by force."""

WATCH_INTERVAL_S = 10.0
"""Seconds between two looks whether the command is suspended."""

FOREGROUND_HINT = " The command must stay in the foreground while it serves: no `-d`, `--daemon` or `&`."


class CommandProcess(ChildProcess):
    """A command. `start` returns it once it serves; `ended` completes when it has ended."""

    _stop_command: str
    _environment: dict[str, str]
    _find_unload_s: Callable[[], float]
    _stopping = False
    _suspended_since: float | None = None
    """When it was first seen suspended."""
    _hang_description = ""
    """Why the watchdog killed it; empty if it did not."""

    @classmethod
    async def start(
        cls,
        name: str,
        entry: config.ModelSettings,
        session: aiohttp.ClientSession,
        *,
        within_s: float,
        find_unload_s: Callable[[], float],
        log_buffer: LogBuffer | None = None,
        registry: ProcessRegistry | None = None,
    ) -> CommandProcess:
        """Start the command of `entry`, and wait until a probe through `session` succeeds.

        `find_unload_s` returns the seconds that it may take to end, when it is stopped: the config may have changed since.

        Raises:
            ModelLoadError: it cannot be started, another process has its port, it ended, or was not ready in time.
        """
        environment = dict(variable.split("=", 1) for variable in entry.env if "=" in variable[1:])
        argv = _parse_command(name, "cmd", entry.cmd, environment)
        if port := find_claimed_port(entry.cmd, entry.proxy):
            await _wait_for_port(name, port, urlsplit(entry.proxy).hostname or "")
        try:
            command = await cls.spawn(name, argv, environment, log_buffer, registry)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ModelLoadError(f"{name} cannot be started: {argv[0]}: {reason} (models.{name}.cmd).") from error
        command._stop_command, command._environment, command._find_unload_s = entry.cmd_stop, environment, find_unload_s
        try:
            await command._wait_serving(entry, session, within_s)
        except BaseException:
            await command.clean_up()
            raise
        command.mark_started()
        return command

    @property
    def suspended_s(self) -> float:
        """Seconds for which it has been suspended (SIGSTOP)."""
        return time.monotonic() - self._suspended_since if self._suspended_since is not None else 0.0

    def start_watchdog(self, find_max_s: Callable[[], float]) -> None:
        """Kill it once it has been suspended (SIGSTOP) for so many seconds, by the config at that time.

        No request is sent to it: servers such as whisper-server answer nothing while they work.
        """
        self._watchdog = asyncio.ensure_future(self._run_watchdog(find_max_s))

    async def _run_watchdog(self, find_max_s: Callable[[], float]) -> None:
        while not await self.ends_within(min(WATCH_INTERVAL_S, find_max_s() / 4)):
            if self._stopping or not await asyncio.to_thread(process_info.is_group_stopped, self.pid):
                self._suspended_since = None
                continue
            self._suspended_since = self._suspended_since or time.monotonic()
            if self.suspended_s >= (max_s := find_max_s()):
                self._hang_description = f"was stopped (SIGSTOP) for {max_s:g} s (liveness_timeout) and was killed"
                log.error("The command of %s hangs: it %s.", self.name, self._hang_description)
                await self.kill()

    async def stop(self) -> None:
        """End it with its `cmd_stop` or SIGTERM, after `unload_timeout` with SIGKILL, and wait until it has ended."""
        self._stopping = True
        unload_s = self._find_unload_s()
        deadline = time.monotonic() + unload_s
        asked = bool(self._stop_command) and not self.exited.done() and await self._run_stop_command(unload_s)
        if not asked:
            self.send_signal(signal.SIGTERM)
        if await self.ends_within(deadline - time.monotonic()):
            return
        if asked:
            self.send_signal(signal.SIGTERM)
        if not asked or not await self.ends_within(TERM_GRACE_S):
            log.warning("%s did not end within %.1f s (unload_timeout): killing it.", self.name, unload_s)
            await self.kill()

    async def stop_now(self) -> None:
        """End it at once. It gets only the time to end what it has started, such as a container."""
        if self._stop_command and not self._stopping:
            await self.stop()
            return
        self.send_signal(signal.SIGTERM)
        if not await self.ends_within(TERM_GRACE_S):
            await self.kill()

    async def _wait_serving(self, entry: config.ModelSettings, session: aiohttp.ClientSession, within_s: float) -> None:
        """Wait until it serves, and make sure that no other process answers in its place."""
        address = entry.proxy.rstrip("/")
        asked = entry.check_endpoint != NO_CHECK
        readiness = (
            HttpReadinessProbe(session, f"{address}/{entry.check_endpoint.lstrip('/')}") if asked else TcpReadinessProbe(address)
        )
        if not await self._wait_ready_or_exit(readiness, within_s):
            raise ModelLoadError(
                f"{self.name} was not ready after {within_s:g} s (health_check_timeout): {readiness.last_result}. "
                f"{self.last_output}"
            )
        if self.exited.done():
            await asyncio.shield(self.ended)
            raise ModelLoadError(
                f"The command of {self.name} {self.exit_description} before it served.{self.exit_hint} {self.last_output}"
            )
        await self._check_port_owner(entry)

    async def _check_port_owner(self, entry: config.ModelSettings) -> None:
        """Check which process listens. If the port is not in the command, another process may be intended: it is only logged."""
        port = find_local_port(entry.proxy)
        other = await asyncio.to_thread(find_foreign_holder, port, self.pid, self._mark) if port else None
        if other and find_claimed_port(entry.cmd, entry.proxy):
            raise ModelLoadError(
                f"The port {port} of {self.name} belongs to another process: {describe_process(other)} answers there."
            )
        if other:
            log.warning(
                "%s listens on port %d, not a process of the command of %s. Check models.%s.proxy.",
                describe_process(other), port, self.name, self.name,
            )  # fmt: skip

    async def _wait_ready_or_exit(self, readiness: ReadinessProbe, within_s: float) -> bool:
        """Wait until the probe succeeds or the process ends; False if neither happens in time."""
        try:
            async with asyncio.timeout(within_s):
                await run_until_first(readiness.wait_ready(), asyncio.shield(self.exited))
        except TimeoutError:
            return False
        return True

    @property
    def exit_description(self) -> str:
        """A clause for messages, such as "ended with exit code 1"."""
        left = " (processes that it left running were ended too)" if self.left_descendants else ""
        return self._hang_description or f"{super().exit_description}{left}"

    @property
    def exit_hint(self) -> str:
        """A sentence that explains an end without an error; empty otherwise."""
        return FOREGROUND_HINT if self._child.returncode == 0 or self.left_descendants else ""

    async def _run_stop_command(self, within_s: float) -> bool:
        """Run `cmd_stop` for so many seconds at most; whether it succeeded, by its exit code."""
        line = self._stop_command.replace("${PID}", str(self.pid))
        try:
            argv = _parse_command(self.name, "cmd_stop", line, self._environment)
            stopping = await ChildProcess.spawn(f"cmd_stop of {self.name}", argv, self._environment, self._log, self._registry)
        except (OSError, ValueError, ModelLoadError) as error:
            log.warning("The cmd_stop of %s cannot be run, SIGTERM is sent instead: %s", self.name, error)
            return False
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await run_until_first(asyncio.shield(stopping.exited), asyncio.shield(self.ended))
            failed = bool(stopping._child.returncode)
            if failed:
                log.warning("The cmd_stop of %s %s. %s", self.name, stopping.exit_description, stopping.last_output)
            return not failed
        finally:
            await stopping.kill()


async def _wait_for_port(name: str, port: int, host: str) -> None:
    """Wait for a free port: a program that forwards it to a container may end a moment after the container."""
    until = time.monotonic() + PORT_TIMEOUT_S
    while is_port_taken(port, host):
        if time.monotonic() > until:
            holder = await asyncio.to_thread(describe_port_holder, port)
            raise ModelLoadError(f"{name} cannot be started: {holder} already listens on its port {port}.")
        await asyncio.sleep(PORT_INTERVAL_S)


def _parse_command(name: str, key: str, line: str, environment: dict[str, str]) -> Sequence[str]:
    """Split a command line into words, and make sure that its program exists."""
    argv = split_command(line)
    if not argv:
        raise ModelLoadError(f"{name} cannot be started: models.{name}.{key} is empty.")
    program = argv[0]
    if shutil.which(program, path=environment.get("PATH", os.environ.get("PATH"))):
        return argv
    if Path(program).is_file() and "/" in program:
        raise ModelLoadError(f"{name} cannot be started: {program} is not executable (models.{name}.{key}).")
    where = "" if "/" in program else " on the PATH"
    raise ModelLoadError(f"{name} cannot be started: there is no program {program}{where} (models.{name}.{key}).")


FIRST_PROBE_PAUSE_S = 0.05
MAX_PROBE_PAUSE_S = 1.0
PROBE_PAUSE_GROWTH = 1.25
PROBE_TIMEOUT_S = 5.0
"""Seconds for one answer: a server that is loading may accept connections long before it answers."""


class ReadinessProbe(ABC):
    """Tries a server until it is ready. `last_result` describes the last try."""

    last_result: str

    async def wait_ready(self) -> None:
        """Try at once, then after growing pauses of at most a second, until the server is ready."""
        pause = FIRST_PROBE_PAUSE_S
        while not await self._is_ready():
            await asyncio.sleep(pause)
            pause = min(MAX_PROBE_PAUSE_S, pause * PROBE_PAUSE_GROWTH)

    @abstractmethod
    async def _is_ready(self) -> bool: ...


class HttpReadinessProbe(ReadinessProbe):
    """Sends GET requests to `url` until the status is 200."""

    def __init__(self, session: aiohttp.ClientSession, url: str):
        self._session = session
        self._url = url
        self.last_result = f"{url} was not tried"

    async def _is_ready(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S), self._session.get(self._url) as response:
                self.last_result = f"{self._url} answers {response.status} instead of 200 (check_endpoint)"
                return response.status == 200
        except TimeoutError:
            self.last_result = f"{self._url} does not answer"
        except (aiohttp.ClientConnectorError, ConnectionError):
            self.last_result = f"nothing listens at {self._url}"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self.last_result = f"{self._url} does not speak HTTP: {error}"
        return False


class TcpReadinessProbe(ReadinessProbe):
    """Tries to connect until a connection is accepted, for servers with `check_endpoint: none`."""

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
"""Host names of this machine, and the addresses that they stand for."""

FORWARDERS = ("docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "gvproxy")
"""Programs that listen for a container, which the command may have started."""


def find_local_port(address: str) -> int:
    """The port of an address on this machine; 0 without a port, or for another machine."""
    url = urlsplit(address)
    local = url.hostname in LOCAL_HOSTS or (url.hostname or "").startswith("127.") or url.hostname == "::1"
    return url.port if local and url.port else 0


def find_claimed_port(command: str, address: str) -> int:
    """The local port in the address of a command, if the command contains it too; else 0."""
    port = find_local_port(address)
    return port if port and re.search(rf"(?<!\d){port}(?!\d)", command) else 0


def is_port_taken(port: int, host: str) -> bool:
    """Whether a program listens on the port already."""
    return any(_is_bind_refused(address, port) and _has_listener(address, port) for address in LOCAL_HOSTS.get(host, (host,)))


def find_foreign_holder(port: int, root: int, mark: str) -> int | None:
    """The pid of an unrelated process that listens on the port of a command; None if there is none, or it cannot be seen.

    Related are the family of the process `root`, all processes with `mark`, and forwarders to a container.
    """
    holders = process_info.find_port_holders(port)
    family = {process.pid for process in process_info.list_family(root) | process_info.find_marked(mark)}
    if holders & family:
        return None
    return next((pid for pid in sorted(holders) if not _is_forwarder(pid)), None)


def describe_port_holder(port: int) -> str:
    """Name the program that listens on a port, for messages."""
    pid = min(process_info.find_port_holders(port), default=None)
    return describe_process(pid) if pid else "a program of another user"


def describe_process(pid: int) -> str:
    """Name a process, for messages."""
    return f"{process_info.read_program_name(pid)} (pid {pid})"


def _is_forwarder(pid: int) -> bool:
    return process_info.read_program_name(pid) in FORWARDERS or process_info.is_in_other_container(pid)


def _is_bind_refused(address: str, port: int) -> bool:
    """Whether the port cannot be bound because it is in use."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(kind) as trial:  # a machine may have no IPv6
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _has_listener(address: str, port: int) -> bool:
    """Whether a program listens on a port that cannot be bound; True where the system does not tell.

    Linux also refuses a port for a minute after the last connection if its server did not set SO_REUSEADDR. Servers on
    cpp-httplib (whisper-server, older llama-servers) set only SO_REUSEPORT; their next process can bind the port.
    """
    listeners = process_info.list_listeners(port)
    return listeners is None or any(found.is_unspecified or found == ip_address(address) for found, _ in listeners)
