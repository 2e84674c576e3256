"""WebSocket connections: uvicorn's sans-IO protocol with limits, fairness and stall detection for long-lived sessions."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import SecurityError
from websockets.frames import CloseCode

from eardrum.connection_limits import StallTimer
from eardrum.errors import EardrumError, HeadTooLargeError, InvalidRequestError
from eardrum.server.uvicorn_http import encode_refusal

SLOW_APP_S = 1.0
"""A message that waits so long for the application shows that this is slower than the client."""

SLICE_BYTES = 4 << 10
MAX_TURN_S = 0.005
"""Of what came at once so many bytes are taken apart at a time, until that has taken so long; then others have their turn. A
frame costs the same whether it holds 64 KB or nothing, and 256 KB may be 130,000 of them."""

MAX_FRAGMENTS = 4096
"""Of one message: 16 MB in pieces of 4 KB."""

LINGER_S = 2.0
"""How long a client may continue sending when it has broken the rules: to close at once would destroy the close on its way."""

CLOSE_TIMEOUT_S = 1.0
"""How long a client has to answer the close when the server ends."""


class UvicornWebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection, with three extensions for applications.

    `eardrum.connection` is the transport itself, and its timer, as in `UvicornHttpProtocol`. `eardrum.farewell`, once called,
    leaves it to the application to close when the server ends: it has something to say before. `eardrum.largest` is called with
    how many bytes a message may have: a larger one ends the connection (1009) before it is all here.
    """

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._message_at = 0.0
        self._slow_at = 0.0
        self._closes_gracefully = False
        self._stall: StallTimer | None = None
        self._unparsed = bytearray()
        """Received bytes that are not parsed yet."""
        self._is_parsing_later = False
        self._is_refused = False
        self._pending_loss: tuple[Exception | None] | None = None

    def data_received(self, data: bytes) -> None:
        """Take apart what came, in turns if it is much work."""
        if self._is_refused:
            return
        if len(data) <= SLICE_BYTES and not self._is_parsing_later:
            super().data_received(data)
            return
        self._unparsed += data
        if self._is_parsing_later:
            self.transport.pause_reading()
        else:
            self._parse_slices()

    def _parse_slices(self) -> None:
        self._is_parsing_later = False
        until = self.loop.time() + MAX_TURN_S
        while self._unparsed and not self._is_refused and not self.transport.is_closing():
            data = bytes(self._unparsed[:SLICE_BYTES])
            del self._unparsed[:SLICE_BYTES]
            super().data_received(data)
            if self.loop.time() > until and self._unparsed:
                self._is_parsing_later = True
                self.transport.pause_reading()
                self.loop.call_soon(self._parse_slices)
                return
        self._unparsed.clear()
        if self._pending_loss:
            self._end_connection(*self._pending_loss)
        elif not self.read_paused:
            self.transport.resume_reading()

    def handle_events(self) -> None:
        """Handle what came. The library has no event for a head that it cannot read, and uvicorn would never answer it."""
        super().handle_events()
        if self.conn.handshake_exc and not self.handshake_initiated:
            self._refuse_head(self.conn.handshake_exc)

    def _refuse_head(self, fault: Exception) -> None:
        self._is_refused = self.handshake_complete = self.close_sent = True
        cause = fault.__cause__ or fault
        if isinstance(cause, SecurityError):
            error: EardrumError = HeadTooLargeError(f"The head of this request is too large for a WebSocket: {cause}.")
        else:
            error = InvalidRequestError(f"This request opens no WebSocket: {cause}.")
        self.transport.write(encode_refusal(error))
        self.transport.close()

    def handle_cont(self, event: Any) -> None:
        """Some more of a message."""
        if len(self.frames) >= MAX_FRAGMENTS:
            self.conn.fail(CloseCode.MESSAGE_TOO_BIG, f"more than {MAX_FRAGMENTS} fragments")
            self.handle_parser_exception()
        elif not self._is_refused:
            super().handle_cont(event)

    def handle_parser_exception(self) -> None:
        """It breaks the rules, and was told so by the library; uvicorn would close at once."""
        if self._is_refused:
            return
        self._is_refused = True
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
        """The client has not read all data that was sent so far."""
        super().pause_writing()
        if self._stall:
            self._stall.start()

    def resume_writing(self) -> None:
        """It has, or most of it."""
        super().resume_writing()
        if self._stall:
            self._stall.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the loss of the connection. Messages that arrived before are delivered first."""
        if self._is_parsing_later and not self.close_sent:
            self._pending_loss = (exc,)
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
        extensions["eardrum.farewell"] = {"call": self._close_gracefully}
        extensions["eardrum.largest"] = {"call": self._limit_message_size}

    def send_receive_event_to_app(self) -> None:
        """A message is whole. For one that is no text, uvicorn would log an error of the server, with a traceback."""
        self._message_at = self.loop.time()
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(self.frames):
            self.conn.send_close(CloseCode.INVALID_DATA)
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    async def receive(self) -> Any:
        """The next message, for the application."""
        message = await super().receive()
        if self._is_parsing_later:
            self.transport.pause_reading()  # which uvicorn may just have ended
        now = self.loop.time()
        if now - self._message_at > SLOW_APP_S:
            self._slow_at = now
        return message

    async def send(self, message: Any) -> None:
        """A message of the application. A client that does not read the close frame is disconnected, too."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # by a refusal, which uvicorn would call an error of the application
        if message["type"] == "websocket.close" and self.close_timer:
            self.close_timer.cancel()
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def keepalive_timeout(self) -> None:
        """No pong came in time. That counts unless it may lie behind messages that have not been read yet."""
        if self.read_paused or self._slow_at > self.ping_sent_at:
            self.pong_timer = None
            self.pending_ping_payload = None
            self.schedule_ping()
            return
        super().keepalive_timeout()
        self.loop.call_later(self.close_timeout, self.transport.abort)

    def shutdown(self) -> None:
        """The server ends."""
        self.close_timeout = CLOSE_TIMEOUT_S
        if self.close_sent or not self._closes_gracefully:
            super().shutdown()

    def _close_gracefully(self) -> None:
        self._closes_gracefully = True

    def _limit_message_size(self, size: int) -> None:
        self.conn.max_message_size = size


def _is_utf8(pieces: list[bytes]) -> bool:
    if all(piece.isascii() for piece in pieces):
        return True
    try:
        b"".join(pieces).decode()
    except UnicodeDecodeError:
        return False
    return True
