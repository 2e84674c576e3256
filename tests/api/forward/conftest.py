"""A gateway in a thread of this process, and HTTP programs behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest
import uvicorn
import uvloop

from eardrum.app import create_app
from eardrum.config import Settings
from eardrum.gateway.service import Service
from eardrum.http import Http
from eardrum.websocket import WebSocket


@dataclass
class Gateway:
    """A gateway under test."""

    url: str
    service: Service
    loop: asyncio.AbstractEventLoop


@contextmanager
def serving(**settings: Any) -> Iterator[Gateway]:
    """A gateway with these settings on a free port; it ends with the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    service = Service(Settings(**settings))
    config = uvicorn.Config(
        create_app(service), http=Http, ws=WebSocket, log_config=None, timeout_graceful_shutdown=1, lifespan="on"
    )
    server = uvicorn.Server(config)
    started = Gateway(f"http://127.0.0.1:{listening.getsockname()[1]}", service, uvloop.new_event_loop())

    def serve() -> None:
        started.loop.run_until_complete(server.serve(sockets=[listening]))
        started.loop.run_until_complete(started.loop.shutdown_default_executor())
        started.loop.close()

    thread = Thread(target=serve, name="gateway")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        yield started
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture
def gateway() -> Callable[..., AbstractContextManager[Gateway]]:
    return serving


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
