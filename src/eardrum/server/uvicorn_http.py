"""HTTP connections: uvicorn's httptools protocol with limits on request heads and errors in the API's format.

`ResponseWriter` replaces uvicorn's `send`: it builds and checks the response head as a whole, which costs less.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from eardrum.api.asgi import Message
from eardrum.api.openai import responses
from eardrum.connection_limits import StallTimer, descriptor_monitor
from eardrum.errors import BusyError, ClientStalledError, EardrumError, HeadTooLargeError, InvalidRequestError

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 << 10
"""Request line and headers; the parser itself would take any number of bytes into memory. Trailers have as much room."""

PROXY_HEADERS = (b"x-forwarded-for", b"x-forwarded-proto")
"""Headers that uvicorn's middleware reads. Other requests do not pass it."""

FRAMING_HEADERS = (b"content-length", b"transfer-encoding")
"""Headers by which a parser finds the end of a body."""

RETRY_AFTER_S = 2.0

LINGER_S = 5.0
MAX_LINGER_BYTES = 256 << 20
"""How long, and how much, a client may continue sending after a refusal. Closing at once would destroy the answer on its way."""


class CoalescingTransport(asyncio.Transport):
    """Writes at once what an answer writes in one turn of the event loop: head and body are one packet, and one system call."""

    def __init__(self, transport: asyncio.Transport, stall: StallTimer):
        super().__init__()
        self._transport = transport
        self._stall = stall
        self._pending: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write before the next turn."""
        if not self._pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pending.append(bytes(data))

    def close(self) -> None:
        """Write what there is and close."""
        self._flush()
        self._transport.close()
        self._stall.start()  # it is closed once everything is sent

    def is_closing(self) -> bool:
        """Whether it was closed, by whichever side."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        data, self._pending = b"".join(self._pending), []
        if data and not self._transport.is_closing():  # the client may have left since
            self._transport.write(data)


