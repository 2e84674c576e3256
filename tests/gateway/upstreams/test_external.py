"""Answers of all kinds, from servers that write them byte by byte as they please."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import pytest

from eardrum.config.llama_swap import UpstreamTimeouts
from eardrum.errors import InvalidRequestError, UpstreamDiedError, UpstreamHungUpError, UpstreamTimeoutError
from eardrum.gateway.upstreams.external import ExternalUpstream, iterate_body
from eardrum.gateway.upstreams.http_client import BodyStream, OutgoingRequest
from tests.gateway.upstreams.silent_ends import end_silently, skip_without_silent_ends

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GET = OutgoingRequest("GET", "/x")
EARLY = b"HTTP/1.1 103 Hints\r\nlink: x\r\n\r\n"


@asynccontextmanager
async def open_upstream(script: Script, **timeouts: float) -> AsyncIterator[tuple[ExternalUpstream, list[int]]]:
    """The way to a server that serves each connection with the script, and the connections it had."""
    connections: list[int] = []
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        task = asyncio.current_task()
        assert task
        serving.add(task)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found = ExternalUpstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/", UpstreamTimeouts(**timeouts))
    try:
        yield found, connections
    finally:
        await found.close()
        server.close()
        await server.wait_closed()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)  # or their sockets would outlive the loop


def answer_bytes(*pieces: bytes, forever: bool = False) -> Script:
    """Answers each request with these bytes; afterwards it hangs up, or waits for the next one."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01)
            if not forever:
                return

    return script


@pytest.mark.parametrize(
    ("pieces", "status", "body"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"], 200, b"abc"),
        ([b"HTTP/1.1 200 OK\r\ncontent-le", b"ngth: 3\r\n\r\na", b"bc"], 200, b"abc"),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nx-after: 1\r\n\r\n"], 200, b"abc"),
        ([b"HTTP/1.0 200 OK\r\n\r\nab", b"c"], 200, b"abc"),
        ([b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nab", b"c"], 200, b"abc"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", EARLY + b"HTTP/1.1 201 OK\r\ncontent-length: 1\r\n\r\na"], 201, b"a"),
        ([b"HTTP/1.1 204 No\r\nx: y\r\n\r\n"], 204, b""),
        ([b"HTTP/1.1 304 Same\r\ncontent-length: 30\r\n\r\n"], 304, b""),
        ([b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n"], 500, b""),
    ],
)  # fmt: skip
async def test_a_body_ends_where_its_head_says(pieces: list[bytes], status: int, body: bytes) -> None:
    async with open_upstream(answer_bytes(*pieces)) as (found, _):
        answer = await found.send_request(GET)
        assert answer.status == status
        assert (b"link", b"x") not in answer.raw_headers
        assert b"".join([chunk async for chunk in iterate_body(answer)]) == body
        assert answer.ended


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 300_000,
    ],
)
async def test_what_is_no_answer_is_an_upstream_that_died(said: bytes) -> None:
    async with open_upstream(answer_bytes(said)) as (found, _):
        with pytest.raises(UpstreamDiedError):
            await found.send_request(GET)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
    ],
)
async def test_half_a_body_is_given_and_then_said_to_be_half(said: bytes) -> None:
    async with open_upstream(answer_bytes(said)) as (found, _):
        answer = await found.send_request(GET)
        assert await answer.read_chunk() == b"abc"
        with pytest.raises(UpstreamDiedError):
            await answer.read_chunk()


async def test_a_connection_is_used_again_unless_it_may_not_be() -> None:
    for head, count in ((b"", 1), (b"connection: close\r\n", 3)):
        said = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n%b\r\nok" % head
        async with open_upstream(answer_bytes(said, forever=True)) as (found, connections):
            for _ in range(3):
                answer = await found.send_request(GET)
                assert await answer.read_chunk() == b"ok"
            assert len(connections) == count


