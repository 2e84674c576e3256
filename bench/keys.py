"""What API keys and metrics cost a forwarded request: the same server with them and without."""

from __future__ import annotations

import asyncio
import cProfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from bench.chats import PLAIN, measure_crowd
from bench.client import MODEL, build_form
from bench.figure import BenchFigure, SeriesComparison
from bench.proxy import CLIENTS, run_upstream
from bench.recordings import create_clips
from bench.scale.scripted_engine import ScriptedModel
from bench.server import BenchServer, run_server
from bench.usage import measure_main_thread
from eardrum.config import Settings
from eardrum.gateway.service import Service
from eardrum.server.app import create_app

KEY = "sk-bench-0123456789abcdef"
REQUEST = PLAIN.replace(b"Accept:", f"Authorization: Bearer {KEY}\r\nAccept:".encode(), 1)
GUARDED = {"api_keys": [{"key": KEY, "name": "bench", "scopes": ["chat", "models", "transcribe"]}], "metrics": True}
OPEN: dict[str, Any] = {"metrics": False}

RATE = 1000.0
"""Seconds of audio that a second of the scripted engine's sleep transcribes. An engine that works would disturb the gateway."""
UPLOADS, FORWARDED = 40, 400
"""Requests of a turn: short ones, so that the two servers see the same machine."""
CALLED, WARM = 300, 50
"""Requests whose calls are counted, and those before them."""
TURNS, ASKED = 150, 40
"""Turns of the comparison in one process, and requests of each."""


def measure(quick: bool) -> list[BenchFigure]:
    """CPU and calls of a forwarded request, and CPU of an upload, with keys and metrics and without, in turns."""
    pairs, rounds = (1, 5) if quick else (12, 8)
    uploads: tuple[list[float], list[float]] = ([], [])
    forwarded: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        model = ScriptedModel(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eardrum-bench-model-"))))
        model.install()
        proxy = {"proxy": f"http://127.0.0.1:{stack.enter_context(run_upstream())}", "use_model_name": "the-real-name"}
        models = {"models": {MODEL: model.entry | {"options": {"rate": RATE}}, "llm": proxy}}
        llm = {"models": {"llm": proxy}}
        for pair in range(pairs):
            # Two servers that are alike differ by some percent, by the places of their objects in memory.
            environment = model.environment | {"PYTHONHASHSEED": str(pair)}
            with ExitStack() as running:
                started = {}
                for side in (pair % 2, 1 - pair % 2):
                    more, key = ((GUARDED, KEY), (OPEN, ""))[side]
                    started[side] = running.enter_context(run_server(settings=models | more, key=key, environment=environment))
                servers = started[0], started[1]
                for taken, request, count in ((uploads, build_upload(), UPLOADS), (forwarded, REQUEST, FORWARDED)):
                    for place, values in enumerate(measure_in_turns(servers, request, count, rounds)):
                        taken[place].extend(values)
        calls = [[asyncio.run(count_calls(llm | more))] for more in (GUARDED, OPEN)]
        inside = asyncio.run(measure_applications(llm | GUARDED, llm | OPEN))
    what, against = "CPU of the gateway per {} with a key, `/metrics` served", "no keys, no `/metrics`"
    counted = "calls of Python functions per forwarded request, from the ASGI application on"
    note = f"The gateway alone; the model sleeps instead of working. {pairs} pairs of servers, {rounds} turns each."
    share = SeriesComparison.SHARE
    return [
        BenchFigure("keys-upload-cpu", what.format("transcription of 5 s"), against, "ms", *uploads, share, 1.02, note),
        BenchFigure("keys-cpu", what.format("forwarded request"), against, "ms", *forwarded, share),
        BenchFigure("keys-calls", counted, against, "", *calls, share),
        BenchFigure("keys-inside", "CPU of the application for it, both in one process", against, "µs", *inside, share),
    ]


def build_upload() -> bytes:
    """A request with a key for the transcription of a short recording."""
    body = build_form(create_clips(1)[0])
    head = f"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {KEY}\r\n{body.headers}"
    return f"{head}Content-Length: {body.size}\r\n\r\n".encode() + b"".join(body.pieces)


def measure_in_turns(servers: Sequence[BenchServer], request: bytes, count: int, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of CPU that the gateway's main thread takes per request, of each of the two servers in each round."""
    cpu: tuple[list[float], list[float]] = [], []
    for server in servers:
        asyncio.run(measure_crowd(server.port, CLIENTS, max(1, count // CLIENTS // 4), request))
    for turn in range(rounds):
        for place in (0, 1) if turn % 2 == 0 else (1, 0):
            server = servers[place]
            before = measure_main_thread(server.gateway)
            asyncio.run(measure_crowd(server.port, CLIENTS, count // CLIENTS, request))
            cpu[place].append((measure_main_thread(server.gateway) - before) / count * 1e3)
    return cpu


@asynccontextmanager
async def open_application(settings: dict[str, Any]) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A gateway's application in this process. The function sends it a request that is forwarded, and waits for the answer."""
    service = Service(Settings(**settings))
    app = create_app(service)
    head, _, body = REQUEST.partition(b"\r\n\r\n")
    lines = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
    headers = [(name.lower(), value) for name, _, value in lines]
    path = head.split()[1]
    arrived = {"type": "http.request", "body": body, "more_body": False}
    extensions = {"eardrum.arrived": {"call": lambda: True}, "eardrum.when_gone": {"call": lambda _: None}}
    statuses = set[int]()

    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            return arrived

        async def send(message: Any) -> None:
            statuses.add(message.get("status", 200))

        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path.decode(), "raw_path": path, "query_string": b""}
        await app(scope | {"headers": headers, "client": ("127.0.0.1", 1), "extensions": extensions}, receive, send)

    try:
        for _ in range(WARM):
            await ask()
        yield ask
    finally:
        await service.shutdown()
    if statuses != {200}:
        raise RuntimeError(f"The statuses were {statuses}")


async def count_calls(settings: dict[str, Any]) -> float:
    """Count the calls of Python functions that a forwarded request causes in a gateway with these settings."""
    profile = cProfile.Profile()
    async with open_application(settings) as ask:
        profile.enable()
        for _ in range(CALLED):
            await ask()
        profile.disable()
    return sum(entry.callcount for entry in profile.getstats() if not isinstance(entry.code, str)) / CALLED


async def measure_applications(guarded: dict[str, Any], plain: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Microseconds of CPU per forwarded request of two applications in this process, with keys and without, in turns."""
    cpu: tuple[list[float], list[float]] = [], []
    async with open_application(guarded) as ask_guarded, open_application(plain) as ask_plain:
        asking = ask_guarded, ask_plain
        for turn in range(TURNS):
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                began = time.thread_time()
                for _ in range(ASKED):
                    await asking[place]()
                cpu[place].append((time.thread_time() - began) / ASKED * 1e6)
    return cpu
