"""WebSockets through the gateway, both ways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from eardrum.api.proxy import websocket
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.conftest import wait_for
from tests.upstreams import UpstreamCall, fake_upstream


@contextmanager
def run_websocket_upstream(**entry: Any) -> Iterator[tuple[GatewayUnderTest, dict[str, Any]]]:
    """A gateway before a server that answers each message; "close" makes it close, "die" break off."""
    seen: dict[str, Any] = {"sent": 0}

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        if not call.headers.get("upgrade"):
            return web.json_response({})
        there = web.WebSocketResponse(protocols=("graphql", "chat"))
        await there.prepare(request)
        seen["call"] = call
        async for message in there:
            if message.data == "close":
                await there.close(code=4001, message=b"enough")
            elif message.data == "die":
                assert request.transport
                request.transport.abort()
            elif message.data == "flood":
                for _ in range(400):
                    await there.send_bytes(b"x" * 100_000)
                    seen["sent"] += 1
            elif message.type is aiohttp.WSMsgType.TEXT:
                await there.send_str(f"{message.data}!")
            else:
                await there.send_bytes(message.data * 2)
        seen["code"] = there.close_code
        return there

    with fake_upstream(answer) as upstream, run_gateway(models={"m": {"proxy": upstream.url, **entry}}) as gateway:
        yield gateway, seen


@pytest.mark.parametrize("path", ["/upstream/m/ws?a=1", "/v1/realtime?model=m", "/v1/chat/completions?model=m"])
async def test_messages_and_subprotocols_pass(path: str) -> None:
    with run_websocket_upstream() as (gateway, seen):
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{gateway.url}{path}", protocols=("chat",), headers={"x-mine": "1"}) as here,
        ):
            assert here.protocol == "chat"
            await here.send_str("hällo")
            assert (await here.receive()).data == "hällo!"
            await here.send_bytes(b"\x00\xff")
            assert (await here.receive()).data == b"\x00\xff\x00\xff"
            await here.ping()
            await here.send_str("close")
            message = await here.receive()
            assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "enough")
    assert seen["call"].headers["x-mine"] == "1"
    assert seen["call"].path == (path.removeprefix("/upstream/m"))


async def test_the_clients_close_code_reaches_the_upstream() -> None:
    with run_websocket_upstream() as (gateway, seen):
        async with aiohttp.ClientSession() as session:
            here = await session.ws_connect(f"{gateway.url}/upstream/m/")
            await here.close(code=4711, message=b"bye")
        await asyncio.to_thread(wait_for, lambda: seen.get("code") == 4711)


async def test_an_upstream_that_dies_ends_the_socket_with_an_error() -> None:
    with run_websocket_upstream() as (gateway, _):
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{gateway.url}/upstream/m/") as here:
            await here.send_str("die")
            assert (await here.receive()).data == 1011


async def test_a_client_that_does_not_read_is_not_read_ahead_for() -> None:
    with run_websocket_upstream() as (gateway, seen):
        async with aiohttp.ClientSession() as session:
            here = await session.ws_connect(f"{gateway.url}/upstream/m/", max_msg_size=0)
            await here.send_str("flood")
            await asyncio.to_thread(wait_for, lambda: seen["sent"])
            before = 0
            while before < (before := seen["sent"]):  # noqa: ASYNC110 -- an end of sending is no event
                await asyncio.sleep(0.2)
            assert seen["sent"] < 200, "40 MB would be somewhere in between"
            for _ in range(400):
                assert len((await here.receive()).data) == 100_000
            await here.close()


@pytest.mark.parametrize("path", ["/upstream/m/late", "/v1/realtime?model=m&late=1"])
async def test_a_client_that_leaves_while_it_waits_leaves_the_queue(path: str) -> None:
    with run_websocket_upstream(max_concurrency=1) as (gateway, seen):
        model = gateway.service.catalog.find_model("m")
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{gateway.url}/upstream/m/") as here:
            await here.send_str("a")
            await here.receive()
            waiting = asyncio.create_task(session.ws_connect(f"{gateway.url}{path}"))
            await asyncio.to_thread(wait_for, lambda: gateway.service.count_waiting(model) == 1)
            waiting.cancel()
            await asyncio.to_thread(wait_for, lambda: gateway.service.count_waiting(model) == 0, 5)
            await here.send_str("b")
            assert (await here.receive()).data == "b!"
        await asyncio.to_thread(wait_for, lambda: gateway.service.count_requests(model) == 0)
        assert "late" not in seen["call"].path


async def test_an_open_socket_is_a_request_unless_it_is_to_be_ignored() -> None:
    for ignored, requests in ((False, 1), (True, 0)):
        with run_websocket_upstream(compat={"ignore_websockets": ignored}) as (gateway, _):
            model = gateway.service.catalog.find_model("m")
            async with aiohttp.ClientSession() as session, session.ws_connect(f"{gateway.url}/upstream/m/") as here:
                await here.send_str("a")
                await here.receive()
                assert gateway.service.count_requests(model) == requests
            await asyncio.to_thread(wait_for, lambda m=model, g=gateway: g.service.count_requests(m) == 0)


@pytest.mark.slow
async def test_a_silent_socket_does_not_hold_its_model_until_something_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "SILENT_S", 0.5)
    with run_websocket_upstream(ttl=30) as (gateway, _):
        model = gateway.service.catalog.find_model("m")

        def held() -> bool:
            (status,) = gateway.service.list_processes()
            return status.ttl_remaining is None

        async with aiohttp.ClientSession() as session, session.ws_connect(f"{gateway.url}/upstream/m/") as here:
            for _ in range(8):  # longer than the silence that counts
                spoken = time.monotonic()
                await here.send_str("a")
                await here.receive()
                assert held() or time.monotonic() - spoken > websocket.SILENT_S
                await asyncio.sleep(0.1)
            await asyncio.to_thread(wait_for, lambda: not held())
            assert gateway.service.count_requests(model) == 1
            spoken = time.monotonic()
            await here.send_str("a")
            await here.receive()
            assert held() or time.monotonic() - spoken > websocket.SILENT_S
            await asyncio.to_thread(wait_for, lambda: not held())
            unloaded = asyncio.run_coroutine_threadsafe(gateway.service.unload_model(model), gateway.loop)
            await asyncio.wrap_future(unloaded)
            assert (await here.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/responses?model=nobody", 404),
        ("/v1/responses", 400),
        ("/v1/responses?model=moonshine-tiny-en", 400),
        ("/nothing", 403),
    ],
)
async def test_a_socket_that_cannot_be_is_refused(path: str, status: int) -> None:
    with run_websocket_upstream() as (gateway, _):
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{gateway.url}{path}")
    assert refused.value.status == status


async def test_an_upstream_without_sockets_is_said_so() -> None:
    async def answer(_: UpstreamCall, __: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=404)

    with fake_upstream(answer) as upstream, run_gateway(models={"m": {"proxy": upstream.url}}) as gateway:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{gateway.url}/upstream/m/ws")
    assert refused.value.status == 502


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/upstream/nobody/ws", {}, 404, "model_not_found"),
        ("/v1/responses?model=nobody", {}, 404, "model_not_found"),
        ("/v1/responses", {}, 400, None),
        ("/v1/responses?model=m", {"origin": "https://evil.example"}, 403, None),
        ("/v1/responses?model=m", {"authorization": "Bearer wrong"}, 401, "invalid_api_key"),
    ],
)
async def test_a_refused_socket_gets_a_status_and_an_error_and_the_log_no_fault(
    path: str, headers: dict[str, str], status: int, code: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    key = {"authorization": "Bearer sk"} | headers
    caplog.set_level("INFO")
    with run_gateway(models={"m": {"proxy": "http://127.0.0.1:9"}}, api_keys=("sk",)) as gateway:
        async with aiohttp.ClientSession() as session:
            upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
            asked = {**key, **upgrade, "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ=="}
            async with session.get(f"{gateway.url}{path}", headers=asked) as refusal:
                said = await refusal.json()
                assert refusal.status == status
                assert code is None or said["error"]["code"] == code
    lines = [line for line in caplog.records if line.name == "eardrum.access"]
    assert f"{path.partition('?')[0]} {status} " in lines[0].getMessage()
    assert not [line for line in caplog.records if line.levelname == "ERROR"]
