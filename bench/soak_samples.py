"""What a server and its processes hold, looked at again and again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

from bench.server import BenchServer
from bench.usage import measure_rss_mb
from eardrum.concurrency import POOL_NAME

EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class MemorySample:
    """What the gateway holds so many seconds after the beginning, and the memory of its children."""

    at: float
    rss_mb: float
    descriptors: int
    """Without those of the clients' connections, whose number goes up and down with the traffic."""
    connections: int
    """Of clients."""
    threads: Mapping[str, int]
    """The number of its threads by name."""
    children: int
    models_mb: float

    @property
    def pool_threads(self) -> int:
        """Threads of the pool, which are started as they are needed, up to a bound, and stay."""
        return self.threads.get(POOL_NAME, 0)

    @property
    def other_threads(self) -> int:
        """All threads but those of the pool."""
        return sum(self.threads.values()) - self.pool_threads


async def keep_sampling(server: BenchServer, samples: list[MemorySample], began: float) -> None:
    """Add a sample every few seconds, until cancelled."""
    while True:
        samples.append(take_sample(server.gateway, time.monotonic() - began))
        await asyncio.sleep(EVERY_S)


def take_sample(gateway: psutil.Process, at: float) -> MemorySample:
    """How it is now."""
    children, held = gateway.children(recursive=True), 0.0
    for child in children:
        with suppress(psutil.NoSuchProcess):
            held += measure_rss_mb(child)
    descriptors, connections = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir())), count_client_connections(gateway)
    threads = count_threads(gateway.pid)
    return MemorySample(at, measure_rss_mb(gateway), descriptors - connections, connections, threads, len(children), held)


def count_client_connections(gateway: psutil.Process) -> int:
    """Count the TCP connections to ports on which the process listens."""
    sockets = gateway.net_connections("tcp")
    ports = {one.laddr.port for one in sockets if one.status == psutil.CONN_LISTEN}
    return sum(one.status != psutil.CONN_LISTEN and one.laddr.port in ports for one in sockets)


def count_threads(pid: int) -> Mapping[str, int]:
    """Count the threads of a process by name."""
    names: Counter[str] = Counter()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended
            names[(thread / "comm").read_text().strip()] += 1
    return names


def find_median(samples: Sequence[MemorySample], begin: float, end: float, value: Callable[[MemorySample], float]) -> float:
    """The median between two moments: single requests come and go, and the median of a minute does not move with them.

    Raises:
        ValueError: nobody looked then.
    """
    seen = [value(one) for one in samples if begin <= one.at < end]
    if not seen:
        raise ValueError(f"No sample between {begin:.0f} and {end:.0f} s")
    return float(median(seen))
