"""Half an hour of mixed traffic, clients that leave and processes that are killed: what the server keeps and loses of it."""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import psutil

from bench.children import run_child
from bench.client import MODEL
from bench.figure import BenchFigure, SeriesComparison
from bench.server import BenchServer, find_free_port, post_clip, run_server, wait_until_healthy
from bench.soak_answers import RefusedAnswerError, SoakTally, WrongAnswerError
from bench.soak_clients import CLIENTS, COMMAND, ELSEWHERE, Client, SoakTarget
from bench.soak_followers import StreamFollower, run_followers
from bench.soak_samples import MemorySample, count_client_connections, find_median, keep_sampling
from bench.whispers import NAME as WHISPER
from bench.whispers import build_hearing, build_settings
from eardrum.concurrency import MAX_POOL_THREADS

LEAVING = 1 / 3
MEANING_TO = 2 / 3
"""Who leaves at a moment chosen before may have its answer by then; so more mean to leave, while fewer than a third have."""

LONGEST_S = 120.0
"""Who has no answer after so long gets none."""

PAUSE_S = 1.0
"""A client's, on the average, between two requests: the machine is busy and not overwhelmed."""

COMMAND_PORT = 21800
"""The command's. The default, 5800, may be another server's on a machine that is used meanwhile."""

ENDS_S = 20.0
GROWTH = 1.05


@dataclass(frozen=True, slots=True)
class SoakSizes:
    """How long, how much at once, how often something is done to the processes, and the stretches that are compared."""

    seconds: float
    clients: int
    followers: int
    disturb_s: float
    compared_at: float
    compared_s: float


FULL = SoakSizes(seconds=1800, clients=12, followers=40, disturb_s=10, compared_at=300, compared_s=60)
QUICK = SoakSizes(seconds=60, clients=6, followers=8, disturb_s=5, compared_at=30, compared_s=10)


@dataclass(slots=True)
class SoakResult:
    """What was seen."""

    samples: list[MemorySample] = field(default_factory=list)
    tally: SoakTally = field(default_factory=SoakTally)
    done: dict[str, int] = field(default_factory=dict)
    """To the processes, and how often."""
    followers: Sequence[StreamFollower] = ()
    left_connections: int = 0
    """Connections of clients that the gateway has after all of them are gone."""


def measure(quick: bool) -> list[BenchFigure]:
    """What the gateway holds at the end, against what it held after five minutes; lost followers and wrong answers."""
    sizes = QUICK if quick else FULL
    with _run_server() as (server, wyoming):
        soak = asyncio.run(_run_soak(server, wyoming, sizes))
        soak.left_connections = _count_left_connections(server)
    return _build_figures(soak, sizes)


@contextmanager
def _run_server() -> Iterator[tuple[BenchServer, int]]:
    """Speech models of two engines, a command, a server at an address, and Home Assistant's port."""
    upstream, wyoming = find_free_port(), find_free_port()
    with run_child(["-m", "bench.llm_server", str(upstream)]) as process, build_hearing() as whisper:
        wait_until_healthy(upstream, process)
        models = {
            COMMAND: {"cmd": f"{sys.executable} -m bench.llm_server ${{PORT}}"},
            ELSEWHERE: {"proxy": f"http://127.0.0.1:{upstream}"},
            **build_settings(whisper)["models"],
        }
        given = {"models": models, "default_model": MODEL, "startPort": COMMAND_PORT}
        with run_server(settings=given, arguments=("--wyoming", "--wyoming-port", str(wyoming))) as server:
            post_clip(server.port, WHISPER)
            yield server, wyoming


