"""A server that hears of its end without looking for it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from eardrum import uvicorn_server
from eardrum.uvicorn_server import IdleServer


async def answer_request(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


class TickCountingServer(IdleServer):
    """Counts how often it looks."""

    def __init__(self) -> None:
        super().__init__(uvicorn.Config(answer_request, lifespan="off", log_config=None))
        self.looks = 0
        self.looked = asyncio.Event()

    async def on_tick(self, counter: int) -> bool:
        over = await super().on_tick(counter)
        self.looks += 1
        self.looked.set()
        return over


@asynccontextmanager
async def run_server() -> AsyncIterator[tuple[TickCountingServer, int]]:
    """A server and its port. It must end within a few seconds of the end of the block."""
    server = TickCountingServer()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        await asyncio.wait_for(server.looked.wait(), 60)
        yield server, listening.getsockname()[1]
        await asyncio.wait_for(serving, 60)


async def read_date(port: int) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    head = (await reader.read()).decode()
    writer.close()
    return next(line for line in head.splitlines() if line.startswith("date:"))


@pytest.fixture
def _ignored_sigterm() -> Iterator[None]:
    """uvicorn raises the signal once more that ended it."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_ignored_sigterm")
@pytest.mark.parametrize("end", [IdleServer.request_exit, lambda _: os.kill(os.getpid(), signal.SIGTERM)], ids=["call", "signal"])
async def test_it_ends_when_told_and_not_at_its_next_look(
    end: Callable[[IdleServer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_server, "DATE_INTERVAL_S", 60.0)
    async with run_server() as (server, _):
        await asyncio.to_thread(end, server)
    assert server.looks == 2


async def test_it_looks_now_and_then_for_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn_server, "DATE_INTERVAL_S", 0.01)
    async with run_server() as (server, port):
        monkeypatch.setattr("uvicorn.server.time.time", lambda: 0.0)
        server.looked.clear()
        await server.looked.wait()
        assert await read_date(port) == "date: Thu, 01 Jan 1970 00:00:00 GMT"
        server.request_exit()


async def test_one_that_was_told_before_it_began_does_not_begin() -> None:
    server = TickCountingServer()
    server.request_exit()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await asyncio.wait_for(server.serve(sockets=[listening]), 60)
    assert not server.looks


def test_one_that_has_ended_may_be_told_again() -> None:
    """As a runner is whose parent ends while it ends itself."""

    async def serve() -> IdleServer:
        async with run_server() as (server, _):
            server.request_exit()
        return server

    asyncio.run(serve()).request_exit()
