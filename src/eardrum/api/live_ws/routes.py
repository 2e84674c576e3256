"""Serves the WebSocket `/v1/audio/transcriptions/stream`."""

from __future__ import annotations

from contextlib import aclosing, suppress
from urllib.parse import parse_qsl

from eardrum.api.asgi import ASGIApp, ErrorBodyBuilder, Receive, Scope, Send
from eardrum.api.fields import list_ignored_hints
from eardrum.api.live_ws.protocol import (
    AUDIO_BYTES,
    ClientMessage,
    ConfigMessage,
    build_message,
    parse_message,
)
from eardrum.api.live_ws.session_config import FORMAT_SETTINGS, LiveConfig
from eardrum.api.openapi import SOCKET_QUERY, WEBSOCKET_ERRORS, ApiOperation
from eardrum.api.request_log import get_record
from eardrum.api.websocket import ServerWebSocket, get_close_code
from eardrum.concurrency import run_alongside
from eardrum.errors import AudioError, EardrumError, InvalidRequestError, MethodNotAllowedError, ShuttingDownError
from eardrum.gateway.live import ResumableSession, find_live_model, open_session, prepare_settings
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.places import make_session_shutdown_error
from eardrum.gateway.service import Service
from eardrum.live import ClearCommand, CommitCommand, FinishCommand, SessionEnded, SessionSettings

PATH = "/v1/audio/transcriptions/stream"


class LiveRoute:
    """Routes the path to its WebSocket handler."""

    paths = (PATH,)
    operations = (
        ApiOperation(
            "get",
            PATH,
            "A WebSocket for live transcription: audio in, text out; see docs/reference/live.md",
            errors=WEBSOCKET_ERRORS,
            query=SOCKET_QUERY,
            success=(101,),
        ),
    )

    def __init__(self, service: Service, build_error: ErrorBodyBuilder):
        self._service = service
        self._build_error = build_error

    def route(self, scope: Scope) -> ASGIApp:
        """Return the handler of a request for the path."""
        return self._handle_websocket if scope["type"] == "websocket" else self._reject_http

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        stall_s = self._service.settings.limits.stall_timeout
        async with ServerWebSocket(
            scope, receive, send, shutdown=self._service.change_feed.ended, stall_s=stall_s, max_message_bytes=AUDIO_BYTES
        ) as socket:
            conversation = LiveConnection(self._service, socket, scope, self._build_error)
            try:
                query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
                await conversation.run(LiveConfig().update(dict(query)))
            except EardrumError as error:
                await conversation.send_error(error)
                await socket.close(get_close_code(error), error.message)

    async def _reject_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"{PATH} is a WebSocket: connect to it with ws:// (docs/reference/live.md shows how)."
        raise MethodNotAllowedError(message, allow=("GET",))


HALF_SAMPLE = "The audio ended with an incomplete sample: check `encoding` and `channels`."


class LiveConnection:
    """Runs one live session over an open socket."""

    def __init__(self, service: Service, socket: ServerWebSocket, scope: Scope, build_error: ErrorBodyBuilder):
        self._service = service
        self._socket = socket
        self._record = get_record(scope)
        self._build_error = build_error
        self._audio_bytes = 0

    async def run(self, config: LiveConfig) -> None:
        """Serve the client until the end of its audio.

        Raises:
            EardrumError: the session could not begin, or failed.
        """
        first: ClientMessage | None = None
        if not config.model:  # the first message may name the model
            first = await self._receive_message()
            if isinstance(first, ConfigMessage):
                config, first = config.update(first.given), None
            elif isinstance(first, FinishCommand):
                await self._send_end(SessionEnded(duration=0.0))
                return
        model = find_live_model(self._service, config.model, config.settings.request)
        settings = prepare_settings(self._service, model, config.settings)
        self._record.model = model.id
        async with open_session(self._service, model, settings) as session:
            try:
                await self._send_settings("ready", config, settings, model)
                await run_alongside(self._send_events(session), self._forward_messages(session, first, config, model))
            finally:
                self._record.summary = session.summary

    async def send_error(self, error: EardrumError) -> None:
        """Send an error to the client."""
        self._record.note = error.message
        await self._socket.send_json({"type": "error", **self._build_error(error)})

    async def _receive_message(self) -> ClientMessage:
        """Receive the next valid message; invalid ones are answered with an error.

        Raises:
            ShuttingDownError: the server is shutting down.
        """
        async for message in self._socket:
            try:
                return parse_message(message)
            except InvalidRequestError as error:
                await self.send_error(error)
        raise make_session_shutdown_error()

    async def _forward_messages(
        self, session: ResumableSession, first: ClientMessage | None, config: LiveConfig, model: Model
    ) -> None:
        """Forward messages until the audio ends or the server shuts down, which the session handles itself."""
        with suppress(ShuttingDownError):
            message = await self._receive_message() if first is None else first
            while not isinstance(message, FinishCommand):
                if isinstance(message, ConfigMessage):
                    config = await self._reconfigure(session, config, message, model)
                else:
                    await self._forward_message(session, message)
                message = await self._receive_message()
            self._socket.ignore_messages()
            if self._audio_bytes % config.frame_bytes:
                await self.send_error(AudioError(HALF_SAMPLE, param=None))
            await session.finish()

    async def _forward_message(self, session: ResumableSession, message: ClientMessage) -> None:
        match message:
            case bytes():
                self._audio_bytes += len(message)
                await session.feed(message)
            case CommitCommand():
                await session.commit()
            case ClearCommand():
                await session.clear()

    async def _reconfigure(
        self, session: ResumableSession, before: LiveConfig, change: ConfigMessage, model: Model
    ) -> LiveConfig:
        """Apply a change of settings and return them; an invalid change leaves the previous settings in force."""
        try:
            config = before.update(change.given)
            settings = prepare_settings(self._service, model, config.settings)
            if (
                config.model != before.model
                and find_live_model(self._service, config.model, config.settings.request).id != model.id
            ):
                raise InvalidRequestError(
                    f"This session uses {model.id}: open another session for {config.model}.", param="model"
                )
            if self._audio_bytes and config.settings.format != before.settings.format:
                raise InvalidRequestError(f"{', '.join(FORMAT_SETTINGS)} cannot change after the first audio.", param="encoding")
        except EardrumError as error:
            await self.send_error(error)
            return before
        await session.configure(settings)
        await self._send_settings("configured", config, settings, model)
        return config

    async def _send_events(self, session: ResumableSession) -> None:
        """Send the session's events to the client until the session ends."""
        async with aclosing(session.stream_events()) as events:
            async for event in events:
                if isinstance(event, SessionEnded):
                    await self._send_end(event)
                elif message := build_message(event, self._build_error):
                    await self._socket.send_json(message)

    async def _send_end(self, event: SessionEnded) -> None:
        message = build_message(event, self._build_error)
        assert message
        await self._socket.send_json(message)
        await self._socket.close()

    async def _send_settings(self, kind: str, config: LiveConfig, settings: SessionSettings, model: Model) -> None:
        unused = list_ignored_hints(settings.request, model.capabilities)
        message = {"type": kind, "session": self._record.id, "model": model.id, **config.describe(settings.request)}
        await self._socket.send_json(message | ({"ignored": unused} if unused else {}))
