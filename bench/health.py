"""How long the event loop keeps `GET /health` waiting, beside what clients may do to it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import aiohttp

from bench.chats import open_connection
from bench.children import ask_child, run_child
from bench.client import MODEL, open_exchange, transcribe
from bench.figure import BenchFigure, SeriesComparison
from bench.health_looks import Look
from bench.live_client import PATH
from bench.recordings import GeneratedWav, create_30_s_clip
from bench.server import BenchServer, find_free_port, run_server, wait_until_healthy

TARGET_MS = 20
BARE = "a bare asyncio server"


@dataclass(frozen=True, slots=True)
class HealthSizes:
    """How much is measured: rounds of so many seconds each, and what is beside them."""

    rounds: int
    seconds: float
    uploads: int
    upload: int
    transcriptions: int
    models: int
    sockets: int


FULL = HealthSizes(rounds=3, seconds=10, uploads=8, upload=100_000_000, transcriptions=30, models=2000, sockets=500)
QUICK = HealthSizes(rounds=1, seconds=2, uploads=3, upload=10_000_000, transcriptions=5, models=200, sockets=30)


@dataclass(slots=True)
class HealthTimes:
    """Of one load, in ms: what 99 % of the looks of each round stayed below; all looks; how long the gateway had no core."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    all_ours: list[float] = field(default_factory=list)
    all_bare: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)

    def add_round(self, ours: Sequence[float], bare: Sequence[float], waited: float) -> None:
        """A round; in milliseconds."""
        self.ours.append(find_highest(ours))
        self.bare.append(find_highest(bare))
        self.all_ours += ours
        self.all_bare += bare
        self.waited.append(waited)

    def __str__(self) -> str:
        return (
            f"{len(self.all_ours)} looks, median {median(self.all_ours):.1f} ms, longest {max(self.all_ours):.0f} ms; the bare "
            f"server {median(self.all_bare):.1f} and {max(self.all_bare):.0f} ms. The gateway had work and no core for "
            f"{median(self.waited):.0f} ms of each second."
        )


@dataclass(frozen=True, slots=True)
class HealthWatch:
    """A server, and the process that looks at its `/health` and at that of the bare one in turns."""

    server: BenchServer
    looking: subprocess.Popen[bytes]

    async def run_beside(self, seconds: float, load: Load, times: HealthTimes) -> None:
        """Look as long as the load lasts. Where that is not all the time, only the looks that began beside it count."""
        before, began = _read_waited_s(self.server), time.monotonic()
        await asyncio.to_thread(ask_child, self.looking, "begin")
        try:
            spans = await load(seconds)
        finally:
            said = await asyncio.to_thread(ask_child, self.looking, "end")
        waited = (_read_waited_s(self.server) - before) / (time.monotonic() - began)
        ours, bare = ([1000 * took for took in _select_looks(looks, spans)] for looks in said["looks"])
        times.add_round(ours, bare, 1000 * waited)


Spans = Sequence[tuple[float, float]]
Load = Callable[[float], Awaitable[Spans]]
"""Does something for so many seconds, and says from when to when it really did."""


def measure(quick: bool) -> list[BenchFigure]:
    """Nothing, uploads, transcriptions, a long list and idle connections beside it."""
    sizes = QUICK if quick else FULL
    settings: dict[str, Any] = {"limits": {"requests": 1000}, "live": {"max_sessions": 1000}}
    with _watch_server(settings) as watch:
        figures = asyncio.run(_measure_beside_clients(watch, sizes))
    names = [f"model-{number}" for number in range(sizes.models)]
    models = {name: {"proxy": "http://127.0.0.1:9", "aliases": [f"{name}-too"]} for name in names}
    with _watch_server(settings | {"models": models}) as watch:
        return [*figures, *asyncio.run(_measure_beside_list(watch, sizes))]


@contextmanager
def _watch_server(settings: dict[str, Any]) -> Iterator[HealthWatch]:
    port = find_free_port()
    with run_server(settings=settings) as server, run_child(["-m", "bench.bare_server", str(port)]) as bare:
        wait_until_healthy(port, bare)
        with run_child(["-m", "bench.health_looks", str(server.port), str(port)], pipes=True) as looking:
            yield HealthWatch(server, looking)