class UvicornHttpProtocol(HttpToolsProtocol):
    """One connection, with four extensions for applications in plain ASGI.

    `eardrum.arrived` says whether `receive` has something to return at once. `eardrum.hang_up` ends the connection in the middle
    of an answer. `eardrum.when_gone` takes a function that is called when the client hangs up, or None; one that hung up already
    is told of at once. `eardrum.connection` is the transport itself, and the timer that bounds how long it may take nothing in.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._proxied_app = self.app
        self._direct_app = self.app.app if isinstance(self.app, ProxyHeadersMiddleware) else self.app
        self._in_head = False
        self._upgraded = False
        self._non_body_bytes = 0
        """Bytes that came since the request began or since the last of its body: of a head, of trailers, or between chunks."""
        self._is_pipelined = False
        self._read_bytes = 0
        """Bytes of the last read."""
        self._unmeasured_bytes = 0
        """Bytes of the read in which a pipelined request begins: an upper bound of the part of its head in that read."""
        self._trailer_bytes = 0
        self._parse_error: EardrumError | None = None
        self._is_refused = False
        self._lingered_bytes = 0
        self._timeout_handle: asyncio.TimerHandle | None = None
        self._on_disconnect: Callable[[], None] | None = None
        self._is_disconnected = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        self._stall.stop()
        self._cancel_timeout()
        self._notify_disconnect()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._stall = StallTimer(transport, self._log_stall)
        self._response_transport = CoalescingTransport(transport, self._stall)
        self._extensions: dict[str, dict[object, object]] = {
            "eardrum.arrived": {"call": self._has_arrived},
            "eardrum.hang_up": {"call": self._response_transport.close},
            "eardrum.when_gone": {"call": self._set_on_disconnect},
            "eardrum.connection": {"transport": transport, "stall": self._stall},
        }
        self._start_head_timeout()
        connection = transport.get_extra_info("socket")
        if connection and descriptor_monitor.are_short(connection.fileno(), len(self.connections)):
            self._close_idle_connection()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in progress on it."""
        return not self._current_request and not self.transport.is_closing()

    def _close_idle_connection(self) -> None:
        """Close the connection that has been idle for longest, or this one if there is none other."""
        others = (
            other for other in self.connections if isinstance(other, UvicornHttpProtocol) and other is not self and other.is_idle
        )
        if oldest := min(others, key=lambda other: other._idle_since, default=None):
            oldest.transport.close()
        else:
            self._refuse(BusyError("The server has no room for more connections: try again soon.", retry_after=RETRY_AFTER_S))

    def pause_writing(self) -> None:
        """The client has not read all data that was sent so far."""
        super().pause_writing()
        self._stall.start()

    def resume_writing(self) -> None:
        """It has, or most of it."""
        super().resume_writing()
        self._stall.stop()

    def timeout_keep_alive_handler(self) -> None:
        """No further request came."""
        super().timeout_keep_alive_handler()
        self._stall.start()

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes. What is no body ends in time, and in a bounded number of bytes, or is refused."""
        if self._is_refused:
            self._discard(len(data))
            return
        self._read_bytes = len(data)
        self._non_body_bytes += self._read_bytes
        self._is_pipelined = False
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._upgraded:
            return  # it is a WebSocket's from now on, which may be silent for longer
        if self._non_body_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(self._build_too_large_error("headers" if self._in_head else "trailers or chunk extensions"))
        elif (self._in_head or not self._current_request) and not self._timeout_handle and not self.transport.is_closing():
            self._start_head_timeout()  # uvicorn waits for the next request's first byte only

    def _parse(self, data: bytes) -> None:
        """Give bytes to the parser, as uvicorn does, except where a request offers to change the protocol."""
        rest: memoryview | None = memoryview(data)
        try:
            while rest is not None:
                rest = self._parse_until_upgrade(rest)
        except httptools.HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)

    def _parse_until_upgrade(self, data: memoryview) -> memoryview | None:
        """Give bytes to the parser. Return those behind the head of a request whose offer is declined, for another parser."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as pause:
            if self._upgraded:
                self.handle_websocket_upgrade()
            elif self._is_upgrade_declined:
                self._resume_behind_head()
                return data[pause.args[0] :]
        return None

    @property
    def _is_upgrade_declined(self) -> bool:
        """Whether the request offers a protocol that there is none of here, as clients in Java offer HTTP/2 with each request."""
        return self.parser.should_upgrade() and not self._upgraded and self.scope["method"] != "CONNECT"

    def _resume_behind_head(self) -> None:
        """Read on as if nothing had been offered. The parser takes all behind the head for the other protocol, so another parser
        reads the body."""
        framing = (header for header in self.headers if header[0] in FRAMING_HEADERS)
        head = b"POST / HTTP/1.1\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in framing) + b"\r\n"
        callbacks = BodyCallbacks(self)
        self.parser = httptools.HttpRequestParser(callbacks)
        with suppress(AttributeError):  # httptools before 0.6.3 is as lenient without it
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)
        callbacks.is_in_head = False

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._trailer_bytes = True, 0
        self.app = self._direct_app
        self._unmeasured_bytes = 0
        if self._is_pipelined:  # only the end of its head tells which of the bytes read are its own
            self._unmeasured_bytes, self._non_body_bytes = self._read_bytes, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer: of those ASGI has no word, so they are not kept."""
        if self._in_head:  # as uvicorn does it: a call of its method for each header would cost every request
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            elif name in PROXY_HEADERS:
                self.app = self._proxied_app
            self.headers.append((name, value))
            return
        self._trailer_bytes += len(name) + len(value)
        if self._trailer_bytes > MAX_HEAD_BYTES:
            self._parse_error = self._build_too_large_error("trailers")
            raise self._parse_error

    def on_headers_complete(self) -> None:
        """Its head has ended."""
        max_bytes = self._non_body_bytes + self._unmeasured_bytes
        self._in_head, self._non_body_bytes = False, 0
        if self._timeout_handle:
            self._cancel_timeout()
        if max_bytes > MAX_HEAD_BYTES and self._measure_head() > MAX_HEAD_BYTES:
            self._parse_error = self._build_too_large_error("headers")
            raise self._parse_error
        super().on_headers_complete()
        if self.parser.should_upgrade() and self._should_upgrade():
            self._upgraded = True
            return
        self.cycle.transport = self._response_transport
        self.cycle.send = ResponseWriter(self.cycle).send  # type: ignore[assignment, method-assign]
        self.scope["extensions"] = self._extensions

    def _measure_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        self._non_body_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It has ended."""
        if self._is_upgrade_declined:
            return  # only its head has
        self._non_body_bytes, self._is_pipelined = 0, True
        self._idle_since = self.loop.time()
        super().on_message_complete()

    def _log_stall(self) -> None:
        """The client is disconnected. Its request is in the log with the reason, unless it has its line already."""
        if self.cycle.response_complete:
            log.info("Disconnected the client at %s: %s", self.client[0] if self.client else "?", self._stall.reason)

    def _has_arrived(self) -> bool:
        return self.cycle.message_event.is_set()  # a request behind it begins when this one is here to its end

    def _set_on_disconnect(self, tell: Callable[[], None] | None) -> None:
        self._on_disconnect = tell
        if tell and self._is_disconnected:
            tell()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too much of it, in the shape in which everything else is refused."""
        fault, self._parse_error = self._parse_error, None
        self._refuse(
            fault or InvalidRequestError(f"This is not valid HTTP: check the request line, the headers and the lengths. ({msg})")
        )

    def _build_too_large_error(self, what: str) -> HeadTooLargeError:
        return HeadTooLargeError(f"The request's {what} are longer than {MAX_HEAD_BYTES} bytes.")

    @property
    def _current_request(self) -> RequestResponseCycle | None:
        """The request in progress."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle if cycle and not cycle.response_complete else None

    def _start_head_timeout(self) -> None:
        """Give the client as long for a whole head as an idle connection has between two requests."""
        self._timeout_handle = self.loop.call_later(self.timeout_keep_alive, self._handle_head_timeout)

    def _cancel_timeout(self) -> None:
        if self._timeout_handle:
            self._timeout_handle.cancel()
            self._timeout_handle = None

    def _handle_head_timeout(self) -> None:
        self._timeout_handle = None
        if self.transport.is_closing() or self._is_refused:
            return
        if self._current_request:
            self._start_head_timeout()  # a request before it is in progress, for which this one may not be read
        elif self._in_head:
            message = f"The request's headers did not arrive within {self.timeout_keep_alive:g} s (limits.idle_timeout)."
            self._refuse(ClientStalledError(message))
        else:
            self.transport.close()  # not a byte of a request came

    def _refuse(self, error: EardrumError) -> None:
        """Answer with the error and end the connection. An answer that has begun is broken off instead."""
        if self._is_refused:
            return
        self._is_refused = True
        self._cancel_timeout()
        self._unset_keepalive_if_required()
        if cycle := self._current_request:
            begun, cycle.disconnected = cycle.response_started, True
            cycle.message_event.set()
            self._notify_disconnect()
            if begun:
                self.transport.abort()
                return
        self.transport.write(encode_refusal(error))
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._timeout_handle = self.loop.call_later(LINGER_S, self.transport.abort)

    def _discard(self, size: int) -> None:
        self._lingered_bytes += size
        if self._lingered_bytes > MAX_LINGER_BYTES:
            self.transport.abort()

    def _notify_disconnect(self) -> None:
        if not self._is_disconnected:
            self._is_disconnected = True
            self._set_on_disconnect(self._on_disconnect)


