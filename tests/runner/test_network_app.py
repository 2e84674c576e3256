"""A runner's application on TCP: the token, the health, and the end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from eardrum.runner.network_app import NetworkApp

TOKEN = "0123456789abcdef0123"


class SlowApp:
    """An application that answers once it is let."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.served: list[str] = []

    def describe_health(self) -> dict[str, Any]:
        return {"status": "ok", "capabilities": {"languages": []}, "windows": 3}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.go.wait()
        self.served.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def create_app(token: str = TOKEN) -> tuple[NetworkApp, SlowApp]:
    inner = SlowApp()
    details = {"engine": "moonshine", "batch": 4, "placement": {}}
    return NetworkApp(inner, details, token=token, get_batch_age=lambda: 1.5), inner


async def ask(app: NetworkApp, path: str, method: str = "GET", token: str = TOKEN, **scope: Any) -> tuple[int, bytes, dict]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"authorization", token.encode("latin-1"))] if token else []
    await app({"type": "http", "path": path, "method": method, "headers": headers, **scope}, None, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent), dict(sent[0]["headers"])


@pytest.mark.parametrize("shown", ["", "Bearer ", "Bearer wrong", TOKEN, f"Bearer {TOKEN}x", f"bearer {TOKEN}", "Bearer \xff"])
@pytest.mark.parametrize("path", ["/health", "/transcribe", "/live", "/nothing"])
async def test_nothing_is_told_or_done_without_the_token(shown: str, path: str) -> None:
    app, inner = create_app()
    inner.go.set()
    status, body, headers = await ask(app, path, "POST", shown)
    assert (status, json.loads(body)["error"]["error"], headers[b"connection"]) == (401, "UnauthorizedError", b"close")
    assert inner.served == []


async def test_a_websocket_is_not_served() -> None:
    app, inner = create_app("")
    inner.go.set()
    await app({"type": "websocket", "path": "/live", "headers": []}, None, None)
    assert inner.served == []


async def test_its_health_tells_who_it_is_and_what_it_does() -> None:
    app, _ = create_app()
    status, body, _ = await ask(app, "/health", token=f"Bearer {TOKEN}")
    health = json.loads(body)
    assert status == 200
    assert (health["status"], health["engine"], health["batch"], health["batch_s"]) == ("ok", "moonshine", 4, 1.5)
    assert (health["requests"], health["windows"]) == (0, 3)
    assert len(health["instance"]) == 32
    other, _ = create_app()
    assert json.loads((await ask(other, "/health", token=f"Bearer {TOKEN}"))[1])["instance"] != health["instance"]


async def test_it_finishes_what_it_has_and_refuses_the_rest() -> None:
    app, inner = create_app("")
    begun = asyncio.create_task(ask(app, "/transcribe", "POST", ""))
    await asyncio.sleep(0)
    draining = asyncio.create_task(app.drain(60))
    await asyncio.sleep(0)
    health = json.loads((await ask(app, "/health", token=""))[1])
    assert (health["status"], health["requests"]) == ("draining", 1)
    status, body, _ = await ask(app, "/transcribe", "POST", "")
    assert (status, json.loads(body)["error"]["error"]) == (503, "ShuttingDownError")
    assert not draining.done()
    inner.go.set()
    assert (await begun)[:2] == (200, b"done")
    await asyncio.wait_for(draining, 30)


async def test_it_waits_no_longer_than_it_may() -> None:
    app, _ = create_app("")
    begun = asyncio.create_task(ask(app, "/transcribe", "POST", ""))
    await asyncio.sleep(0)
    await asyncio.wait_for(app.drain(0.01), 30)
    assert not begun.done()
    begun.cancel()
