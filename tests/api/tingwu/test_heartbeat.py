"""A client that says nothing hears a heartbeat."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eardrum.api.activity import Activity, Record
from eardrum.api.sockets import Socket
from eardrum.api.tingwu import messages
from eardrum.api.tingwu.conversation import Conversation
from eardrum.config import Settings
from eardrum.errors import ShuttingDownError
from eardrum.gateway.service import Service
from tests.api.test_sockets import Client


async def test_a_silent_client_hears_a_heartbeat_until_the_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "HEARTBEAT_S", 0.01)
    client = Client()
    scope: dict[str, Any] = {"path": "/ws/realtime", "extensions": {}}
    scope["eardrum.record"] = Record("req_1", scope, Activity())

    async def work(socket: Socket) -> None:
        async with socket:
            asyncio.get_running_loop().call_later(0.1, client.over.set)
            await Conversation(Service(Settings()), socket, scope).run()

    with pytest.raises(ShuttingDownError):
        await work(client.socket())
    told = [message["text"] for message in client.sent if message["type"] == "websocket.send"]
    assert '"connected"' in told[0]
    assert len(told) > 2
    assert all('"ping"' in text and '"timestamp"' in text for text in told[1:])
