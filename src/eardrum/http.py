"""HTTP as uvicorn parses it, with a limit on the head of a request and refusals that speak the API's language."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from eardrum.answering import Answering
from eardrum.api.openai import answers
from eardrum.descriptors import descriptors
from eardrum.errors import BusyError, EardrumError, HeadTooLargeError, InvalidRequestError, StalledError
from eardrum.stalling import StallTimer

log = logging.getLogger(__name__)

HEAD_BYTES = 64 << 10
"""Request line and headers; the parser itself would take any number of bytes into memory. Trailers have as much room."""

RETRY_AFTER_S = 2.0

LINGER_S = 5.0
LINGER_BYTES = 256 << 20
"""How long, and how much, a client may go on sending after a refusal. Closing at once would destroy the answer on its way."""


class Joined(asyncio.Transport):
    """Writes at once what an answer writes in one turn of the event loop: head and body are one packet, and one system call."""

    def __init__(self, transport: asyncio.Transport, stall: StallTimer):
        super().__init__()
        self._transport = transport
        self._stall = stall
        self._waiting: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write before the next turn."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(bytes(data))

    def close(self) -> None:
        """Write what there is and close."""
        self._flush()
        self._transport.close()
        self._stall.start()  # it is closed once everything is sent

    def is_closing(self) -> bool:
        """Whether it was closed, by whichever side."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        data, self._waiting = b"".join(self._waiting), []
        if data and not self._transport.is_closing():  # the client may have left since
            self._transport.write(data)


