"""What passing on a request costs, against asking the upstream directly, and against a gateway on FastAPI and httpx."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median

import psutil

from bench.chats import measure_crowd, measure_latencies, measure_upload, read_streams
from bench.children import run_child
from bench.figure import BenchFigure, SeriesComparison
from bench.llm_server import EVENTS
from bench.server import find_free_port, run_server, wait_until_healthy
from bench.usage import measure_cpu, measure_peak_mb

CLIENTS = 8
NAME = "the-real-name"
"""What the upstream is told instead of the name the client uses: forms have to be changed on their way."""

Gateway = Callable[[int], AbstractContextManager[tuple[int, psutil.Process]]]
"""Starts one before an upstream, by its port."""


@dataclass(frozen=True, slots=True)
class ProxySizes:
    """How much is sent."""

    chats: int
    streams: int
    upload_bytes: int
    repetitions: int


@dataclass(slots=True)
class ProxyMeasurements:
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


def measure(quick: bool) -> list[BenchFigure]:
    """Ours, the baseline and the upstream itself, in turns."""
    sizes = ProxySizes(200, 4, 20 << 20, 1) if quick else ProxySizes(3000, 16, 300 << 20, 3)
    direct, ours, baseline = ProxyMeasurements(), ProxyMeasurements(), ProxyMeasurements()
    with ExitStack() as stack:
        upstream = stack.enter_context(run_upstream())
        ways: list[tuple[ProxyMeasurements, int, psutil.Process | None]] = [
            (direct, upstream, None),
            (ours, *stack.enter_context(_run_ours(upstream))),
            (baseline, *stack.enter_context(_run_baseline(upstream))),
        ]
        for _, port, _ in ways:
            asyncio.run(measure_latencies(port, 100))
        for _ in range(sizes.repetitions):
            for seen, port, process in ways:
                _measure_chats(seen, port, process, sizes)
        for _ in range(sizes.repetitions):
            for seen, port, process in ways[1:]:
                _measure_streams(seen, port, process, sizes)
        for _ in range(sizes.repetitions):
            for seen, gateway in ((ours, _run_ours), (baseline, _run_baseline)):
                _measure_upload(seen, gateway, upstream, sizes)
    return _build_figures(direct, ours, baseline, sizes)


def _build_figures(
    direct: ProxyMeasurements, ours: ProxyMeasurements, baseline: ProxyMeasurements, sizes: ProxySizes
) -> list[BenchFigure]:
    usual, less = "FastAPI + httpx", SeriesComparison.TIMES_LESS
    per_request, crowd = "CPU of the gateway per request, 8 clients", "time per request, 8 clients"
    added = [[mine - bare for mine, bare in zip(way.p50_ms, direct.p50_ms, strict=True)] for way in (ours, baseline)]
    alone = f"Directly: {median(direct.p50_ms):.2f} ms. llama-swap, on another day: 0.46 ms more."
    together = f"Directly: {median(direct.crowd_ms):.2f} ms. All processes share the machine's cores."
    size = f"{sizes.upload_bytes >> 20} MB, the model first and with another name for the upstream"
    events = f"{sizes.streams} streams at once of {EVENTS} events each, paced as by a language model"
    return [
        BenchFigure("proxy-cpu", per_request, usual, "ms", ours.cpu_ms, baseline.cpu_ms, less, 12),
        BenchFigure("proxy-added", "added to the median latency", usual, "ms", *added, SeriesComparison.ABSOLUTE, 0.46, alone),
        BenchFigure("proxy-crowd", crowd, usual, "ms", ours.crowd_ms, baseline.crowd_ms, less, 3, together),
        BenchFigure("proxy-events", "CPU per event", usual, "µs", ours.event_us, baseline.event_us, less, None, events),
        BenchFigure(
            "proxy-upload-memory", f"growth of the peak memory, upload of {size}", usual, "MB",
            ours.growth_mb, baseline.growth_mb, SeriesComparison.ABSOLUTE, 8,
        ),
        BenchFigure(
            "proxy-upload-delay", "from the upload's last byte to the answer", "a gateway that buffers", "ms",
            ours.delay_ms, baseline.delay_ms, less, 20,
        ),
    ]  # fmt: skip


def _measure_chats(seen: ProxyMeasurements, port: int, process: psutil.Process | None, sizes: ProxySizes) -> None:
    seen.p50_ms.append(median(asyncio.run(measure_latencies(port, sizes.chats))) * 1e3)
    before = measure_cpu(process) if process else 0.0
    seen.crowd_ms.append(asyncio.run(measure_crowd(port, CLIENTS, sizes.chats // CLIENTS)) / sizes.chats * 1e3)
    seen.cpu_ms.append(((measure_cpu(process) if process else 0.0) - before) / sizes.chats * 1e3)


def _measure_streams(seen: ProxyMeasurements, port: int, process: psutil.Process | None, sizes: ProxySizes) -> None:
    assert process
    before = measure_cpu(process)
    asyncio.run(read_streams(port, sizes.streams))
    seen.event_us.append((measure_cpu(process) - before) / (sizes.streams * EVENTS) * 1e6)


def _measure_upload(seen: ProxyMeasurements, gateway: Gateway, upstream: int, sizes: ProxySizes) -> None:
    """A fresh gateway each time: what a process held once, its peak remembers."""
    with gateway(upstream) as (port, process):
        asyncio.run(measure_upload(port, 1 << 20))
        before = measure_peak_mb(process)
        seen.delay_ms.append(asyncio.run(measure_upload(port, sizes.upload_bytes)) * 1e3)
        seen.growth_mb.append(measure_peak_mb(process) - before)


@contextmanager
def run_upstream() -> Iterator[int]:
    """The server behind the gateways; its port."""
    port = find_free_port()
    with run_child(["-m", "bench.llm_server", str(port)]) as process:
        wait_until_healthy(port, process)
        yield port


@contextmanager
def _run_ours(upstream: int) -> Iterator[tuple[int, psutil.Process]]:
    entry = {"proxy": f"http://127.0.0.1:{upstream}", "useModelName": NAME}
    with run_server(warm=False, settings={"models": {"llm": entry}}) as server:
        yield server.port, server.gateway


@contextmanager
def _run_baseline(upstream: int) -> Iterator[tuple[int, psutil.Process]]:
    port = find_free_port()
    with run_child(["-m", "bench.fastapi_proxy", str(port), f"http://127.0.0.1:{upstream}"]) as process:
        wait_until_healthy(port, process)
        yield port, psutil.Process(process.pid)
