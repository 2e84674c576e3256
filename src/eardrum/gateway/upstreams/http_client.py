"""An HTTP/1.1 client for upstreams: connections, their responses, and a pool that reuses them.

A proxy needs little of what a client library does and pays for all of it with every request: with this client its CPU time
per request is less than half. llhttp parses.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

from eardrum import tls
from eardrum.config.llama_swap import UpstreamTimeouts
from eardrum.errors import (
    UpstreamDiedError,
    UpstreamHungUpError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    build_shortage_error,
)

READ_AHEAD_BYTES = 1 << 17
"""Bytes of a response that are read ahead of the consumer."""
MAX_HEAD_BYTES = 1 << 18
"""Longest head of a response."""
WRITE_BYTES = 1 << 18
"""Bytes of a body that are written at a time, so that a large one does not block the event loop."""

BODILESS_STATUSES = (204, 304)


HeaderList = Sequence[tuple[bytes, bytes]]
"""Headers in the order they are sent, names in lower case; a name may occur twice."""


class BodyStream:
    """A request's body that is sent on while it comes in. It can be read once.

    `size` is its length in bytes, None if it is unknown. `started` is set once a reader has begun.
    """

    def __init__(self, chunks: AsyncIterator[bytes], size: int | None):
        self.size = size
        self.started = False
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.started = True
        return self._chunks


@dataclass(slots=True)
class OutgoingRequest:
    """A request to an upstream. `path` begins with a slash, includes the query and is already escaped."""

    method: str
    path: str
    headers: HeaderList = ()
    body: bytes | BodyStream | None = field(default=None, repr=False)

    @property
    def is_repeatable(self) -> bool:
        """Whether it could be sent once more."""
        return not isinstance(self.body, BodyStream) or not self.body.started


class UpstreamResponse:
    """A response whose body is still arriving. The caller must read it to its end, or `release` it."""

    def __init__(self, connection: HttpConnection, origin: str):
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.origin = origin
        """The server, for messages."""
        self.ended = False
        """Whether the whole body has been read."""
        self._connection = connection
        self._waiting: list[bytes] = []
        self._size = 0
        self._complete = False
        self._failure = ""
        self._more: asyncio.Future[None] | None = None

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        value = next((value for name, value in self.raw_headers if name == b"content-type"), b"")
        return value.partition(b";")[0].strip().lower().decode("latin-1")

    async def read_chunk(self) -> bytes:
        """Return the bytes of the body that arrived since the last call; empty at its end.

        Raises:
            UpstreamDiedError: the body ended in the middle.
        """
        while not self._waiting and not self._complete and not self._failure:
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        if not self._waiting and self._failure:
            raise UpstreamDiedError(f"{self.origin} broke off in the middle of its answer: {self._failure}.")
        chunk = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        if not self._complete:
            self._connection.resume_reading()
        self.ended = self._complete
        return chunk

    async def read_body(self, max_bytes: int) -> bytes:
        """Return the body up to `max_bytes` bytes, or slightly more."""
        data = b""
        while len(data) < max_bytes and (chunk := await self.read_chunk()):
            data += chunk
        return data

    def release(self) -> None:
        """Drop the response. If it has not arrived completely, its connection is closed."""
        if not self._complete:
            self._connection.abort()

    def add_data(self, data: bytes) -> bool:
        """Add bytes of the body. Return whether reading should pause."""
        self._waiting.append(data)
        self._size += len(data)
        self._wake()
        return self._size > READ_AHEAD_BYTES

    def end_body(self, failure: str = "") -> None:
        """End the body, or fail it."""
        self._complete, self._failure = not failure, failure
        self._wake()

    def _wake(self) -> None:
        if self._more and not self._more.done():
            self._more.set_result(None)


class HttpConnection(asyncio.Protocol):
    """A connection for one request at a time. Calls `on_idle` when it can take the next request, `on_closed` at its end."""

    def __init__(self, origin: str, on_idle: Callable[[HttpConnection], None], on_closed: Callable[[HttpConnection], None]):
        self.usable = False
        """Whether it can take a request."""
        self._origin = origin
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._transport: asyncio.Transport
        self._response: UpstreamResponse | None = None
        self._head: asyncio.Future[UpstreamResponse] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._send_task: asyncio.Task[None] | None = None
        self._answer_timeout: asyncio.Timeout | None = None
        """The limit of the wait for the head; it stands still while the rest of the body is still to come."""
        self._answer_s: float | None = None
        self._paused = self._closed = False
        self._reused = False
        self._no_body = False
        self._delimited = False
        self._head_bytes = 0

    async def send_request(
        self,
        head: bytes,
        body: bytes | AsyncIterable[bytes] | None,
        *,
        chunked: bool,
        no_body: bool,
        within_s: float | None = None,
    ) -> UpstreamResponse:
        """Send a request and return the response once its head has arrived.

        Args:
            head: the request up to its body, including the empty line.
            body: its body.
            chunked: whether the body is sent in chunks because the head does not contain its length.
            no_body: whether the response has no body in spite of its head.
            within_s: how long the response may take to begin, not counting the time in which more of the body has to arrive
                here before it can be sent; None: any time.

        Raises:
            TimeoutError: the response did not begin in time.
            UpstreamDiedError: the connection ended before the response.
            UpstreamHungUpError: the same, on a connection that had served requests before.
            Exception: the error that reading the body raised.
        """
        if self._closed:
            raise self._make_broken_error("it closed the connection")
        self.usable, self._no_body, self._head_bytes = False, no_body, 0
        self._response = UpstreamResponse(self, self._origin)
        head_future: asyncio.Future[UpstreamResponse] = asyncio.get_running_loop().create_future()
        self._head, self._answer_s = head_future, within_s
        if body is None or (isinstance(body, bytes) and len(body) <= WRITE_BYTES):
            self._transport.write(head + body if body else head)
        else:
            self._transport.write(head)
            self._send_task = asyncio.create_task(self._send_body(body, chunked=chunked))
        try:
            if within_s is None:
                return await head_future
            async with asyncio.timeout(within_s) as self._answer_timeout:
                return await head_future
        except BaseException:
            self.abort()
            raise
        finally:
            self._answer_timeout = None

    def _limit_answer(self, seconds: float | None) -> None:
        """Let the response take so long from now on; None: any time."""
        if self._answer_timeout and not self._answer_timeout.expired():
            self._answer_timeout.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)

    def resume_reading(self) -> None:
        """Continue reading the response."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close the connection at once."""
        self.usable = False
        if self._send_task:
            self._send_task.cancel()
        self._transport.abort()

    async def _send_body(self, body: bytes | AsyncIterable[bytes], *, chunked: bool) -> None:
        try:
            self._limit_answer(None)
            async for piece in _split_body(body) if isinstance(body, bytes) else body:
                self._limit_answer(self._answer_s)
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if self._writable:
                    await self._writable
                self._limit_answer(None)
            if chunked:
                self._transport.write(b"0\r\n\r\n")
            self._limit_answer(self._answer_s)
        except Exception as error:  # noqa: BLE001 -- passed to the caller that waits for the response
            if self._head and not self._head.done():
                self._head.set_exception(error)
            self._transport.abort()
        finally:
            self._send_task = None

    # Callbacks of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is established."""
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        """Bytes of the response arrived."""
        if not self._response:
            self.abort()  # no request is pending
            return
        self._head_bytes += len(data) if self._head else 0
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"what it sent is not HTTP ({error})")
            self.abort()
        if self._head and self._head_bytes > MAX_HEAD_BYTES:
            self._fail("the headers of its answer do not end")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed. That ends a response without a length, and fails any other."""
        self.usable, self._closed = False, True
        if self._writable and not self._writable.done():
            self._writable.set_result(None)
        if self._send_task:
            self._send_task.cancel()
        if self._response and not self._head and not self._delimited and not exc:
            self.on_message_complete()
        self._fail(str(exc) if exc else "it closed the connection")
        self._on_closed(self)

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """The write buffer has room again."""
        if self._writable and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _fail(self, why: str) -> None:
        if self._head and not self._head.done():
            self._head.set_exception(self._make_broken_error(why))
        elif self._response:
            self._response.end_body(why)
        self._head = self._response = None

    def _make_broken_error(self, why: str) -> UpstreamDiedError:
        kind = UpstreamHungUpError if self._reused else UpstreamDiedError
        return kind(f"{self._origin} broke off before it answered: {why}.")

    # Callbacks of the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header arrived, or a trailer after the body, which is ignored."""
        if self._response and self._head:
            self._response.raw_headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete. One with a status below 200 only precedes the response."""
        assert self._response
        status = self._parser.get_status_code()
        if status < 200:
            self._response.raw_headers.clear()
            return
        self._response.status = status
        names = {name for name, _ in self._response.raw_headers}
        self._delimited = b"content-length" in names or b"transfer-encoding" in names or status in BODILESS_STATUSES
        if self._head and not self._head.done():
            self._head.set_result(self._response)
        self._head = None
        if self._no_body:
            answer, self._response = self._response, None
            answer.end_body()
            self._transport.close()  # the parser would wait for the body

    def on_body(self, data: bytes) -> None:
        """Bytes of the body arrived."""
        if self._response and self._response.add_data(data) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The response is complete."""
        if self._head or not self._response:  # a status below 200
            return
        answer, self._response = self._response, None
        answer.end_body()
        self.resume_reading()
        if self._send_task or self._transport.is_closing() or not self._parser.should_keep_alive():
            self.abort()
        else:
            self.usable = self._reused = True
            self._on_idle(self)


