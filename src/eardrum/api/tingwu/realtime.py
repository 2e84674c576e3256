"""Serves the WebSocket `/ws/realtime` in TingWu's protocol.

A session lasts as long as its socket and holds many recordings, one after another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import aclosing
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import parse_qs

from msgspec.structs import replace

from eardrum.api.asgi import ASGIApp, Receive, Scope, Send
from eardrum.api.fields import MAX_PROMPT, UNSET_IF_EMPTY, Flag, Hotwords, RequestModel
from eardrum.api.openapi import SOCKET_QUERY, WEBSOCKET_ERRORS, ApiOperation
from eardrum.api.request_body import parse_object
from eardrum.api.request_log import get_record
from eardrum.api.tingwu.hotwords import HotwordStore
from eardrum.api.websocket import ServerWebSocket, get_close_code
from eardrum.concurrency import run_alongside
from eardrum.errors import EardrumError, InvalidRequestError, MethodNotAllowedError, TooLargeError
from eardrum.gateway.live import ResumableSession, find_live_model, open_session
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.places import make_session_shutdown_error
from eardrum.gateway.service import Service
from eardrum.languages import parse_language
from eardrum.live import FinalTranscript, LiveEvent, PartialTranscript, SessionSettings, UtteranceFailed
from eardrum.transcription import Capabilities, Priority, TranscriptionRequest, check_hotwords

PATH = "/ws/realtime"


class TingWuRoute:
    """Routes the path to its WebSocket handler."""

    paths = (PATH,)
    operations = (
        ApiOperation(
            "get",
            PATH,
            "A WebSocket for live transcription with TingWu's messages",
            errors=WEBSOCKET_ERRORS,
            query=SOCKET_QUERY,
            success=(101,),
        ),
    )

    def __init__(self, service: Service, words: HotwordStore):
        self._service = service
        self._words = words

    def route(self, scope: Scope) -> ASGIApp:
        """Return the handler of a request for the path."""
        return self._handle_websocket if scope["type"] == "websocket" else self._reject_http

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        model, language = (query.get(name, [""])[-1] for name in ("model", "language"))
        stall_s = self._service.settings.limits.stall_timeout
        async with ServerWebSocket(
            scope, receive, send, shutdown=self._service.change_feed.ended, stall_s=stall_s, max_message_bytes=MAX_MESSAGE_BYTES
        ) as socket:
            conversation = TingWuConnection(
                self._service, socket, scope, TingWuConfig(hotwords=self._words.words), model=model, language=language
            )
            try:
                await conversation.run()
            except EardrumError as error:
                await conversation.send_warning(error)
                await socket.close(get_close_code(error), error.message)

    async def _reject_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"{PATH} is a WebSocket: connect to it with ws:// (docs/reference/live.md shows how)."
        raise MethodNotAllowedError(message, allow=("GET",))


class TingWuConnection:
    """Runs one session over an open socket. The query may name `model` and `language`, which TingWu's protocol lacks."""

    def __init__(
        self,
        service: Service,
        socket: ServerWebSocket,
        scope: Scope,
        config: TingWuConfig | None = None,
        *,
        model: str = "",
        language: str = "",
    ):
        self._service = service
        self._socket = socket
        self._record = get_record(scope)
        self._name = model
        self._language = language
        self._backend = ""
        self._config = config or TingWuConfig()

    async def run(self) -> None:
        """Serve the client until it disconnects or the server shuts down.

        Raises:
            EardrumError: the session could not begin, or failed.
        """
        await run_alongside(self._serve(), self._send_heartbeats())

    async def send_warning(self, error: EardrumError) -> None:
        """Send an error to the client, as a warning."""
        self._record.note = error.message
        await self._socket.send_json(build_warning(error.message, self._backend))

    async def _serve(self) -> None:
        model = find_live_model(self._service, self._name, TranscriptionRequest(language=parse_language(self._language)))
        self._backend = model.engine
        await self._socket.send_json(build_connected(self._record.id))
        first = await self._receive_message()  # an idle page loads no model
        if first is None:
            raise make_session_shutdown_error()
        self._record.model = model.id
        async with open_session(self._service, model, self._build_settings(model)) as session:
            try:
                await run_alongside(self._send_events(session), self._forward_messages(session, model, first))
            finally:
                self._record.summary = session.summary

    async def _receive_message(self) -> bytes | TingWuConfig | None:
        """Receive audio or a changed configuration; None when the server shuts down. Answers pings and invalid messages."""
        async for message in self._socket:
            check_message_size(message)
            if isinstance(message, bytes):
                return message
            try:
                fields = parse_message(message)
                if fields.get("type") == "ping":
                    await self._socket.send_json({"type": "pong"})
                elif "type" not in fields:
                    self._config = self._config.update(fields)
                    return self._config
            except InvalidRequestError as error:
                await self.send_warning(error)
        return None

    async def _forward_messages(self, session: ResumableSession, model: Model, message: bytes | TingWuConfig | None) -> None:
        """Forward messages until the server shuts down, which the session handles itself."""
        configured = self._build_settings(model)
        while message is not None:
            if isinstance(message, bytes):
                await session.feed(message)
            elif not message.is_speaking:
                await session.commit()
            if (settings := self._build_settings(model)) != configured:
                configured = settings
                await session.configure(settings)
            message = await self._receive_message()

    async def _send_events(self, session: ResumableSession) -> None:
        async with aclosing(session.stream_events()) as events:
            async for event in events:
                await self._send_event(event)

    async def _send_event(self, event: LiveEvent) -> None:
        """Send an event to the client. A refused commit is not sent: TingWu's clients commit without audio, too."""
        match event:
            case PartialTranscript():
                await self._socket.send_json(build_text(self._config.mode, event.stable + event.tentative, final=False))
            case FinalTranscript():
                await self._socket.send_json(build_text(self._config.mode, event.text, final=True))
            case UtteranceFailed():
                await self.send_warning(event.error)

    def _build_settings(self, model: Model) -> SessionSettings:
        request = TranscriptionRequest(language=parse_language(self._language), priority=Priority.LIVE)
        settings = self._config.build_settings(SessionSettings(request), model.capabilities)
        return replace(settings, request=self._service.prepare_request(model, settings.request))

    async def _send_heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await self._socket.send_json(build_ping(time.time()))


