"""What WebSockets need that last: pings that wait for those who are behind, and a word before the server ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from eardrum.api.asgi import Receive, Scope, Send
from eardrum.server import uvicorn_websocket
from eardrum.server.uvicorn_websocket import UvicornWebSocketProtocol

PING_S = 0.2

Talk = Callable[[Scope, Receive, Send], Awaitable[None]]


@asynccontextmanager
async def run_server(talk: Talk, *, ping_s: float = PING_S) -> AsyncIterator[tuple[uvicorn.Server, str]]:
    """A server whose WebSockets are accepted, and then given to `talk`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await talk(scope, receive, send)

    config = uvicorn.Config(
        app,
        port=0,
        ws=UvicornWebSocketProtocol,
        ws_ping_interval=ping_s,
        ws_ping_timeout=ping_s,
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 -- it has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield server, f"ws://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        await serving


async def is_sending(socket: ClientConnection, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await socket.send(b"x")
        await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_who_is_read_late_may_answer_pings_late() -> None:
    heard = []

    async def slow(_: Scope, receive: Receive, __: Send) -> None:
        while (message := await receive())["type"] == "websocket.receive":
            heard.append(message["bytes"])
            await asyncio.sleep(0.1)

    async with run_server(slow) as (_, address), connect(address, ping_interval=None) as socket:
        for _ in range(25):
            await socket.send(bytes(200_000))
        await asyncio.sleep(2.0)  # many times the patience with pings
        assert socket.close_code is None
        assert len(heard) > 10


async def test_who_is_read_and_answers_no_ping_is_gone_however_much_it_says() -> None:
    ended = asyncio.Event()

    async def prompt(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(40):  # more than the client takes in: it stops reading, pings included
            await send({"type": "websocket.send", "bytes": bytes(1000)})
        while (await receive())["type"] == "websocket.receive":
            pass
        ended.set()

    async with run_server(prompt) as (_, address):
        async with connect(address, ping_interval=None, max_queue=1, close_timeout=0.1) as socket:
            with pytest.raises(ConnectionClosed):
                await is_sending(socket, 15)
        assert ended.is_set()


@pytest.mark.parametrize("size", [1000, 1001])
async def test_a_message_larger_than_the_application_takes_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(uvicorn_websocket, "CLOSE_TIMEOUT_S", 0.2)

    async def modest(scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"]["eardrum.largest"]["call"](1000)
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": str(len(message["bytes"]))})

    async with run_server(modest) as (_, address), connect(address) as socket:
        await socket.send(bytes(size))
        if size == 1000:
            assert await socket.recv() == "1000"
        else:
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 1009


async def test_text_that_is_no_utf8_ends_the_connection_without_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_websocket, "CLOSE_TIMEOUT_S", 0.2)

    async def listens(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "websocket.receive":
            pass

    async with run_server(listens) as (_, address):
        for pieces in ([b"\xff"], [b"\xc3", b"\x28"]):
            async with connect(address) as socket:
                await socket.send(pieces, text=True)
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 1007
        async with connect(address) as socket:
            await socket.send([b"\xc3", b"\xa4"], text=True)
            await socket.close()
            assert socket.close_code == 1000
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


HANDSHAKE = (
    b"Host: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /?" + b"x" * 9000 + b" HTTP/1.1\r\n" + HANDSHAKE, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + HANDSHAKE + b"Cookie: " + b"x" * 9000 + b"\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + HANDSHAKE + b"X-A: b\r\n" * 130, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\n" + HANDSHAKE + b"Content-Length: 5\r\n", 400, "invalid_value"),
        (b"GET / HTTP/1.1\r\n" + HANDSHAKE + b"Transfer-Encoding: chunked\r\n", 400, "invalid_value"),
    ],
)
async def test_a_head_that_is_no_handshake_is_refused_and_not_left_without_an_answer(head: bytes, status: int, code: str) -> None:
    async def leave(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("this was no handshake")

    async with run_server(leave) as (server, address):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rsplit(":", 1)[1].strip("/")))
        writer.write(head + b"\r\n")
        async with asyncio.timeout(5):
            answer, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"content-type: application/json" in answer
        assert json.loads(body)["error"]["code"] == code
        writer.close()
        while server.server_state.connections:  # noqa: ASYNC110 -- it has no event for it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("farewell", [True, False])
async def test_who_says_farewell_closes_when_the_server_ends(monkeypatch: pytest.MonkeyPatch, farewell: bool) -> None:
    monkeypatch.setattr(uvicorn_websocket, "CLOSE_TIMEOUT_S", 0.2)
    over = asyncio.Event()

    async def talks(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["extensions"]["eardrum.connection"]["transport"].get_extra_info("peername")
        if farewell:
            scope["extensions"]["eardrum.farewell"]["call"]()
            await over.wait()
            await send({"type": "websocket.send", "text": "last words"})
            await send({"type": "websocket.close", "code": 1001})
        else:
            await receive()

    async with run_server(talks, ping_s=20) as (server, address), connect(address) as socket:
        server.should_exit = True
        asyncio.get_running_loop().call_later(0.5, over.set)
        said = [message async for message in socket] if farewell else []
        if not farewell:
            with pytest.raises(ConnectionClosed):
                await socket.recv()
        assert (said, socket.close_code) == ((["last words"], 1001) if farewell else ([], 1012))
