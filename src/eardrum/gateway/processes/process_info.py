"""Reads processes, TCP listeners and memory use from Linux and NVIDIA's driver.

Other systems report nothing, and every answer is empty.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

PROC = Path("/proc")
TCP_TABLES = ("net/tcp", "net/tcp6")
"""The TCP sockets of this machine: one row each, whatever its state."""
LISTEN_STATE = "0A"
ENDED_STATES = "ZX"
"""States of processes that have ended."""
STOPPED = "T"
"""State of those that SIGSTOP has stopped. One that a debugger looks at has another."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process that has not ended. Two are equal if they are the same process, whatever has become of it meanwhile."""

    pid: int
    start_ticks: int
    """When it began, in ticks since the machine did. Together with the pid it is one process and no other."""
    parent: int = field(compare=False)
    group: int = field(compare=False)
    session: int = field(compare=False)
    stopped: bool = field(default=False, compare=False)


def read_process(pid: int) -> ProcessInfo | None:
    """What there is to know of a process; None if it is gone, or cannot be seen."""
    with suppress(OSError, ValueError, IndexError):
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        if fields[0] not in ENDED_STATES:
            return ProcessInfo(pid, int(fields[19]), int(fields[1]), int(fields[2]), int(fields[3]), fields[0] == STOPPED)
    return None


def is_alive(process: ProcessInfo) -> bool:
    """Whether it has still not ended."""
    return read_process(process.pid) == process


def list_processes() -> list[ProcessInfo]:
    """All that have not ended."""
    return [found for pid in _list_pids() if (found := read_process(pid))]


def read_program_name(pid: int) -> str:
    """The name of its program."""
    with suppress(OSError):
        return (PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def has_mark(pid: int, mark: str) -> bool:
    """Whether `mark` is in the environment it was started with.

    That of other users' processes cannot be seen. One that is ending loses its environment before it lets go of its ports
    and files, and ends only then.
    """
    with suppress(OSError):
        return mark.encode() in (PROC / str(pid) / "environ").read_bytes()
    return False


def find_marked(mark: str) -> set[ProcessInfo]:
    """All that carry it and have not ended."""
    return {found for pid in _list_pids() if has_mark(pid, mark) and (found := read_process(pid))}


def list_group(group: int) -> set[ProcessInfo]:
    """All of a process group that have not ended."""
    return {process for process in list_processes() if process.group == group}


def stands_still(group: int) -> bool:
    """Whether the leader of a process group is stopped, or all others in it, for which the leader may be waiting."""
    found = list_group(group)
    others = [process for process in found if process.pid != group]
    return any(process.stopped for process in found - set(others)) or (bool(others) and all(one.stopped for one in others))


def list_family(root: int) -> set[ProcessInfo]:
    """A process that leads a session, all of that session, and all descendants."""
    found = list_processes()
    known = {process for process in found if root in (process.pid, process.group, process.session)}
    while more := {process for process in found if process.parent in {one.pid for one in known}} - known:
        known |= more
    return known


def find_port_holders(port: int, among: Collection[int] | None = None) -> set[int]:
    """Who listens on a TCP port, as far as it can be seen."""
    sockets = {f"socket:[{row[9]}]" for row in _read_listening_rows(port)}  # as the links of open files call them
    if not sockets:
        return set()
    return {pid for pid in (_list_pids() if among is None else among) if sockets & set(_list_sockets(pid))}


def find_listen_addresses(port: int) -> set[IPv4Address | IPv6Address] | None:
    """The addresses on which somebody listens at a TCP port; None where the system does not tell.

    A connection that has been closed and is still remembered (TIME_WAIT) is no listener.
    """
    if not any((PROC / table).exists() for table in TCP_TABLES):
        return None
    return {_parse_address(row[1].partition(":")[0]) for row in _read_listening_rows(port)}


def is_in_other_container(pid: int) -> bool:
    """Whether it lives in a container that we do not live in."""
    with suppress(OSError):
        return (PROC / str(pid) / "ns" / "pid").readlink() != (PROC / "self" / "ns" / "pid").readlink()
    return False


def identify_system() -> str:
    """Says until when and among whom process ids mean what they meant: this run of the machine, this container."""
    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    return ""


def _list_pids() -> Iterator[int]:
    with suppress(OSError):
        yield from [int(name) for name in os.listdir(PROC) if name.isdecimal()]  # noqa: PTH208 -- names are all we need


def _read_listening_rows(port: int) -> Iterator[list[str]]:
    """The rows of the sockets that listen on the port."""
    suffix = f":{port:04X}"
    for table in TCP_TABLES:
        with suppress(OSError):
            rows = (line.split() for line in (PROC / table).read_text(encoding="ascii").splitlines()[1:])
            yield from [row for row in rows if row[1].endswith(suffix) and row[3] == LISTEN_STATE]


def _parse_address(digits: str) -> IPv4Address | IPv6Address:
    """An address of these tables: words of 32 bits in hex, each in the byte order of the machine."""
    words = (int(digits[at : at + 8], 16) for at in range(0, len(digits), 8))
    found = ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))
    return (isinstance(found, IPv6Address) and found.ipv4_mapped) or found