CHUNK_BYTES = 9600
"""The recommended bytes per audio message: 300 ms."""
HEARTBEAT_S = 30
MAX_MESSAGE_BYTES = 4 << 20
"""The largest message, in bytes."""


class TextMode(StrEnum):
    """Texts to send: partial ones, final ones, or both."""

    BOTH = "2pass"
    ONLINE = "online"
    OFFLINE = "offline"


class TingWuConfig(RequestModel):
    """A session's configuration by the client. Other fields (`chunk_interval` ...) have no effect."""

    mode: Annotated[TextMode, UNSET_IF_EMPTY] = TextMode.BOTH
    hotwords: Hotwords = ()
    is_speaking: Flag = True
    """False in a message ends the utterance."""

    def update(self, given: Mapping[str, Any]) -> TingWuConfig:
        """Return the configuration with a message's fields changed.

        Raises:
            InvalidRequestError: a value is invalid.
        """
        config = self.model_copy(update={"is_speaking": True} | TingWuConfig.parse(given).changes)
        check_hotwords(TranscriptionRequest(hotwords=config.hotwords))
        return config

    def build_settings(self, base: SessionSettings, can: Capabilities) -> SessionSettings:
        """Build the session's settings. Models without hotwords get them as the prompt."""
        words = self.hotwords
        prompt = base.request.prompt if can.hotwords or not words else " ".join(words)[:MAX_PROMPT]
        return replace(
            base, request=replace(base.request, hotwords=words, prompt=prompt), partials=self.mode is not TextMode.OFFLINE
        )


def parse_message(message: str) -> dict[str, Any]:
    """Parse a text message.

    Raises:
        InvalidRequestError: the message is not a JSON object.
    """
    explanation = 'A text message is a JSON object, as in {"is_speaking": false}; audio goes into binary ones.'
    return parse_object(message, not_json=explanation, not_object=explanation)


def check_message_size(message: str | bytes) -> None:
    """Check the size of a message.

    Raises:
        TooLargeError: the message is larger than `MAX_MESSAGE_BYTES`.
    """
    if len(message) > MAX_MESSAGE_BYTES:
        raise TooLargeError(f"One message holds at most {MAX_MESSAGE_BYTES >> 20} MiB: send smaller ones.")


def build_connected(id: str) -> dict[str, Any]:
    """Build the first message of a connection."""
    config = {"chunk_size": CHUNK_BYTES, "heartbeat_interval": HEARTBEAT_S, "compression": False}
    return {"type": "connected", "connection_id": id, "config": config}


def build_text(mode: TextMode, text: str, *, final: bool) -> dict[str, Any]:
    """Build a text message; the text replaces all texts since the last final one."""
    kind: str = mode
    if mode is TextMode.BOTH:
        kind = "2pass-offline" if final else "2pass-online"
    return {"mode": kind, "text": text.strip(), "is_final": final}


def build_ping(now: float) -> dict[str, Any]:
    """Build a heartbeat at a Unix time."""
    return {"type": "ping", "timestamp": now}


def build_warning(sentence: str, backend: str) -> dict[str, Any]:
    """Build a warning, which TingWu's own page displays."""
    return {"warning": sentence, "backend": backend}
