"""A client that says nothing hears a heartbeat."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eardrum.api.request_log import RequestRecord, RequestTracker
from eardrum.api.tingwu import realtime as tingwu
from eardrum.api.tingwu.realtime import TingWuConnection
from eardrum.api.websocket import ServerWebSocket
from eardrum.concurrency import run_alongside
from eardrum.config import Settings
from eardrum.errors import ShuttingDownError
from eardrum.gateway.service import Service
from tests.api.test_websocket import AsgiClient


async def end_after(client: AsgiClient, count: int) -> None:
    """End the server once the client was told so much."""
    while len(client.sent) <= count:  # noqa: ASYNC110 -- it has no event for it
        await asyncio.sleep(0.01)
    client.over.set()


async def test_a_silent_client_hears_a_heartbeat_until_the_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tingwu, "HEARTBEAT_S", 0.01)
    client = AsgiClient()
    scope: dict[str, Any] = {"path": "/ws/realtime", "extensions": {}}
    scope["eardrum.record"] = RequestRecord("req_1", scope, RequestTracker())

    async def work(socket: ServerWebSocket) -> None:
        async with socket:
            conversation = TingWuConnection(Service(Settings()), socket, scope)
            await run_alongside(conversation.run(), end_after(client, 4))

    with pytest.raises(ShuttingDownError):
        await work(client.create_socket())
    told = [message["text"] for message in client.sent if message["type"] == "websocket.send"]
    assert '"connected"' in told[0]
    assert len(told) > 3
    assert all('"ping"' in text and '"timestamp"' in text for text in told[1:])
