"""Clients that ask and do not read: they are hung up on, and hold no model."""

from __future__ import annotations

import base64
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
import uvicorn
from aiohttp import web

from eardrum.api.asgi import Receive, Scope, Send, get_stall_timer
from eardrum.server.uvicorn_http import UvicornHttpProtocol
from tests.api.proxy.conftest import GatewayUnderTest, InstantServer, run_gateway
from tests.conftest import wait_for
from tests.upstreams import UpstreamCall, fake_upstream

STALL_S = 0.5
CHUNK = b"x" * 100_000
CHUNKS = 400
"""More than any system keeps for a connection."""


async def answer_flood(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
    """A server that says a lot, in the shape that the path or the body asks for."""
    if call.headers.get("upgrade"):
        there = web.WebSocketResponse()
        await there.prepare(request)
        for _ in range(CHUNKS):
            await there.send_bytes(CHUNK)
        return there
    if call.path.endswith("plain"):
        return web.Response(body=CHUNK * CHUNKS, content_type="application/octet-stream")
    kind = "application/x-ndjson" if call.path.endswith("lines") else "text/event-stream"
    response = web.StreamResponse(headers={"content-type": kind})
    await response.prepare(request)
    event = {"choices": [{"index": 0, "delta": {"content": CHUNK.decode()}}]}
    for _ in range(CHUNKS):
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    return response


@contextmanager
def connect_silent(gateway: GatewayUnderTest, request: bytes) -> Iterator[socket.socket]:
    """A client that sends a request and reads nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = gateway.url.removeprefix("http://").split(":")
        client.connect((host, int(port)))
        client.sendall(request)
        yield client


def build_get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


def build_post(path: str, **body: Any) -> bytes:
    data = json.dumps({"model": "m", "messages": [{"role": "user", "content": "?"}]} | body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n{data}".encode()
    )


SOCKET = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
KEY = f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}"

REQUESTS = {
    "plain": build_get("/upstream/m/plain"),
    "lines": build_get("/upstream/m/lines"),
    "events": build_post("/v1/chat/completions", stream=True),
    "ollama": build_post("/api/chat", stream=True),
    "ollama whole": build_post("/api/generate", prompt="?", stream=True),
    "socket": build_get("/upstream/m/ws", *SOCKET, KEY),
}


@pytest.mark.slow
def test_a_client_that_reads_nothing_holds_no_model(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with (
        fake_upstream(answer_flood) as upstream,
        run_gateway(models={"m": {"proxy": upstream.url}}, limits={"stall_timeout": STALL_S}) as gateway,
    ):
        model = gateway.service.find_model("m")
        for name, request in REQUESTS.items():
            caplog.clear()
            with connect_silent(gateway, request):
                wait_for(lambda: gateway.service.count_requests(model) == 1)
                began = time.monotonic()
                wait_for(lambda: gateway.service.count_requests(model) == 0)
                assert time.monotonic() - began > STALL_S / 2, name
                wait_for(lambda: f'note="The client read nothing for {STALL_S} s (limits.stall_timeout)."' in caplog.text)
        wait_for(lambda: upstream.in_flight == 0)


@pytest.mark.slow
def test_a_client_that_is_slow_gets_everything() -> None:
    with (
        fake_upstream(answer_flood) as upstream,
        run_gateway(models={"m": {"proxy": upstream.url}}, limits={"stall_timeout": 0.3}) as gateway,
        connect_silent(gateway, build_get("/upstream/m/plain", "Connection: close")) as client,
    ):
        began, received = time.monotonic(), 0
        while data := client.recv(4 << 20):
            received += len(data)
            if time.monotonic() - began < 2:
                time.sleep(0.1)  # a client that is busy between two reads
        assert received > len(CHUNK) * CHUNKS


@pytest.mark.slow
def test_an_answer_that_was_written_whole_does_not_wait_for_ever_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        stall = get_stall_timer(scope)
        assert stall
        stall.seconds = STALL_S
        body = CHUNK * CHUNKS
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    listening = socket.create_server(("127.0.0.1", 0))
    server = InstantServer(uvicorn.Config(app, http=UvicornHttpProtocol, log_config=None, lifespan="off"))
    thread = Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        assert server.serving.wait(60)
        with socket.create_connection(listening.getsockname()) as client:
            client.sendall(build_get("/"))
            wait_for(lambda: "Disconnected the client at 127.0.0.1: The client read nothing for 0.5 s" in caplog.text)
            wait_for(lambda: not server.server_state.connections)
    finally:
        server.servers[0].get_loop().call_soon_threadsafe(server.over.set)
        thread.join(60)
        listening.close()
