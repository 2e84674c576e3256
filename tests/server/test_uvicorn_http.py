"""What goes over the wire for what an application says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import pytest
import requests
import uvicorn

from eardrum.server.uvicorn_http import UvicornHttpProtocol
from tests.api.proxy.conftest import run_gateway

START = "http.response.start"
BODY = "http.response.body"


async def exchange_messages(messages: Sequence[dict[str, Any]], request: bytes = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n") -> bytes:
    """All that a client gets until the server closes, or half a second has passed."""

    async def app(_: Any, __: Any, send: Any) -> None:
        for message in messages:
            await send(dict(message))

    return await exchange_bytes(app, request)


async def repeat_body(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers with the request's method and body."""
    body, more = scope["method"].encode() + b":", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send(build_start((b"content-length", str(len(body)).encode())))
    await send(build_body(body))


async def exchange_bytes(app: Any, *requests: bytes) -> bytes:
    """The same, of what an application answers to requests that are sent one after another."""
    config = uvicorn.Config(
        app, http=UvicornHttpProtocol, lifespan="off", log_config=None, server_header=False, date_header=False
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        for request in requests:
            writer.write(request)
            await asyncio.sleep(0.05)
        got = b""
        try:
            async with asyncio.timeout(0.5):
                while data := await reader.read(65536):
                    got += data
        except TimeoutError:
            got += b"(open)"
        writer.close()
        server.should_exit = True
        await serving
    return got


def build_start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": START, "status": status, "headers": headers}


def build_body(data: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": BODY, "body": data, "more_body": more}


async def test_a_known_length_goes_out_as_it_is_and_the_connection_stays() -> None:
    got = await exchange_messages(
        [build_start((b"content-length", b"3"), (b"x-a", b"\xe9")), build_body(b"ab", more=True), build_body(b"c")]
    )
    assert got == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nx-a: \xe9\r\n\r\nabc(open)"


async def test_an_unknown_length_goes_out_in_chunks() -> None:
    got = await exchange_messages(
        [build_start(), build_body(b"ab", more=True), build_body(b"", more=True), build_body(b"c" * 16)]
    )
    assert got == b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n10\r\n" + b"c" * 16 + b"\r\n0\r\n\r\n(open)"


@pytest.mark.parametrize("status", [204, 304])
async def test_some_statuses_have_no_body(status: int) -> None:
    got = await exchange_messages([build_start(status=status), build_body(b"")])
    assert got.endswith(b"\r\n\r\n(open)")
    assert b"chunked" not in got


async def test_an_answer_to_head_is_its_head() -> None:
    got = await exchange_messages(
        [build_start((b"content-length", b"3")), build_body(b"abc")], b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"
    )
    assert got == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n(open)"


@pytest.mark.parametrize(
    ("request_", "headers"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", ()),
        (b"GET / HTTP/1.0\r\nhost: a\r\n\r\n", ()),
        (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", ((b"connection", b"Close"),)),
    ],
)
async def test_a_connection_that_is_not_to_be_kept_is_closed(request_: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    got = await exchange_messages([build_start((b"content-length", b"1"), *headers), build_body(b"x")], request_)
    assert got.lower().count(b"connection: close") == 1
    assert got.endswith(b"\r\n\r\nx")


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb"])
async def test_a_header_cannot_be_two(value: bytes) -> None:
    got = await exchange_messages([build_start((b"x-a", value), (b"content-length", b"0")), build_body(b"")])
    assert got.startswith(b"HTTP/1.1 500 ")
    assert b"x-a" not in got


@pytest.mark.parametrize("data", [b"abcd", b"ab"])
async def test_a_body_that_is_not_as_long_as_was_said_breaks_the_connection(data: bytes) -> None:
    got = await exchange_messages([build_start((b"content-length", b"3")), build_body(data)])
    assert got == b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"


@pytest.mark.parametrize(
    "messages", [[build_body(b"x")], [build_start(), build_start()], [build_start(), build_body(b"x"), build_body(b"y")]]
)
async def test_messages_out_of_turn_are_faults_of_the_application(
    messages: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    await exchange_messages(messages)
    assert "comes out of turn" in caplog.text


OFFER = b"host: a\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
"""What clients in Java say in each request."""


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ((b"POST / HTTP/1.1\r\n" + OFFER + b"content-length: 5\r\n\r\nhello",), [b"POST:hello"]),
        ((b"POST / HTTP/1.1\r\n" + OFFER + b"content-length: 5\r\n\r\n", b"he", b"llo"), [b"POST:hello"]),
        (
            (b"POST / HTTP/1.1\r\n" + OFFER + b"transfer-encoding: chunked\r\n\r\n5\r\nhel", b"lo\r\n0\r\n\r\n"),
            [b"POST:hello"],
        ),
        ((b"GET / HTTP/1.1\r\n" + OFFER + b"\r\n", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"), [b"GET:", b"GET:"]),
        (
            ((b"PUT / HTTP/1.1\r\n" + OFFER + b"content-length: 1\r\n\r\nx") * 2000,),
            [b"PUT:x"] * 2000,
        ),
        (
            (b"POST / HTTP/1.1\r\n" + OFFER + b"content-length: 28\r\n\r\nPUT / HTTP/1.1\r\nhost: a\r\n\r\nx",),
            [b"POST:PUT / HTTP/1.1\r\nhost: a\r\n\r\nx"],
        ),
    ],
    ids=["whole", "in parts", "chunked", "without a body", "many", "a request as a body"],
)
async def test_an_offer_of_another_protocol_is_ignored_and_the_body_read(
    requests: tuple[bytes, ...], expected: list[bytes]
) -> None:
    got = await exchange_bytes(repeat_body, *requests)
    answers = [answer for answer in got.removesuffix(b"(open)").split(b"HTTP/1.1 200 OK\r\n") if answer]
    assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == expected


def test_what_a_proxy_says_holds_for_its_request_alone() -> None:
    with run_gateway() as gateway, requests.Session() as session:
        addresses = []
        for headers in ({}, {"x-forwarded-proto": "https"}, {}, {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}):
            page = session.get(f"{gateway.url}/docs", headers=headers, timeout=20).text
            addresses.append("https" if gateway.url.replace("http", "https") in page else "http")
    assert addresses == ["http", "https", "http", "https"]