class Http(HttpToolsProtocol):
    """One connection, with four extensions for applications in plain ASGI.

    `eardrum.arrived` says whether `receive` has something to return at once. `eardrum.hang_up` ends the connection in the middle
    of an answer. `eardrum.when_gone` takes a function that is called when the client hangs up, or None; one that hung up already
    is told of at once. `eardrum.connection` is the transport itself, and the timer that bounds how long it may take nothing in.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._in_head = False
        self._upgraded = False
        self._outside = 0
        """Bytes that came since the request began or since the last of its body: of a head, of trailers, or between chunks."""
        self._behind_another = False
        self._trailer_bytes = 0
        self._fault: EardrumError | None = None
        self._refused = False
        self._lingered = 0
        self._waiting: asyncio.TimerHandle | None = None
        self._when_gone: Callable[[], None] | None = None
        self._gone = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        self._stall.stop()
        self._stop_waiting()
        self._tell_gone_now()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._stall = StallTimer(transport, self._hung_up)
        self._joined = Joined(transport, self._stall)
        self._extensions: dict[str, dict[object, object]] = {
            "eardrum.arrived": {"call": self._arrived},
            "eardrum.hang_up": {"call": self._joined.close},
            "eardrum.when_gone": {"call": self._tell_gone},
            "eardrum.connection": {"transport": transport, "stall": self._stall},
        }
        self._wait_for_head()
        connection = transport.get_extra_info("socket")
        if connection and descriptors.are_short(connection.fileno(), len(self.connections)):
            self._make_room()

    @property
    def idle(self) -> bool:
        """Whether no request is in progress on it."""
        return not self._request and not self.transport.is_closing()

    def _make_room(self) -> None:
        """Close the connection that has been idle for longest, or this one if there is none other."""
        others = (other for other in self.connections if isinstance(other, Http) and other is not self and other.idle)
        if oldest := min(others, key=lambda other: other._since, default=None):
            oldest.transport.close()
        else:
            self._refuse(BusyError("The server has no room for more connections: try again soon.", retry_after=RETRY_AFTER_S))

    def pause_writing(self) -> None:
        """The client has not taken in what was sent so far."""
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
        if self._refused:
            self._linger(len(data))
            return
        self._outside += len(data)
        self._behind_another = False
        super().data_received(data)
        if self._upgraded:
            return  # it is a WebSocket's from now on, which may be silent for longer
        if self._outside > HEAD_BYTES and not self.transport.is_closing():
            self._refuse(self._too_long("headers" if self._in_head else "trailers or chunk extensions"))
        elif (self._in_head or not self._request) and not self._waiting and not self.transport.is_closing():
            self._wait_for_head()  # uvicorn waits for the next request's first byte only

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._trailer_bytes = True, 0
        if self._behind_another:
            self._outside = 0  # how much of what came with the request before it is its own, only the end of its head tells
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer: of those ASGI has no word, so they are not kept."""
        if self._in_head:
            super().on_header(name, value)
            return
        self._trailer_bytes += len(name) + len(value)
        if self._trailer_bytes > HEAD_BYTES:
            self._fault = self._too_long("trailers")
            raise self._fault

    def on_headers_complete(self) -> None:
        """Its head has ended."""
        self._in_head, self._outside = False, 0
        self._stop_waiting()
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._fault = self._too_long("headers")
            raise self._fault
        super().on_headers_complete()
        if self.parser.should_upgrade() and self._should_upgrade():
            self._upgraded = True
            return
        self.cycle.transport = self._joined
        self.cycle.send = Answering(self.cycle).send  # type: ignore[assignment, method-assign]
        self.scope["extensions"] = self._extensions

    def on_body(self, body: bytes) -> None:
        """Some of its body."""
        self._outside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """It has ended."""
        self._outside, self._behind_another = 0, True
        self._since = self.loop.time()
        super().on_message_complete()

    def _hung_up(self) -> None:
        """The client is hung up on. Its request is in the log with the reason, unless it has its line already."""
        if self.cycle.response_complete:
            log.info("A client at %s was hung up on: %s", self.client[0] if self.client else "?", self._stall.reason)

    def _arrived(self) -> bool:
        return self.cycle.message_event.is_set()  # a request behind it begins when this one is here to its end

    def _tell_gone(self, tell: Callable[[], None] | None) -> None:
        self._when_gone = tell
        if tell and self._gone:
            tell()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too much of it, in the shape in which everything else is refused."""
        fault, self._fault = self._fault, None
        self._refuse(
            fault or InvalidRequestError(f"This is not valid HTTP: check the request line, the headers and the lengths. ({msg})")
        )

    def _too_long(self, what: str) -> HeadTooLargeError:
        return HeadTooLargeError(f"The request's {what} are longer than {HEAD_BYTES} bytes.")

    @property
    def _request(self) -> RequestResponseCycle | None:
        """The request in progress."""
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return cycle if cycle and not cycle.response_complete else None

    def _wait_for_head(self) -> None:
        """Give the client as long for a whole head as an idle connection has between two requests."""
        self._waiting = self.loop.call_later(self.timeout_keep_alive, self._give_up)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.transport.is_closing() or self._refused:
            return
        if self._request:
            self._wait_for_head()  # a request before it is in progress, for which this one may not be read
        elif self._in_head:
            message = f"The request's headers did not arrive within {self.timeout_keep_alive:g} s (limits.idle_seconds)."
            self._refuse(StalledError(message))
        else:
            self.transport.close()  # not a byte of a request came

    def _refuse(self, error: EardrumError) -> None:
        """Answer with the error and end the connection. An answer that has begun is broken off instead."""
        if self._refused:
            return
        self._refused = True
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if cycle := self._request:
            begun, cycle.disconnected = cycle.response_started, True
            cycle.message_event.set()
            self._tell_gone_now()
            if begun:
                self.transport.abort()
                return
        response = answers.refusal(error)
        lines = [name + b": " + value for name, value in response.raw_headers] + [b"connection: close", b""]
        self.transport.write(STATUS_LINE[error.status] + b"\r\n".join([*lines, bytes(response.body)]))
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._waiting = self.loop.call_later(LINGER_S, self.transport.abort)

    def _linger(self, size: int) -> None:
        self._lingered += size
        if self._lingered > LINGER_BYTES:
            self.transport.abort()

    def _tell_gone_now(self) -> None:
        if not self._gone:
            self._gone = True
            self._tell_gone(self._when_gone)
