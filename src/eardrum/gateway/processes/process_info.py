"""Reads other processes: their identities, the TCP ports on which they listen, and their memory.

psutil does the reading. Three things it lacks are read from /proc here: environments in which a program has overwritten a
part, PID namespaces, and the id of a boot. GPU memory comes from NVIDIA's driver.

psutil is imported with the first model's process: its import is 10 to 16 ms of CPU, 3 % of the gateway's imports.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from psutil import Process

log = logging.getLogger(__name__)

PROC = Path("/proc")
TICKS_PER_SECOND = 100
"""Resolution of start times, as Linux records them."""


def find_process(pid: int) -> Process | None:
    """The process, unless it has ended or may not be seen. Processes are equal only if pid and start time are."""
    import psutil

    with suppress(psutil.Error, OverflowError):
        process = psutil.Process(pid)
        if process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return process
    return None


def is_alive(process: Process) -> bool:
    """Whether the process still runs: its pid may belong to another one by now."""
    return find_process(process.pid) == process


def read_start_ticks(process: Process) -> int:
    """Ticks between the start of the machine and that of the process.

    Together with the pid they identify a process to a later gateway. The time of day would not: NTP moves it, by years on
    a machine without a battery for its clock.
    """
    import psutil

    return round((process.create_time() - psutil.boot_time()) * TICKS_PER_SECOND)


def read_program_name(pid: int) -> str:
    """The name of the program that the process runs; empty if it has ended."""
    import psutil

    with suppress(psutil.Error):
        return psutil.Process(pid).name()
    return ""


def has_mark(pid: int, mark: str) -> bool:
    """Whether `mark` is in the environment that the process was started with.

    Environments of other users' processes cannot be read. A process that ends loses its environment before it releases its
    ports and files. On Linux the whole block is searched: psutil stops at the first empty entry, and programs that change
    their title (setproctitle, as vLLM uses it) leave such entries in front of the rest.
    """
    import psutil

    if PROC.is_dir():
        with suppress(OSError):
            return mark.encode() in (PROC / str(pid) / "environ").read_bytes()
        return False
    with suppress(psutil.Error, OSError):
        return any(mark in f"{name}={value}" for name, value in psutil.Process(pid).environ().items())
    return False


def find_marked(mark: str) -> set[Process]:
    """All running processes that carry the mark."""
    return {process for pid in _list_pids() if has_mark(pid, mark) and (process := find_process(pid))}


def list_group(group: int) -> set[Process]:
    """All running processes of a process group."""
    return {process for pid in _list_pids() if _read_group(pid) == group and (process := find_process(pid))}


def is_group_stopped(group: int) -> bool:
    """Whether SIGSTOP has stopped the leader of a group, or all its other processes, for which the leader may be waiting."""
    stopped = {process.pid: _is_stopped(process) for process in list_group(group)}
    leader = stopped.pop(group, False)
    return leader or (bool(stopped) and all(stopped.values()))


def list_family(root: int) -> set[Process]:
    """The process `root`, the group and the session that it leads, and all descendants of these."""
    import psutil

    family: set[Process] = set()
    for pid in _list_pids():
        if root not in (pid, _read_group(pid), _read_session(pid)) or not (process := find_process(pid)):
            continue
        if process not in family:
            family.add(process)
            with suppress(psutil.Error):
                family.update(child for child in process.children(recursive=True) if is_alive(child))
    return family


def list_listeners(port: int) -> list[tuple[IPv4Address | IPv6Address, int | None]] | None:
    """Addresses at which programs listen on a TCP port, and their pids; None where the system does not tell (macOS).

    The pid of another user's process is None. A closed connection in TIME_WAIT is no listener.
    """
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return None
    return [
        (_parse_address(connection.laddr.ip), connection.pid)
        for connection in connections
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
    ]


def find_port_holders(port: int) -> set[int]:
    """Pids of the processes that listen on a TCP port, those of other users excepted."""
    return {pid for _, pid in list_listeners(port) or () if pid}


def is_in_other_container(pid: int) -> bool:
    """Whether the process is in another PID namespace than this one."""
    with suppress(OSError):
        return (PROC / str(pid) / "ns" / "pid").readlink() != (PROC / "self" / "ns" / "pid").readlink()
    return False


def identify_system() -> str:
    """An id of this boot and this PID namespace: pids recorded under another id mean other processes."""
    import psutil

    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {(PROC / 'self/ns/pid').readlink()}"
    return str(int(psutil.boot_time()))


def _list_pids() -> list[int]:
    import psutil

    return psutil.pids()


def _read_group(pid: int) -> int | None:
    with suppress(OSError):
        return os.getpgid(pid)
    return None


def _read_session(pid: int) -> int | None:
    with suppress(OSError):
        return os.getsid(pid)
    return None


def _is_stopped(process: Process) -> bool:
    """Whether SIGSTOP has stopped it. A process under a debugger has another status."""
    import psutil

    with suppress(psutil.Error):
        return process.status() == psutil.STATUS_STOPPED
    return False


def _parse_address(text: str) -> IPv4Address | IPv6Address:
    address = ip_address(text)
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


GPU_TIMEOUT_S = 10.0
"""Time that NVIDIA's driver has to answer."""

