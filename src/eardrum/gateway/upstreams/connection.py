"""One HTTP/1.1 connection to an upstream, and the answers that come over it.

A proxy needs little of what a client library does, and pays for all of it with every request: with this its CPU per request
is less than half. What is taken apart is taken apart by llhttp.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, cast

import httptools

from eardrum.errors import UpstreamDiedError, UpstreamHungUpError

AHEAD = 1 << 17
"""Bytes of an answer that are read before somebody takes them."""
HEAD_BYTES = 1 << 18
"""Longest head of an answer."""
PIECE = 1 << 18
"""Bytes of a body that are written at once, so that a large one does not hold up the event loop."""

EMPTY = (204, 304)


class Answer:
    """An upstream's answer, whose body is still coming in. Somebody has to read it to its end or `release` it."""

    def __init__(self, connection: Connection, origin: str):
        self.status = 0
        self.raw_headers: list[tuple[bytes, bytes]] = []
        """Names in lower case."""
        self.origin = origin
        """Who answers, for messages."""
        self.ended = False
        """Whether the body is here to its end and has been taken."""
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

    async def next_chunk(self) -> bytes:
        """What has come of the body since the last call; empty at its end.

        Raises:
            UpstreamDiedError: it ends in the middle.
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
            self._connection.read_on()
        self.ended = self._complete
        return chunk

    async def read(self, most: int) -> bytes:
        """The body up to so many bytes, or a few more."""
        data = b""
        while len(data) < most and (chunk := await self.next_chunk()):
            data += chunk
        return data

    def release(self) -> None:
        """It is not needed any more: what has not come yet never will."""
        if not self._complete:
            self._connection.abort()

    def add(self, data: bytes) -> bool:
        """Take in more of the body. Returns whether that is enough for now."""
        self._waiting.append(data)
        self._size += len(data)
        self._wake()
        return self._size > AHEAD

    def end(self, failure: str = "") -> None:
        """The body is over, or will not come."""
        self._complete, self._failure = not failure, failure
        self._wake()

    def _wake(self) -> None:
        if self._more and not self._more.done():
            self._more.set_result(None)


class Connection(asyncio.Protocol):
    """One request at a time. `idle` is called when it could take the next one, `gone` when it is over."""

    def __init__(self, origin: str, idle: Callable[[Connection], None], gone: Callable[[Connection], None]):
        self.usable = False
        """Whether it can take a request now."""
        self._origin = origin
        self._idle = idle
        self._gone = gone
        self._transport: asyncio.Transport
        self._answer: Answer | None = None
        self._head: asyncio.Future[Answer] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._sending: asyncio.Task[None] | None = None
        self._paused = self._over = False
        self._kept = False
        self._no_body = False
        self._delimited = False
        self._head_bytes = 0

    async def ask(self, head: bytes, body: bytes | AsyncIterable[bytes] | None, *, chunked: bool, no_body: bool) -> Answer:
        """Send a request and return the answer once its head is here.

        Args:
            head: the request up to its body, the empty line included.
            body: its body.
            chunked: whether the body's length is not in the head.
            no_body: the answer will have no body, whatever its head says.

        Raises:
            UpstreamDiedError: the connection ends before that.
            UpstreamHungUpError: so it does, and it had served requests before.
            Exception: what reading the body raised.
        """
        if self._over:
            raise self._broken("it closed the connection")
        self.usable, self._no_body, self._head_bytes = False, no_body, 0
        self._answer = Answer(self, self._origin)
        self._head = asyncio.get_running_loop().create_future()
        if body is None or (isinstance(body, bytes) and len(body) <= PIECE):
            self._transport.write(head + body if body else head)
        else:
            self._transport.write(head)
            self._sending = asyncio.create_task(self._send(body, chunked=chunked))
        try:
            return await self._head
        except BaseException:
            self.abort()
            raise

    def read_on(self) -> None:
        """There is room for more of the answer."""
        if self._paused:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Hang up."""
        self.usable = False
        if self._sending:
            self._sending.cancel()
        self._transport.abort()

    async def _send(self, body: bytes | AsyncIterable[bytes], *, chunked: bool) -> None:
        try:
            async for piece in _pieces(body) if isinstance(body, bytes) else body:
                self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                if self._writable:
                    await self._writable
            if chunked:
                self._transport.write(b"0\r\n\r\n")
        except Exception as error:  # noqa: BLE001 -- whoever waits for the answer is told
            if self._head and not self._head.done():
                self._head.set_exception(error)
            self._transport.abort()
        finally:
            self._sending = None

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is connected."""
        self._parser: Any = httptools.HttpResponseParser(self)
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        """More of the answer."""
        if not self._answer:
            self.abort()  # nobody asked
            return
        self._head_bytes += len(data) if self._head else 0
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"what it sent is not HTTP ({error})")
            self.abort()
        if self._head and self._head_bytes > HEAD_BYTES:
            self._fail("the headers of its answer do not end")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over. That ends an answer without a length, and breaks off any other."""
        self.usable, self._over = False, True
        if self._writable and not self._writable.done():
            self._writable.set_result(None)
        if self._sending:
            self._sending.cancel()
        if self._answer and not self._head and not self._delimited and not exc:
            self.on_message_complete()
        self._fail(str(exc) if exc else "it closed the connection")
        self._gone(self)

    def pause_writing(self) -> None:
        """It takes no more for now."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """It takes more again."""
        if self._writable and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def _fail(self, why: str) -> None:
        if self._head and not self._head.done():
            self._head.set_exception(self._broken(why))
        elif self._answer:
            self._answer.end(why)
        self._head = self._answer = None

    def _broken(self, why: str) -> UpstreamDiedError:
        kind = UpstreamHungUpError if self._kept else UpstreamDiedError
        return kind(f"{self._origin} broke off before it answered: {why}.")

    # What the parser finds.

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer behind the body, which nobody here needs."""
        if self._answer and self._head:
            self._answer.raw_headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is here; one of a status below 200 only precedes it."""
        assert self._answer
        status = self._parser.get_status_code()
        if status < 200:
            self._answer.raw_headers.clear()
            return
        self._answer.status = status
        names = {name for name, _ in self._answer.raw_headers}
        self._delimited = b"content-length" in names or b"transfer-encoding" in names or status in EMPTY
        if self._head and not self._head.done():
            self._head.set_result(self._answer)
        self._head = None
        if self._no_body:
            answer, self._answer = self._answer, None
            answer.end()
            self._transport.close()  # the parser would wait for the body

    def on_body(self, data: bytes) -> None:
        """More of the body."""
        if self._answer and self._answer.add(data) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is over."""
        if self._head or not self._answer:  # a status below 200
            return
        answer, self._answer = self._answer, None
        answer.end()
        self.read_on()
        if self._sending or self._transport.is_closing() or not self._parser.should_keep_alive():
            self.abort()
        else:
            self.usable = self._kept = True
            self._idle(self)


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), PIECE):
        yield body[at : at + PIECE]