class BodyCallbacks:
    """The callbacks of a parser that reads a request whose head another one has read: its own copy of the head is ignored."""

    def __init__(self, protocol: UvicornHttpProtocol):
        self.is_in_head = True
        self._protocol = protocol
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        """A request begins."""
        if not self.is_in_head:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of its URL."""
        if not self.is_in_head:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or a trailer."""
        if not self.is_in_head:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its head has ended."""
        if not self.is_in_head:
            self._protocol.on_headers_complete()


def encode_refusal(error: EardrumError) -> bytes:
    """Encode an error as a whole response, with which the connection ends."""
    response = responses.build_error_response(error)
    lines = [name + b": " + value for name, value in response.raw_headers] + [b"connection: close", b""]
    return STATUS_LINE[error.status] + b"\r\n".join([*lines, bytes(response.body)])


WITHOUT_BODY = (204, 304)
LINE_BREAK = b"\r\n"
CLOSE_HEADER = b"connection: close\r\n"
CHUNKED_HEADER = b"transfer-encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class ResponseWriter:
    """The `send` of one request. Names of headers come in lower case, as ASGI has it.

    Raises:
        RuntimeError: a header has a line break in it, a body is not as long as was said, a message comes out of turn.
    """

    def __init__(self, cycle: RequestResponseCycle):
        self._cycle = cycle
        self._remaining: int | None = 0
        """Bytes of the body that are still to come; None if it is unknown, and it goes out in chunks."""

    async def send(self, message: Message) -> None:
        """Write the next part of the answer, once the client has taken enough of those before."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        if message["type"] == "http.response.body" and cycle.response_started and not cycle.response_complete:
            self._write_body(message.get("body", b""), more=message.get("more_body", False))
        elif message["type"] == "http.response.start" and not cycle.response_started:
            self._write_head(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"The ASGI message {message['type']} comes out of turn.")

    def _write_head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        cycle = self._cycle
        headers = [*cycle.default_headers, *headers]
        lines = [name + b": " + value + LINE_BREAK for name, value in headers]
        said = dict(headers)
        if b"close" in said.get(b"connection", b"").lower():
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            lines.append(CLOSE_HEADER)
        if cycle.scope["method"] != "HEAD" and status not in WITHOUT_BODY:
            length = said.get(b"content-length")
            self._remaining = int(length) if length else None
            if not length and b"transfer-encoding" not in said:
                lines.append(CHUNKED_HEADER)
        head = b"".join(lines)
        if not head.count(b"\r") == head.count(b"\n") == len(lines):
            raise RuntimeError("A header of the answer has a line break in it.")
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        cycle.transport.write(STATUS_LINE[status] + head + LINE_BREAK)

    def _write_body(self, body: bytes, *, more: bool) -> None:
        cycle = self._cycle
        if self._remaining is None:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            cycle.transport.write(chunk if more else chunk + LAST_CHUNK)
        elif cycle.scope["method"] != "HEAD":
            self._remaining -= len(body)
            if self._remaining < 0 or (self._remaining and not more):
                raise RuntimeError("The body of the answer is not as long as its content-length says.")
            cycle.transport.write(body)
        if not more:
            self._finish()

    def _finish(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        del vars(cycle)["send"]  # that is this object's: they would hold on to each other until a garbage collection
