"""Whose port it is: so that a stranger who answers there is not taken for the model."""

from __future__ import annotations

import errno
import re
import socket
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from eardrum.gateway.processes import proc

LOCAL = {"localhost": ("127.0.0.1", "::1"), "0.0.0.0": ("127.0.0.1",), "::": ("::1",)}  # noqa: S104 -- compared, not bound
"""Hosts that are this machine, and the addresses by which it is reached."""

FORWARDERS = ("docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "gvproxy")
"""Programs that hold a port for a container which a command of ours may have started."""


def of_this_machine(address: str) -> int:
    """The port of an address on this machine; 0 if it has none, or is elsewhere."""
    url = urlsplit(address)
    local = url.hostname in LOCAL or (url.hostname or "").startswith("127.") or url.hostname == "::1"
    return url.port if local and url.port else 0


def claimed(command: str, address: str) -> int:
    """The port of this machine on which a command is to serve; 0 if it is not told one, or serves from another machine."""
    port = of_this_machine(address)
    return port if port and re.search(rf"(?<!\d){port}(?!\d)", command) else 0


def taken(port: int, host: str) -> bool:
    """Whether somebody listens where a command is to."""
    return any(_refuses(address, port) and _listens(address, port) for address in LOCAL.get(host, (host,)))


def stranger(port: int, root: int, mark: str) -> int | None:
    """Who else listens on the port of a command with process `root`, whose offspring carries `mark`; None if nobody is seen."""
    family = {process.pid for process in proc.family(root) | proc.carriers(mark)}
    if proc.holders(port, family):
        return None
    return next((pid for pid in sorted(proc.holders(port)) if not _may_stand_in(pid)), None)


def holder(port: int) -> str:
    """The program that listens on a port, in words."""
    pid = min(proc.holders(port), default=None)
    return named(pid) if pid else "a program of another user"


def named(pid: int) -> str:
    """A process in words."""
    return f"{proc.program(pid)} (pid {pid})"


def _may_stand_in(pid: int) -> bool:
    return proc.program(pid) in FORWARDERS or proc.elsewhere(pid)


def _refuses(address: str, port: int) -> bool:
    """Whether the port cannot be bound because somebody else has it."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(kind) as trial:  # a machine may have no IPv6
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _listens(address: str, port: int) -> bool:
    """Whether the port is refused because of somebody who listens, where the system tells.

    Linux also refuses it for a minute because of connections that are over, if their server did not set SO_REUSEADDR: those of
    cpp-httplib (whisper-server, older llama-servers) set SO_REUSEPORT alone. The next process of such a server gets the port.
    """
    listening = proc.listened_on(port)
    return listening is None or any(found.is_unspecified or found == ip_address(address) for found in listening)