async def test_after_a_kept_connection_that_had_ended_a_new_one_is_used() -> None:
    together = asyncio.Barrier(3)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the first request of each connection, and hangs up at the second one, as a firewall that has forgotten it."""
        await reader.readuntil(b"\r\n\r\n")
        if len(connections) <= 3:
            await together.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")

    async with open_upstream(script) as (found, connections):
        await asyncio.gather(*(found.send_request(GET) for _ in range(3)))
        with pytest.raises(UpstreamHungUpError):
            await found.send_request(GET)
        assert (await found.send_request(GET)).status == 200
        assert len(connections) == 4


async def test_an_answer_that_is_left_costs_its_connection() -> None:
    said = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"
    async with open_upstream(answer_bytes(said, forever=True)) as (found, connections):
        for _ in range(2):
            (await found.send_request(GET)).release()
        assert len(connections) == 2


async def test_an_unused_connection_is_closed_in_time() -> None:
    hung_up = asyncio.Event()

    async def kept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readexactly(1)
        hung_up.set()

    async with open_upstream(kept, idle_conn=0.05) as (found, _):
        await found.send_request(GET)
        await asyncio.wait_for(hung_up.wait(), 60)


async def test_a_head_has_no_body_though_it_has_a_length() -> None:
    async with open_upstream(answer_bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", forever=True)) as (found, _):
        answer = await found.send_request(OutgoingRequest("HEAD", "/"))
        assert (b"content-length", b"9") in answer.raw_headers
        assert await answer.read_chunk() == b""


async def test_a_body_is_sent_with_its_length_or_in_chunks() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    for size, expected in ((3, b"abc"), (None, b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")):
        seen: list[bytes] = []

        async def script(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seen: list[bytes] = seen, size: int = len(expected)
        ) -> None:
            seen.extend([await reader.readuntil(b"\r\n\r\n"), await reader.readexactly(size)])
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

        async with open_upstream(script) as (found, _):
            await found.send_request(OutgoingRequest("POST", "/p?q=1", [(b"x-a", b"\xe9")], BodyStream(pieces(), size)))
        assert seen[0].startswith(b"POST /base/p?q=1 HTTP/1.1\r\nhost: 127.0.0.1:")
        assert b"x-a: \xe9\r\n" in seen[0]
        assert seen[1] == expected


async def test_what_breaks_the_body_is_raised() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"ab"
        raise InvalidRequestError("broken")

    async with open_upstream(answer_bytes(forever=True)) as (found, _):
        with pytest.raises(InvalidRequestError, match="broken"):
            await found.send_request(OutgoingRequest("POST", "/", (), BodyStream(pieces(), 9)))


async def test_a_slow_reader_holds_up_the_upstream_and_gets_all() -> None:
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 40000000\r\n\r\n")
        for _ in range(400):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 1

    async with open_upstream(script) as (found, _):
        answer = await found.send_request(GET)
        await asyncio.sleep(0.3)
        assert sent < 200
        assert sum([len(chunk) async for chunk in iterate_body(answer)]) == 40_000_000


async def test_too_late_is_said_so_and_hangs_up() -> None:
    hung_up = asyncio.Event()

    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            await reader.read()
        except ConnectionError:
            pass
        hung_up.set()

    async with open_upstream(script, response_header=0.05) as (found, _):
        with pytest.raises(UpstreamTimeoutError):
            await found.send_request(GET)
        await asyncio.wait_for(hung_up.wait(), 60)


async def test_the_time_for_an_answer_does_not_include_the_clients() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"ab"
            await asyncio.sleep(0.3)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(8)
        if head.startswith(b"PUT"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        await reader.read()

    async with open_upstream(script, response_header=0.7) as (found, _):
        assert (await found.send_request(OutgoingRequest("PUT", "/", (), BodyStream(pieces(), 8)))).status == 200
        with pytest.raises(UpstreamTimeoutError):
            await found.send_request(OutgoingRequest("POST", "/", (), BodyStream(pieces(), None)))


async def test_who_takes_no_more_of_a_body_is_too_late() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    async def script(*_: object) -> None:
        await asyncio.sleep(60)

    async with open_upstream(script, response_header=0.2) as (found, _):
        with pytest.raises(UpstreamTimeoutError):
            await found.send_request(OutgoingRequest("POST", "/", (), BodyStream(pieces(), None)))


async def test_a_path_cannot_smuggle_a_header() -> None:
    async with open_upstream(answer_bytes()) as (found, connections):
        for path in ("/a b", "/a\r\nx: y", "/\xe9"):
            with pytest.raises(InvalidRequestError):
                await found.send_request(OutgoingRequest("GET", path))
    assert not connections


async def vanish_after_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Open a WebSocket, which then ends without a word to the other end."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
    assert found
    accepted = base64.b64encode(hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    upgrade = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: "
    writer.write(upgrade + accepted + b"\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(0.1)  # it has arrived
    end_silently(writer.transport)


async def test_a_websocket_that_ends_silently_is_noticed() -> None:
    skip_without_silent_ends()
    async with open_upstream(vanish_after_handshake, keepalive=1) as (upstream, _):
        connected = await upstream.connect_websocket("/v1/realtime", [], [])
        message = await asyncio.wait_for(connected.receive(), 30)
        assert message.type in (aiohttp.WSMsgType.ERROR, aiohttp.WSMsgType.CLOSED)
        await connected.close()