def _list_sockets(pid: int) -> Iterator[str]:
    folder = PROC / str(pid) / "fd"
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 -- as above
            with suppress(OSError):
                yield str((folder / name).readlink())


log = logging.getLogger(__name__)

GPU_TIMEOUT_S = 10.0
"""How long NVIDIA's driver may take to answer."""

MEMORY_INTERVAL_S = 15.0
"""Time between two looks: what a model takes grows with what it is asked."""

GPU_MEMORY_QUERY = ("--query-compute-apps=pid,gpu_uuid,used_memory", "--format=csv,noheader,nounits")
GPU_NAME_QUERY = ("--query-gpu=index,uuid", "--format=csv,noheader,nounits")


async def watch_memory(
    running: Callable[[], Mapping[str, int]], seen: Callable[[Mapping[str, Mapping[str, float]]], None]
) -> None:
    """Look again and again, until nothing runs."""
    while pids := running():
        seen(await measure_memory(pids))
        await asyncio.sleep(MEMORY_INTERVAL_S)


async def measure_memory(pids: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Bytes that each model's process takes with all that it started: `cpu`, and if there are GPUs, `cuda` and `cuda:0` ...

    Nothing is known of what is gone, or of other systems than Linux.
    """
    families, resident = await asyncio.to_thread(_measure_resident, pids)
    found = {model: {"cpu": size} for model, size in resident.items() if size}
    owners = {pid: model for model, family in families.items() for pid in family}
    for pid, gpu, size in await _measure_gpus():
        if (model := owners.get(pid, "")) in found:
            for pool in ("cuda", f"cuda:{gpu}"):
                found[model][pool] = found[model].get(pool, 0.0) + size
    return found


def _measure_resident(pids: Mapping[str, int]) -> tuple[dict[str, set[int]], dict[str, float]]:
    families = {model: {process.pid for process in list_family(pid)} for model, pid in pids.items()}
    return families, {model: sum(map(_read_proportional_size, family)) for model, family in families.items()}


def _read_proportional_size(pid: int) -> float:
    """Bytes in memory; what several processes share counts in parts, so that it is not counted twice."""
    with suppress(OSError, ValueError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024.0
    return 0.0


async def _measure_gpus() -> list[tuple[int, str, float]]:
    """Process, index of the GPU and bytes, as NVIDIA's driver has it. In a container it may name processes that are not seen."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    rows = await _query_nvidia_smi(program, GPU_MEMORY_QUERY)
    indices = {uuid: index for index, uuid in await _query_nvidia_smi(program, GPU_NAME_QUERY)} if rows else {}
    found = []
    for pid, uuid, size in rows:
        with suppress(ValueError):  # [N/A]
            found.append((int(pid), indices.get(uuid, uuid), float(size) * 2**20))
    return found


async def _query_nvidia_smi(program: str, question: tuple[str, ...]) -> list[list[str]]:
    asked = await asyncio.create_subprocess_exec(program, *question, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        async with asyncio.timeout(GPU_TIMEOUT_S):
            answer, _ = await asked.communicate()
    except TimeoutError:
        log.warning("%s did not answer in %g s: what models take of the GPU is not known.", program, GPU_TIMEOUT_S)
        return []
    finally:
        if asked.returncode is None:
            asked.kill()
            await asked.wait()
    return [[cell.strip() for cell in line.split(",")] for line in answer.decode(errors="replace").splitlines() if line.strip()]
