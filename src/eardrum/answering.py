"""Writes answers as uvicorn's own cycle does, for less: the head is put together, and looked at, as a whole."""

from __future__ import annotations

from collections.abc import Iterable

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from eardrum.api.asgi import Message

WITHOUT_BODY = (204, 304)
BREAK = b"\r\n"
CLOSE = b"connection: close\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class Answering:
    """The `send` of one request. Names of headers come in lower case, as ASGI has it.

    Raises:
        RuntimeError: a header has a line break in it, a body is not as long as was said, a message comes out of turn.
    """

    def __init__(self, cycle: RequestResponseCycle):
        self._cycle = cycle
        self._left: int | None = 0
        """Bytes of the body that are still to come; None if nobody knows, and it goes out in chunks."""

    async def send(self, message: Message) -> None:
        """Write the next part of the answer, once the client has taken enough of those before."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        if message["type"] == "http.response.body" and cycle.response_started and not cycle.response_complete:
            self._go_on(message.get("body", b""), more=message.get("more_body", False))
        elif message["type"] == "http.response.start" and not cycle.response_started:
            self._begin(message["status"], message.get("headers", ()))
        else:
            raise RuntimeError(f"The ASGI message {message['type']} comes out of turn.")

    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        cycle = self._cycle
        headers = [*cycle.default_headers, *headers]
        lines = [name + b": " + value + BREAK for name, value in headers]
        said = dict(headers)
        if b"close" in said.get(b"connection", b"").lower():
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            lines.append(CLOSE)
        if cycle.scope["method"] != "HEAD" and status not in WITHOUT_BODY:
            length = said.get(b"content-length")
            self._left = int(length) if length else None
            if not length and b"transfer-encoding" not in said:
                lines.append(CHUNKED)
        head = b"".join(lines)
        if not head.count(b"\r") == head.count(b"\n") == len(lines):
            raise RuntimeError("A header of the answer has a line break in it.")
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        cycle.transport.write(STATUS_LINE[status] + head + BREAK)

    def _go_on(self, body: bytes, *, more: bool) -> None:
        cycle = self._cycle
        if self._left is None:
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            cycle.transport.write(chunk if more else chunk + LAST_CHUNK)
        elif cycle.scope["method"] != "HEAD":
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("The body of the answer is not as long as its content-length says.")
            cycle.transport.write(body)
        if not more:
            self._end()

    def _end(self) -> None:
        cycle = self._cycle
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
        del vars(cycle)["send"]  # that is this object's: they would hold on to each other until a garbage collection