MEMORY_INTERVAL_S = 15.0
"""Time between two measurements: a model's memory grows with its requests."""

GPU_MEMORY_QUERY = ("--query-compute-apps=pid,gpu_uuid,used_memory", "--format=csv,noheader,nounits")
GPU_NAME_QUERY = ("--query-gpu=index,uuid", "--format=csv,noheader,nounits")


async def watch_memory(
    list_pids: Callable[[], Mapping[str, int]], on_measured: Callable[[Mapping[str, Mapping[str, float]]], None]
) -> None:
    """Measure all models that `list_pids` names, again and again, until it names none."""
    while pids := list_pids():
        on_measured(await measure_memory(pids))
        await asyncio.sleep(MEMORY_INTERVAL_S)


async def measure_memory(pids: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Bytes that each model's process and its descendants take: `cpu`, and with GPUs `cuda` (all of them), `cuda:0`, ...

    Models whose process has ended are left out.
    """
    families, resident = await asyncio.to_thread(_measure_resident, pids)
    sizes = {model: {"cpu": size} for model, size in resident.items() if size}
    owners = {pid: model for model, family in families.items() for pid in family}
    for pid, gpu, size in await _measure_gpus():
        if (model := owners.get(pid, "")) in sizes:
            for pool in ("cuda", f"cuda:{gpu}"):
                sizes[model][pool] = sizes[model].get(pool, 0.0) + size
    return sizes


def _measure_resident(pids: Mapping[str, int]) -> tuple[dict[str, set[int]], dict[str, float]]:
    families = {model: list_family(pid) for model, pid in pids.items()}
    sizes = {model: sum(map(_read_proportional_size, family)) for model, family in families.items()}
    return {model: {process.pid for process in family} for model, family in families.items()}, sizes


def _read_proportional_size(process: Process) -> float:
    """Bytes in memory. Pages that several processes share are divided among them (PSS), where the system counts so."""
    import psutil

    with suppress(psutil.Error):
        memory = process.memory_full_info()
        return float(getattr(memory, "pss", 0) or memory.uss)
    return 0.0


async def _measure_gpus() -> list[tuple[int, str, float]]:
    """Pid, index of the GPU and bytes of each process on a GPU. In a container the driver may name processes outside it.

    Without a driver that works, nvidia-smi prints a sentence in place of rows.
    """
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    rows = [row for row in await query_nvidia_smi(program, GPU_MEMORY_QUERY) if len(row) == 3]
    names = [row for row in await query_nvidia_smi(program, GPU_NAME_QUERY) if len(row) == 2] if rows else []
    indices = {uuid: index for index, uuid in names}
    usages = []
    for pid, uuid, size in rows:
        with suppress(ValueError):  # [N/A]
            usages.append((int(pid), indices.get(uuid, uuid), float(size) * 2**20))
    return usages


async def query_nvidia_smi(program: str, query: tuple[str, ...]) -> list[list[str]]:
    """Run a query of nvidia-smi and return the cells of each line; nothing if it does not answer in time."""
    process = await asyncio.create_subprocess_exec(program, *query, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    try:
        async with asyncio.timeout(GPU_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        log.warning("%s did not answer within %g s: the GPU memory of models is unknown.", program, GPU_TIMEOUT_S)
        return []
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return [[cell.strip() for cell in line.split(",")] for line in output.decode(errors="replace").splitlines() if line.strip()]