async def _run_soak(server: BenchServer, wyoming: int, sizes: SoakSizes) -> SoakResult:
    soak, chance, began = SoakResult(), random.Random(7), time.monotonic()
    connector = aiohttp.TCPConnector(limit=0)
    async with run_followers(server.port, sizes.followers) as followers, aiohttp.ClientSession(connector=connector) as http:
        soak.followers = followers
        there = SoakTarget(server.port, wyoming, http, chance)
        usual: dict[Client, float] = dict.fromkeys(CLIENTS, 1.0)
        beside = [
            asyncio.create_task(keep_sampling(server, soak.samples, began)),
            asyncio.create_task(_disturb_processes(server, http, sizes.disturb_s, chance, soak)),
        ]
        clients = [_run_client(there, usual, soak.tally, began + sizes.seconds) for _ in range(sizes.clients)]
        traffic = asyncio.gather(*clients)
        await asyncio.wait([traffic, *beside], return_when=asyncio.FIRST_COMPLETED)
        for task in beside:
            if task.done():
                traffic.cancel()
                task.result()
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await traffic
        await _listen_once_more(server, followers)
    return soak


async def _run_client(server: SoakTarget, usual: dict[Client, float], tally: SoakTally, until: float) -> None:
    """One request after another, a third of them given up in the middle."""
    chance = server.chance
    while time.monotonic() < until:
        client = chance.choices(list(CLIENTS), list(CLIENTS.values()))[0]
        leaves = tally.left.total() <= LEAVING * tally.count and chance.random() < MEANING_TO
        began, task = time.monotonic(), asyncio.ensure_future(client(server))
        await asyncio.wait([task], timeout=usual[client] * chance.uniform(0.05, 0.8) if leaves else LONGEST_S)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            if leaves:
                tally.left[client.__name__] += 1
            else:
                tally.wrong.append(f"{client.__name__}: no answer in {LONGEST_S:g} s")
        else:
            usual[client] += (time.monotonic() - began - usual[client]) / 4
            _count_outcome(client.__name__, task, tally)
        await asyncio.sleep(chance.expovariate(1 / PAUSE_S))


