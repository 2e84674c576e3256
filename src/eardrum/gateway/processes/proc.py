"""What Linux tells of processes and ports. On other systems nothing is known, and every answer is empty."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

PROC = Path("/proc")
TABLES = ("net/tcp", "net/tcp6")
"""The TCP sockets of this machine: one row each, whatever its state."""
LISTENS = "0A"
GONE = "ZX"
"""States of processes that have ended."""
STOPPED = "T"
"""State of those that SIGSTOP has stopped. One that a debugger looks at has another."""


@dataclass(frozen=True, slots=True)
class Stat:
    """A process that has not ended. Two are equal if they are the same process, whatever has become of it meanwhile."""

    pid: int
    born: int
    """When it began, in ticks since the machine did. Together with the pid it is one process and no other."""
    parent: int = field(compare=False)
    group: int = field(compare=False)
    session: int = field(compare=False)
    stopped: bool = field(default=False, compare=False)


def stat(pid: int) -> Stat | None:
    """What there is to know of a process; None if it is gone, or cannot be seen."""
    with suppress(OSError, ValueError, IndexError):
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if fields[0] not in GONE:
            return Stat(pid, int(fields[19]), int(fields[1]), int(fields[2]), int(fields[3]), fields[0] == STOPPED)
    return None


def lives(process: Stat) -> bool:
    """Whether it has still not ended."""
    return stat(process.pid) == process


def processes() -> list[Stat]:
    """All that have not ended."""
    return [found for pid in _pids() if (found := stat(pid))]


def program(pid: int) -> str:
    """The name of its program."""
    with suppress(OSError):
        return (PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def carries(pid: int, mark: str) -> bool:
    """Whether `mark` is in the environment it was started with.

    That of other users' processes cannot be seen. One that is ending loses its environment before it lets go of its ports
    and files, and ends only then.
    """
    with suppress(OSError):
        return mark.encode() in (PROC / str(pid) / "environ").read_bytes()
    return False


def carriers(mark: str) -> set[Stat]:
    """All that carry it and have not ended."""
    return {found for pid in _pids() if carries(pid, mark) and (found := stat(pid))}


def members(group: int) -> set[Stat]:
    """All of a process group that have not ended."""
    return {process for process in processes() if process.group == group}


def stands_still(group: int) -> bool:
    """Whether the leader of a process group is stopped, or all others in it, for which the leader may be waiting."""
    found = members(group)
    others = [process for process in found if process.pid != group]
    return any(process.stopped for process in found - set(others)) or (bool(others) and all(one.stopped for one in others))


def family(root: int) -> set[Stat]:
    """A process that leads a session, all of that session, and all descendants."""
    found = processes()
    known = {process for process in found if root in (process.pid, process.group, process.session)}
    while more := {process for process in found if process.parent in {one.pid for one in known}} - known:
        known |= more
    return known


def holders(port: int, among: Collection[int] | None = None) -> set[int]:
    """Who listens on a TCP port, as far as it can be seen."""
    sockets = {f"socket:[{row[9]}]" for row in _listening(port)}  # as the links of open files call them
    if not sockets:
        return set()
    return {pid for pid in (_pids() if among is None else among) if sockets & set(_sockets(pid))}


def listened_on(port: int) -> set[IPv4Address | IPv6Address] | None:
    """The addresses on which somebody listens at a TCP port; None where the system does not tell.

    A connection that has been closed and is still remembered (TIME_WAIT) is no listener.
    """
    if not any((PROC / table).exists() for table in TABLES):
        return None
    return {_address(row[1].partition(":")[0]) for row in _listening(port)}


def elsewhere(pid: int) -> bool:
    """Whether it lives in a container that we do not live in."""
    with suppress(OSError):
        return (PROC / str(pid) / "ns" / "pid").readlink() != (PROC / "self" / "ns" / "pid").readlink()
    return False


def here() -> str:
    """Says until when and among whom process ids mean what they meant: this run of the machine, this container."""
    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    return ""


def _pids() -> Iterator[int]:
    with suppress(OSError):
        yield from [int(name) for name in os.listdir(PROC) if name.isdecimal()]  # noqa: PTH208 -- names are all we need


def _listening(port: int) -> Iterator[list[str]]:
    """The rows of the sockets that listen on the port."""
    suffix = f":{port:04X}"
    for table in TABLES:
        with suppress(OSError):
            rows = (line.split() for line in (PROC / table).read_text(encoding="ascii").splitlines()[1:])
            yield from [row for row in rows if row[1].endswith(suffix) and row[3] == LISTENS]


def _address(digits: str) -> IPv4Address | IPv6Address:
    """An address of these tables: words of 32 bits in hex, each in the byte order of the machine."""
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    found = ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    return (isinstance(found, IPv6Address) and found.ipv4_mapped) or found


def _sockets(pid: int) -> Iterator[str]:
    folder = PROC / str(pid) / "fd"
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 -- as above
            with suppress(OSError):
                yield str((folder / name).readlink())