async def _split_body(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), WRITE_BYTES):
        yield body[at : at + WRITE_BYTES]


LOCALHOST = ("127.0.0.1", "::1")
"""Addresses of `localhost`, even if the hosts file lists only one of them."""


class ConnectionPool:
    """Connections to one server. The one used last is reused first, so that surplus connections time out."""

    def __init__(self, address: str, timeouts: UpstreamTimeouts):
        self._address = address
        url = urlsplit(address)
        self._ssl_context = tls.get_client_context() if url.scheme == "https" else None
        self._name = url.hostname or ""
        self._hosts = LOCALHOST if self._name == "localhost" else (self._name,)
        self._port = url.port or (443 if self._ssl_context else 80)
        self._timeouts = timeouts
        self._free: list[tuple[HttpConnection, float]] = []
        self._all: set[HttpConnection] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False

    async def acquire_connection(self) -> HttpConnection:
        """Return a connection that can take a request.

        Raises:
            UpstreamUnreachableError: nothing answers at the address.
            UpstreamTimeoutError: the connection was not established in time.
            UpstreamDiedError: the pool is closed.
        """
        if self._closed:
            raise UpstreamDiedError(f"{self._address} is no longer in use.")
        while self._free:
            kept, _ = self._free.pop()
            if kept.usable:
                return kept
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await self._connect()
        except TimeoutError:
            raise UpstreamTimeoutError(f"{self._address} could not be reached in time (timeouts.connect).") from None

    def drop_kept(self) -> None:
        """Close the connections that wait for a request: the one used last had ended unnoticed, so all others are suspect."""
        while self._free:
            self._free.pop()[0].abort()

    def close(self) -> None:
        """Close all connections and refuse new ones."""
        self._closed = True
        if self._sweep_timer:
            self._sweep_timer.cancel()
        for connection in list(self._all):
            connection.abort()

    @property
    def _connect_timeout(self) -> float | None:
        handshake = self._timeouts.tls_handshake if self._ssl_context else 0.0
        return self._timeouts.connect + handshake if self._timeouts.connect else None

    async def _connect(self) -> HttpConnection:
        failure: OSError | None = None
        for host in self._hosts:
            try:
                transport, connection = await asyncio.get_running_loop().create_connection(
                    self._create_connection,
                    host,
                    self._port,
                    ssl=self._ssl_context,
                    server_hostname=self._name if self._ssl_context else None,
                )
            except OSError as error:
                failure = failure or error
            else:
                self._all.add(connection)
                if self._timeouts.keepalive and (connected := transport.get_extra_info("socket")):
                    enable_keepalive(connected, self._timeouts.keepalive)
                return connection
        if failure and (known := build_shortage_error(failure, f"to reach {self._address}")):
            raise known from failure
        reason = failure.strerror or str(failure) if failure else ""
        raise UpstreamUnreachableError(f"{self._address} cannot be reached: {reason}.") from failure

    def _create_connection(self) -> HttpConnection:
        return HttpConnection(self._address, self._keep_connection, self._all.discard)

    def _keep_connection(self, connection: HttpConnection) -> None:
        loop = asyncio.get_running_loop()
        self._free.append((connection, loop.time()))
        if self._timeouts.idle_conn and not self._sweep_timer:
            self._sweep_timer = loop.call_later(self._timeouts.idle_conn, self._close_idle)

    def _close_idle(self) -> None:
        """Close connections that were idle too long, and set the timer for the next one."""
        loop = asyncio.get_running_loop()
        self._sweep_timer = None
        while self._free and self._free[0][1] + self._timeouts.idle_conn <= loop.time():
            self._free.pop(0)[0].abort()
        if self._free:
            self._sweep_timer = loop.call_at(self._free[0][1] + self._timeouts.idle_conn, self._close_idle)


def enable_keepalive(connected: socket.socket, seconds: float) -> None:
    """Have the system ask whether the other end is still there after so many seconds of silence, and again after as many."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):  # not every system has both
        if option := getattr(socket, name, None):
            connected.setsockopt(socket.IPPROTO_TCP, option, max(1, int(seconds)))


def create_socket(keepalive: float, address: Sequence[Any]) -> socket.socket:
    """Create the socket for a connection to an address of `getaddrinfo`; `keepalive` in seconds, 0 for none."""
    family, kind, protocol, *_ = address
    created = socket.socket(family, kind, protocol)
    if keepalive:
        enable_keepalive(created, keepalive)
    return created
