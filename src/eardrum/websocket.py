"""WebSockets as uvicorn speaks them, with what those need that last."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode

from eardrum.stalling import StallTimer

BEHIND_S = 1.0
"""A message that waits so long for the application shows that this is slower than the client."""

SLICE = 4 << 10
TURN_S = 0.005
"""Of what came at once so many bytes are taken apart at a time, until that has taken so long; then others have their turn. A
frame costs the same whether it holds 64 KB or nothing, and 256 KB may be 130,000 of them."""

MOST_FRAGMENTS = 4096
"""Of one message: 16 MB in pieces of 4 KB."""

LINGER_S = 2.0
"""How long a client may go on sending when it has broken the rules: to close at once would destroy the close on its way."""

GOODBYE_S = 1.0
"""How long a client has to answer the close when the server ends."""


class WebSocket(WebSocketsSansIOProtocol):
    """One connection, with three extensions for applications.

    `eardrum.connection` is the transport itself, and its timer as in `Http`. `eardrum.farewell`, once called, leaves it to the
    application to close when the server ends: it has something to say before. `eardrum.largest` is called with how many bytes a
    message may have: a larger one ends the connection (1009) before it is all here.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._came = 0.0
        self._behind = 0.0
        self._says_farewell = False
        self._stall: StallTimer | None = None
        self._left = bytearray()
        """What came and was not taken apart yet."""
        self._going_on = False
        self._refused = False
        self._lost: tuple[Exception | None] | None = None

    def data_received(self, data: bytes) -> None:
        """Take apart what came, in turns if it is much work."""
        if self._refused:
            return
        if len(data) <= SLICE and not self._going_on:
            super().data_received(data)
            return
        self._left += data
        if self._going_on:
            self.transport.pause_reading()
        else:
            self._go_on()

    def _go_on(self) -> None:
        self._going_on = False
        until = self.loop.time() + TURN_S
        while self._left and not self._refused and not self.transport.is_closing():
            data = bytes(self._left[:SLICE])
            del self._left[:SLICE]
            super().data_received(data)
            if self.loop.time() > until and self._left:
                self._going_on = True
                self.transport.pause_reading()
                self.loop.call_soon(self._go_on)
                return
        self._left.clear()
        if self._lost:
            self._end_connection(*self._lost)
        elif not self.read_paused:
            self.transport.resume_reading()

    def handle_cont(self, event: Any) -> None:
        """Some more of a message."""
        if len(self.frames) >= MOST_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, f"more than {MOST_FRAGMENTS} fragments")
            self.handle_parser_exception()
        elif not self._refused:
            super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        """It breaks the rules, and was told so by the library; uvicorn would close at once."""
        if self._refused:
            return
        self._refused = True
        self.frames = []
        said = self.conn.close_sent
        assert said is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": said.code, "reason": said.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.read_paused = False
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_S, self.transport.close)

    def pause_writing(self) -> None:
        """The client has not taken in what was sent so far."""
        super().pause_writing()
        if self._stall:
            self._stall.start()

    def resume_writing(self) -> None:
        """It has, or most of it."""
        super().resume_writing()
        if self._stall:
            self._stall.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone. What it said before is heard first."""
        if self._going_on and not self.close_sent:
            self._lost = (exc,)
        else:
            self._end_connection(exc)

    def _end_connection(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._stall:
            self._stall.stop()

    def handle_connect(self, event: Any) -> None:
        """A client is here."""
        super().handle_connect(event)
        if self.handshake_complete:
            return  # refused: this was no proper handshake
        extensions: dict[str, Any] = self.scope["extensions"] or {}
        self._stall = StallTimer(self.transport, lambda: None)
        extensions["eardrum.connection"] = {"transport": self.transport, "stall": self._stall}
        extensions["eardrum.farewell"] = {"call": self._say_farewell}
        extensions["eardrum.largest"] = {"call": self._take_at_most}

    def send_receive_event_to_app(self) -> None:
        """A message is whole."""
        self._came = self.loop.time()
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        """The next message, for the application."""
        message = await super().receive()
        if self._going_on:
            self.transport.pause_reading()  # which uvicorn may just have ended
        now = self.loop.time()
        if now - self._came > BEHIND_S:
            self._behind = now
        return message

    async def send(self, message: Any) -> None:
        """A message of the application. A client that does not take in the close is hung up on all the same."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # by a refusal, which uvicorn would call an error of the application
        if message["type"] == "websocket.close" and self.close_timer:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def keepalive_timeout(self) -> None:
        """No pong came in time. That counts unless it may lie behind messages that have not been read yet."""
        if self.read_paused or self._behind > self.ping_sent_at:
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        self.loop.call_later(self.close_timeout, self.transport.abort)

    def shutdown(self) -> None:
        """The server ends."""
        self.close_timeout = GOODBYE_S
        if self.close_sent or not self._says_farewell:
            super().shutdown()

    def _say_farewell(self) -> None:
        self._says_farewell = True

    def _take_at_most(self, size: int) -> None:
        self.conn.max_message_size = size