async def _measure_beside_clients(watch: HealthWatch, sizes: HealthSizes) -> list[BenchFigure]:
    port = watch.server.port
    quiet, uploads, transcriptions, sockets = HealthTimes(), HealthTimes(), HealthTimes(), HealthTimes()
    for _ in range(sizes.rounds):
        await watch.run_beside(sizes.seconds, _do_nothing, quiet)
        await watch.run_beside(sizes.seconds, lambda seconds: _run_uploads(port, sizes, seconds), uploads)
        await watch.run_beside(sizes.seconds, lambda seconds: _run_transcriptions(port, sizes, seconds), transcriptions)
        async with _hold_idle(port, sizes.sockets):
            await watch.run_beside(sizes.seconds, _do_nothing, sockets)
    note = (
        f"Beside every figure: {BARE} that is asked in turns with ours, each over a new connection, by a process of its own. "
        "It has nothing else to do, so it shows what the machine's other work costs."
    )
    during = "Of the looks only those that began while something was being sent."
    kinds = "A third of them never sent a byte, a third had one answer, a third are live sessions in which nobody speaks."
    return [
        _build_figure("health-quiet", "nothing", quiet, f"{note} {quiet}", target=False),
        _build_figure("health-uploads", f"{sizes.uploads} uploads of {sizes.upload / 1e6:g} MB", uploads, f"{during} {uploads}"),
        _build_figure(
            "health-transcriptions", f"{sizes.transcriptions} transcriptions at once", transcriptions, str(transcriptions)
        ),
        _build_figure("health-sockets", f"{sizes.sockets} idle connections", sockets, f"{kinds} {sockets}"),
    ]


async def _measure_beside_list(watch: HealthWatch, sizes: HealthSizes) -> list[BenchFigure]:
    quiet, listing = HealthTimes(), HealthTimes()
    for _ in range(sizes.rounds):
        await watch.run_beside(sizes.seconds, _do_nothing, quiet)
        await watch.run_beside(sizes.seconds, lambda seconds: _read_list(watch.server.port, seconds), listing)
    what = f"`/v1/models` of {sizes.models} models"
    return [
        _build_figure(
            "health-many-models", f"nothing, with {sizes.models} models, which it names", quiet, str(quiet), target=False
        ),
        _build_figure("health-list", f"{what}, again and again", listing, str(listing)),
    ]


def _build_figure(name: str, beside: str, times: HealthTimes, note: str, *, target: bool = True) -> BenchFigure:
    what = f"`/health` beside {beside}: 99 % within"
    return BenchFigure(
        name, what, BARE, "ms", times.ours, times.bare, SeriesComparison.ABSOLUTE, TARGET_MS if target else None, note
    )


async def _do_nothing(seconds: float) -> Spans:
    began = time.monotonic()
    await asyncio.sleep(seconds)
    return [(began, time.monotonic())]


async def _run_uploads(port: int, sizes: HealthSizes, seconds: float) -> Spans:
    """So many at once, and again when all are answered, until something was being sent for so long."""
    spans: list[tuple[float, float]] = []
    while sum(end - begin for begin, end in spans) < seconds:
        began, files = time.monotonic(), [_NotedUpload(sizes.upload) for _ in range(sizes.uploads)]
        await asyncio.gather(*(transcribe(port, file) for file in files))
        spans.append((began, max(file.sent_at for file in files)))
    return spans


class _NotedUpload(GeneratedWav):
    """A file that notes when the last of it was sent."""

    sent_at = 0.0

    def __iter__(self) -> Iterator[bytes]:
        yield from super().__iter__()
        self.sent_at = time.monotonic()


async def _run_transcriptions(port: int, sizes: HealthSizes, seconds: float) -> Spans:
    """So many clients, each with its next recording when the last one is answered."""
    recording, began = create_30_s_clip(), time.monotonic()

    async def client() -> None:
        while True:
            await transcribe(port, recording, response_format="verbose_json")

    tasks = [asyncio.create_task(client()) for _ in range(sizes.transcriptions)]
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    ended = time.monotonic()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return [(began, ended)]


async def _read_list(port: int, seconds: float) -> Spans:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        async with open_exchange(port, "/v1/models") as answer:
            json.loads(await answer.read())
    return [(began, time.monotonic())]


@asynccontextmanager
async def _hold_idle(port: int, count: int) -> AsyncIterator[None]:
    """Open connections on which nothing happens."""
    url = f"ws://127.0.0.1:{port}{PATH}?model={MODEL}"
    async with AsyncExitStack() as open_ones:
        http = await open_ones.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        for number in range(count):
            if number % 3 == 0:
                socket = await open_ones.enter_async_context(http.ws_connect(url))
                await socket.receive_str()
                continue
            reader, writer = await open_ones.enter_async_context(open_connection(port))
            if number % 3 == 1:
                writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
        yield


def _select_looks(looks: Sequence[Look], spans: Spans) -> list[float]:
    return [took for at, took in looks if any(begin <= at < end for begin, end in spans)]


def find_highest(values: Sequence[float]) -> float:
    """What 99 % stay below; the highest of a few."""
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


def _read_waited_s(server: BenchServer) -> float:
    """Seconds in which the gateway could have run and had no core, so far."""
    return int(Path(f"/proc/{server.gateway.pid}/schedstat").read_text(encoding="ascii").split()[1]) / 1e9
