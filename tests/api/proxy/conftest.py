"""A gateway in a thread of this process, and HTTP programs behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import pytest
import uvicorn
import uvloop

from eardrum.config import Settings
from eardrum.gateway.service import Service
from eardrum.server.app import create_app
from eardrum.server.uvicorn_http import UvicornHttpProtocol
from eardrum.server.uvicorn_websocket import UvicornWebSocketProtocol


@dataclass
class GatewayUnderTest:
    """A gateway under test."""

    url: str
    service: Service
    loop: asyncio.AbstractEventLoop


class InstantServer(uvicorn.Server):
    """Begins and ends at once: uvicorn looks every tenth of a second whether it is to end, and rests for another meanwhile."""

    def __init__(self, config: uvicorn.Config):
        super().__init__(config)
        self.serving = Event()
        self.over = asyncio.Event()

    async def main_loop(self) -> None:
        self.serving.set()
        await self.over.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110 -- uvicorn has no event for it
                    await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@contextmanager
def run_gateway(**settings: Any) -> Iterator[GatewayUnderTest]:
    """A gateway with these settings on a free port; it ends with the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    service = Service(Settings(**settings))
    server = InstantServer(
        uvicorn.Config(create_app(service), http=UvicornHttpProtocol, ws=UvicornWebSocketProtocol, log_config=None, lifespan="on")
    )
    started = GatewayUnderTest(f"http://127.0.0.1:{listening.getsockname()[1]}", service, uvloop.new_event_loop())

    def serve() -> None:
        started.loop.run_until_complete(server.serve(sockets=[listening]))
        started.loop.run_until_complete(started.loop.shutdown_default_executor())
        started.loop.close()

    thread = Thread(target=serve, name="gateway")
    thread.start()
    try:
        assert server.serving.wait(60)
        yield started
    finally:
        started.loop.call_soon_threadsafe(server.over.set)
        thread.join(60)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture
def gateway() -> Callable[..., AbstractContextManager[GatewayUnderTest]]:
    return run_gateway
