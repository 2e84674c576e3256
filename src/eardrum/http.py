"""HTTP as uvicorn parses it, with a limit on the head of a request and refusals that speak the API's language."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from eardrum.answering import Answering
from eardrum.api.openai import answers
from eardrum.errors import EardrumError, HeadTooLargeError, InvalidRequestError
from eardrum.stalling import StallTimer

log = logging.getLogger(__name__)

HEAD_BYTES = 64 << 10
"""Request line and headers; the parser itself would take any number of bytes into memory."""


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
        self._head_bytes = 0
        self._when_gone: Callable[[], None] | None = None
        self._gone = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        super().connection_lost(exc)
        self._stall.stop()
        self._gone = True
        self._tell_gone(self._when_gone)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is here."""
        super().connection_made(transport)
        self._stall = StallTimer(transport, self._hung_up)
        self._joined = Joined(transport, self._stall)
        self._extensions: dict[str, dict[object, object]] = {
            "eardrum.arrived": {"call": self._arrived},
            "eardrum.hang_up": {"call": self._joined.close},
            "eardrum.when_gone": {"call": self._tell_gone},
            "eardrum.connection": {"transport": transport, "stall": self._stall},
        }

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
        """Parse the next bytes; a head that does not end in time is refused."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self._refuse(HeadTooLargeError(f"The request's headers are longer than {HEAD_BYTES} bytes."))

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head has ended."""
        self._in_head = False
        super().on_headers_complete()
        if self.parser.should_upgrade() and self._should_upgrade():
            return  # a WebSocket: others see to it
        self.cycle.transport = self._joined
        self.cycle.send = Answering(self.cycle).send  # type: ignore[assignment, method-assign]
        self.scope["extensions"] = self._extensions

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
        """Refuse what is not HTTP, in the shape in which everything else is refused."""
        self._refuse(InvalidRequestError(f"This is not valid HTTP: check the request line, the headers and the lengths. ({msg})"))

    def _refuse(self, error: EardrumError) -> None:
        response = answers.refusal(error)
        lines = [name + b": " + value for name, value in response.raw_headers] + [b"connection: close", b""]
        self.transport.write(STATUS_LINE[error.status] + b"\r\n".join([*lines, bytes(response.body)]))
        self.transport.close()