def _count_outcome(name: str, task: asyncio.Future[None], tally: SoakTally) -> None:
    try:
        task.result()
        tally.right[name] += 1
    except RefusedAnswerError as error:
        tally.refused[str(error)] += 1
    except WrongAnswerError as error:
        tally.wrong.append(f"{name}: {error}")
    except (aiohttp.ClientError, OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        tally.wrong.append(f"{name}: {error!r}")


async def _disturb_processes(
    server: BenchServer, http: aiohttp.ClientSession, every_s: float, chance: random.Random, soak: SoakResult
) -> None:
    """Kill a process, or have a model unloaded, again and again."""
    while True:
        await asyncio.sleep(every_s)
        kind = chance.choice(["killed", "killed", "unloaded", "unloaded", "unloaded by force", "all unloaded"])
        if kind == "killed":
            if not (running_ones := server.gateway.children()):
                continue
            with suppress(psutil.NoSuchProcess):
                chance.choice(running_ones).send_signal(signal.SIGKILL)
        else:
            method, path = _choose_unloading(kind, chance.choice([MODEL, MODEL, WHISPER, COMMAND]))
            async with http.request(method, f"http://127.0.0.1:{server.port}{path}") as answer:
                if answer.status not in (200, 404):  # 404 where it is not loaded
                    soak.tally.wrong.append(f"{method} {path}: {answer.status} {(await answer.text())[:300]}")
        soak.done[kind] = soak.done.get(kind, 0) + 1


def _choose_unloading(kind: str, model: str) -> tuple[str, str]:
    if kind == "all unloaded":
        return "POST", "/api/models/unload"
    return "DELETE", f"/api/ps/{model}" + ("?force=true" if kind == "unloaded by force" else "")


async def _listen_once_more(server: BenchServer, followers: Sequence[StreamFollower]) -> None:
    """Do something that every follower hears of, and see that they do."""
    asked = time.monotonic()
    await asyncio.to_thread(server.unload_model, MODEL)
    await asyncio.to_thread(post_clip, server.port)
    with suppress(TimeoutError):
        async with asyncio.timeout(ENDS_S):
            for one in followers:
                await one.wait_for_event(asked)
    for one in followers:
        if one.heard_at < asked and not one.lost:
            one.lost = f"{one.path} is silent"


def _count_left_connections(server: BenchServer) -> int:
    ends = time.monotonic() + ENDS_S
    while (left := count_client_connections(server.gateway)) and time.monotonic() < ends:
        time.sleep(0.5)
    return left


def _build_figures(soak: SoakResult, sizes: SoakSizes) -> list[BenchFigure]:
    tally, followers = soak.tally, soak.followers
    lost = [one.lost for one in followers if one.lost]
    done = ", ".join(f"{count} {kind}" for kind, count in sorted(soak.done.items()))
    span = f"{sizes.compared_s:g} s up to second {sizes.compared_at:g}"
    note = (
        f"Medians of the last {sizes.compared_s:g} of {sizes.seconds:g} s, and of the {span}, a sample every two seconds. "
        f"{sizes.clients} clients, {tally.count / sizes.seconds:.1f} requests a second. Processes: {done}."
    )
    heard = f"{sum(one.bytes for one in followers) / 1e6:.0f} MB of events and log lines were read."
    most = max(soak.samples, key=lambda one: one.other_threads).threads
    threads = f"At most: {', '.join(f'{count} {name}' for name, count in sorted(most.items()))}."
    tracebacks = max((one.tracebacks for one in followers), key=len)

    def figure(
        name: str, what: str, unit: str, value: Callable[[MemorySample], float], *, counts: bool = True, note: str = ""
    ) -> BenchFigure:
        at = sizes.compared_at
        late = find_median(soak.samples, sizes.seconds - sizes.compared_s, sizes.seconds, value)
        early = find_median(soak.samples, at - sizes.compared_s, at, value)
        against = f"in minute {at / 60:g}"
        return BenchFigure(name, what, against, unit, [late], [early], SeriesComparison.SHARE, GROWTH if counts else None, note)

    fresh = "Of processes that are some seconds to some minutes old, since they are killed and unloaded: it goes up and down."
    return [
        figure("soak-memory", "memory of the gateway (RSS) at the end", "MB", lambda one: one.rss_mb, note=note),
        figure("soak-descriptors", "its open descriptors, without the clients' connections", "", lambda one: one.descriptors),
        figure("soak-connections", "connections of clients", "", lambda one: one.connections, counts=False,
               note="They follow the traffic of the moment."),
        BenchFigure("soak-left", "connections that are open after the last client is gone", "", "", [soak.left_connections], [],
               SeriesComparison.ABSOLUTE, 0, ""),
        figure("soak-threads", "its threads, without those of the pool", "", lambda one: one.other_threads, note=threads),
        BenchFigure("soak-pool", "most threads of its pool", "", "", [max(one.pool_threads for one in soak.samples)], [],
               SeriesComparison.ABSOLUTE, MAX_POOL_THREADS, "They are started as they are needed, and stay."),
        figure("soak-children", "its processes", "", lambda one: one.children),
        figure("soak-models", "memory of those processes", "MB", lambda one: one.models_mb, counts=False, note=fresh),
        BenchFigure("soak-followers", f"of {len(followers)} followers of events and logs, lost", "", "", [len(lost)], [],
               SeriesComparison.ABSOLUTE, 0, f"{heard} {'; '.join(lost[:5])}"),
        BenchFigure("soak-answers", "answers that are neither right nor a documented error", "", "", [len(tally.wrong)], [],
               SeriesComparison.ABSOLUTE, 0, str(tally)),
        BenchFigure("soak-tracebacks", "tracebacks in the log", "", "", [len(tracebacks)], [],
               SeriesComparison.ABSOLUTE, 0, " | ".join(one.replace("\n", " / ") for one in tracebacks[:3])),
    ]  # fmt: skip
