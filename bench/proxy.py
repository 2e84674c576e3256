"""What passing on a request costs, against asking the upstream directly, and against a gateway on FastAPI and httpx."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median

import psutil

from bench.chats import crowd, latencies, streams, upload
from bench.children import child
from bench.figure import Compare, Figure
from bench.llm_server import EVENTS
from bench.server import free_port, running, until_healthy
from bench.usage import cpu_of, peak_mb

CLIENTS = 8
NAME = "the-real-name"
"""What the upstream is told instead of the name the client uses: forms have to be changed on their way."""

Gateway = Callable[[int], AbstractContextManager[tuple[int, psutil.Process]]]
"""Starts one before an upstream, by its port."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is sent."""

    chats: int
    streams: int
    upload_bytes: int
    repetitions: int


@dataclass(slots=True)
class Seen:
    """What was measured of one way to the upstream, a value per repetition. CPU is that of the gateway alone."""

    cpu_ms: list[float] = field(default_factory=list)
    """Per chat, with eight clients at a time."""
    p50_ms: list[float] = field(default_factory=list)
    crowd_ms: list[float] = field(default_factory=list)
    """Per chat, with eight clients at a time."""
    event_us: list[float] = field(default_factory=list)
    """CPU per event of a stream."""
    growth_mb: list[float] = field(default_factory=list)
    delay_ms: list[float] = field(default_factory=list)


def measure(quick: bool) -> list[Figure]:
    """Ours, the baseline and the upstream itself, in turns."""
    sizes = Sizes(200, 4, 20 << 20, 1) if quick else Sizes(3000, 16, 300 << 20, 3)
    direct, ours, baseline = Seen(), Seen(), Seen()
    with ExitStack() as stack:
        upstream = stack.enter_context(_upstream())
        ways: list[tuple[Seen, int, psutil.Process | None]] = [
            (direct, upstream, None),
            (ours, *stack.enter_context(_ours(upstream))),
            (baseline, *stack.enter_context(_baseline(upstream))),
        ]
        for _, port, _ in ways:
            asyncio.run(latencies(port, 100))
        for _ in range(sizes.repetitions):
            for seen, port, process in ways:
                _chats(seen, port, process, sizes)
        for _ in range(sizes.repetitions):
            for seen, port, process in ways[1:]:
                _streams(seen, port, process, sizes)
        for _ in range(sizes.repetitions):
            for seen, gateway in ((ours, _ours), (baseline, _baseline)):
                _upload(seen, gateway, upstream, sizes)
    return _figures(direct, ours, baseline, sizes)


def _figures(direct: Seen, ours: Seen, baseline: Seen, sizes: Sizes) -> list[Figure]:
    usual, less = "FastAPI + httpx", Compare.TIMES_LESS
    added = [[mine - bare for mine, bare in zip(way.p50_ms, direct.p50_ms, strict=True)] for way in (ours, baseline)]
    alone = f"Directly: {median(direct.p50_ms):.2f} ms. llama-swap, on another day: 0.46 ms more."
    together = f"Directly: {median(direct.crowd_ms):.2f} ms. All processes share the machine's cores."
    size = f"{sizes.upload_bytes >> 20} MB, the model first and with another name for the upstream"
    events = f"{sizes.streams} streams at once of {EVENTS} events each, paced as by a language model"
    return [
        Figure("proxy-cpu", "CPU of the gateway per request, 8 clients", usual, "ms", ours.cpu_ms, baseline.cpu_ms, less, 12),
        Figure("proxy-added", "added to the median latency", usual, "ms", *added, Compare.ABSOLUTE, 0.46, alone),
        Figure("proxy-crowd", "time per request, 8 clients", usual, "ms", ours.crowd_ms, baseline.crowd_ms, less, 3, together),
        Figure("proxy-events", "CPU per event", usual, "µs", ours.event_us, baseline.event_us, less, None, events),
        Figure(
            "proxy-upload-memory", f"growth of the peak memory, upload of {size}", usual, "MB",
            ours.growth_mb, baseline.growth_mb, Compare.ABSOLUTE, 8,
        ),
        Figure(
            "proxy-upload-delay", "from the upload's last byte to the answer", "a gateway that buffers", "ms",
            ours.delay_ms, baseline.delay_ms, less, 20,
        ),
    ]  # fmt: skip


def _chats(seen: Seen, port: int, process: psutil.Process | None, sizes: Sizes) -> None:
    seen.p50_ms.append(median(asyncio.run(latencies(port, sizes.chats))) * 1e3)
    before = cpu_of(process) if process else 0.0
    seen.crowd_ms.append(asyncio.run(crowd(port, CLIENTS, sizes.chats // CLIENTS)) / sizes.chats * 1e3)
    seen.cpu_ms.append(((cpu_of(process) if process else 0.0) - before) / sizes.chats * 1e3)


def _streams(seen: Seen, port: int, process: psutil.Process | None, sizes: Sizes) -> None:
    assert process
    before = cpu_of(process)
    asyncio.run(streams(port, sizes.streams))
    seen.event_us.append((cpu_of(process) - before) / (sizes.streams * EVENTS) * 1e6)


def _upload(seen: Seen, gateway: Gateway, upstream: int, sizes: Sizes) -> None:
    """A fresh gateway each time: what a process held once, its peak remembers."""
    with gateway(upstream) as (port, process):
        asyncio.run(upload(port, 1 << 20))
        before = peak_mb(process)
        seen.delay_ms.append(asyncio.run(upload(port, sizes.upload_bytes)) * 1e3)
        seen.growth_mb.append(peak_mb(process) - before)


@contextmanager
def _upstream() -> Iterator[int]:
    port = free_port()
    with child(["-m", "bench.llm_server", str(port)]) as process:
        until_healthy(port, process)
        yield port


@contextmanager
def _ours(upstream: int) -> Iterator[tuple[int, psutil.Process]]:
    entry = {"proxy": f"http://127.0.0.1:{upstream}", "useModelName": NAME}
    with running(warm=False, settings={"models": {"llm": entry}}) as server:
        yield server.port, server.gateway


@contextmanager
def _baseline(upstream: int) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    with child(["-m", "bench.fastapi_proxy", str(port), f"http://127.0.0.1:{upstream}"]) as process:
        until_healthy(port, process)
        yield port, psutil.Process(process.pid)
