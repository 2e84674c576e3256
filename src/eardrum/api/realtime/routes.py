"""The routes of the Realtime API: a WebSocket and client secrets. Raw ASGI, because audio passes through here.

A connection moves events between the client's WebSocket, the protocol, which decides, and the live session, which
transcribes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import NoReturn, assert_never
from urllib.parse import parse_qs

from starlette.responses import JSONResponse

from eardrum.api.asgi import ASGIApp, Receive, Scope, Send, get_header
from eardrum.api.auth import KEY_SUBPROTOCOL, read_api_key
from eardrum.api.openapi import BODY_ERRORS, LOOKUP_ERRORS, SOCKET_QUERY, WEBSOCKET_ERRORS, ApiOperation
from eardrum.api.realtime import client_secrets
from eardrum.api.realtime.client_secrets import SECRET_PREFIX, ClientSecretStore
from eardrum.api.realtime.protocol import MAX_EVENT_CHARS, CloseConnection, OpenSession, ProtocolStep, RealtimeProtocol
from eardrum.api.realtime.session_config import PCM_RATES, RealtimeConfig, RealtimeFormat
from eardrum.api.request_log import get_record
from eardrum.api.websocket import CloseCode, ServerWebSocket
from eardrum.concurrency import run_until_first
from eardrum.errors import (
    EardrumError,
    InvalidRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    ShuttingDownError,
    UnauthorizedError,
    UnsupportedRouteError,
)
from eardrum.gateway.key_usage import KeyUsage
from eardrum.gateway.live import ResumableSession, find_live_model, open_session
from eardrum.gateway.service import Service
from eardrum.languages import parse_language
from eardrum.live import ClearCommand, CommitCommand, ConfigureCommand, SessionSettings
from eardrum.transcription import TranscriptionRequest

WEBSOCKET_PATH = "/v1/realtime"
CONVERSATION_PATHS = (WEBSOCKET_PATH, "/v1/realtime/calls", "/v1/realtime/sessions", "/v1/realtime/translations/client_secrets")
"""OpenAI's routes for conversations, which this server does not support."""

BETA_HEADER, BETA_SUBPROTOCOL = "realtime=v1", "openai-beta.realtime-v1"


class RealtimeRoutes:
    """The endpoints. WebSockets for external models are left to `ProxyRoutes`, which forwards them."""

    paths = (*CONVERSATION_PATHS, *client_secrets.PATHS)
    operations = (
        ApiOperation(
            "get",
            WEBSOCKET_PATH,
            "A WebSocket for live transcription in OpenAI's Realtime API",
            errors=WEBSOCKET_ERRORS,
            query=SOCKET_QUERY
            | {
                "intent": "`transcription`.",
                "language": "The language of the speech, until an update names one.",
                "rate": "Sample rate of the audio in Hz.",
            },
            success=(101,),
        ),
        ApiOperation(
            "post",
            client_secrets.CLIENT_SECRETS,
            "Create a key for such a WebSocket that expires, for web pages",
            errors=LOOKUP_ERRORS + BODY_ERRORS,
            body={
                "session": "The initial configuration of the sessions.",
                "expires_after": "When the key expires: `anchor`, `seconds`.",
            },
        ),
        ApiOperation(
            "post",
            client_secrets.TRANSCRIPTION_SESSIONS,
            "Create such a key in the format of the API's beta",
            errors=LOOKUP_ERRORS + BODY_ERRORS,
            body={
                "input_audio_format": "The audio's encoding.",
                "input_audio_transcription": "`model`, `language`, `prompt`.",
                "turn_detection": "How the end of an utterance is detected.",
            },
        ),
        *(
            ApiOperation("post", path, "Not supported: the Realtime API only transcribes here", errors=(501,), success=())
            for path in CONVERSATION_PATHS[1:]
        ),
    )

    def __init__(self, service: Service):
        self._service = service
        self._secrets = ClientSecretStore()

    def find_secret_owner(self, scope: Scope, key: str) -> KeyUsage | None:
        """Find the API key that created a client secret, if the request is a WebSocket that a secret authorises.

        None if the config no longer has that key: its secrets end with it.
        """
        if scope["type"] != "websocket" or scope["path"] != WEBSOCKET_PATH:
            return None
        secret = self._secrets.find(key, time.time())
        return self._service.api_keys.find_current(secret.creator) if secret and secret.creator else None

    def is_invited(self, scope: Scope) -> bool:
        """Whether a page has a client secret, which a client with an API key must have created."""
        return self.find_secret_owner(scope, read_api_key(scope)) is not None

    def route(self, scope: Scope) -> ASGIApp | None:
        """Return the application for a request to one of the paths, or None for a WebSocket that is forwarded."""
        path = scope["path"]
        if scope["type"] == "websocket":
            return self._handle_websocket if path == WEBSOCKET_PATH and not self._is_foreign(scope) else None
        if path in client_secrets.PATHS:
            return self._handle_post if scope["method"] == "POST" else self._reject_method
        return self._reject_conversation

    async def _handle_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        conversation = self._build_protocol(scope)

        @asynccontextmanager
        async def listen(id: str, settings: SessionSettings) -> AsyncIterator[ResumableSession]:
            get_record(scope).model = id
            async with open_session(self._service, self._service.catalog.find_model(id), settings) as session:
                try:
                    yield session
                finally:
                    get_record(scope).set_transcription(session.model, session.summary)

        over, stall_s = self._service.change_feed.ended, self._service.settings.limits.stall_timeout
        async with ServerWebSocket(
            scope,
            receive,
            send,
            shutdown=over,
            stall_s=stall_s,
            max_message_bytes=MAX_EVENT_CHARS,
            subprotocol=_choose_subprotocol(scope),
        ) as socket:
            await RealtimeConnection(conversation, listen, socket).run()

    def _build_protocol(self, scope: Scope) -> RealtimeProtocol:
        """Build the protocol of a connection from its headers and its query.

        Raises:
            UnauthorizedError: the client secret has expired.
            InvalidRequestError: a value of the query is invalid.
        """
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        config = self._build_config()
        key = read_api_key(scope)
        if secret := self._secrets.find(key, time.time()):
            config = secret.config
        elif key.startswith(SECRET_PREFIX) and not self._service.api_keys.find_usage(key):
            raise UnauthorizedError("The client secret has expired, or this server did not create it: request another one.")
        transcribes = query.get("intent") == "transcription"
        if not transcribes and query.get("intent"):
            raise InvalidRequestError("intent must be transcription: this server only transcribes.", param="intent")
        if (language := query.get("language", "").strip()) and not (config.language or config.languages):
            parse_language(language)
            config = config.model_copy(update={"language": language})
        if rate := query.get("rate"):
            config = config.model_copy(update={"format": RealtimeFormat(), "pcm_rate": _parse_rate(rate)})
        beta = get_header(scope, b"openai-beta") == BETA_HEADER or BETA_SUBPROTOCOL in scope["subprotocols"]
        return RealtimeProtocol(
            secrets.token_hex(10),
            self._admit_model,
            config if config.model else config.model_copy(update={"model": query.get("model", "").strip()}),
            beta=beta,
            certain=transcribes or bool(config.model),
        )

    def _build_config(self) -> RealtimeConfig:
        return RealtimeConfig(pcm_rate=self._service.settings.realtime_sample_rate)

    def _admit_model(self, name: str, request: TranscriptionRequest) -> tuple[str, TranscriptionRequest]:
        model = find_live_model(self._service, name, request)
        return model.id, self._service.prepare_request(model, request)

    def _is_foreign(self, scope: Scope) -> bool:
        """Whether the model in the query is external, so that the WebSocket is forwarded unchanged."""
        name = parse_qs(scope["query_string"].decode("latin-1")).get("model", [""])[-1].strip()
        if not name or read_api_key(scope).startswith(SECRET_PREFIX):
            return False
        try:
            return self._service.find_live_model(name).is_external
        except ModelNotFoundError:
            return False

    async def _handle_post(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await client_secrets.read_json(scope, receive, self._service.settings.limits)
        is_beta = scope["path"] == client_secrets.TRANSCRIPTION_SESSIONS
        answer = client_secrets.create_client_secret(
            body, self._secrets, self._admit_model, self._build_config(), time.time(), beta=is_beta
        )
        await JSONResponse(answer)(scope, receive, send)

    async def _reject_method(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:
        raise MethodNotAllowedError(f"{scope['path']} takes POST, not {scope['method']}.", allow=("POST",))

    async def _reject_conversation(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:
        raise UnsupportedRouteError(
            f"This server only transcribes, and has no WebRTC: open a WebSocket at {WEBSOCKET_PATH}?intent=transcription."
        )


def _choose_subprotocol(scope: Scope) -> str | None:
    """Choose one of the offered subprotocols, which browsers require; one without a key if there is any."""
    offered: list[str] = scope["subprotocols"]
    return min(offered, key=lambda name: (name != "realtime", name.startswith(KEY_SUBPROTOCOL)), default=None)


def _parse_rate(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not PCM_RATES[0] <= int(text) <= PCM_RATES[1]:
        raise InvalidRequestError(
            f"rate must be a number of Hz from {PCM_RATES[0]} to {PCM_RATES[1]}, not {text[:20]!r}.", param="rate"
        )
    return int(text)


SHUTDOWN_CLOSE = CloseConnection(CloseCode.GOING_AWAY, "The server is shutting down.")

SessionOpener = Callable[[str, SessionSettings], AbstractAsyncContextManager[ResumableSession]]
"""Opens a session with the model of this id."""


class RealtimeConnection:
    """One connection, from the greeting to the end.

    Args:
        conversation: Turns messages and events into steps.
        listen: Opens the live sessions.
        socket: The client's WebSocket.
    """

    def __init__(self, conversation: RealtimeProtocol, listen: SessionOpener, socket: ServerWebSocket):
        self._conversation = conversation
        self._open_live_session = listen
        self._socket = socket
        self._session: asyncio.Future[ResumableSession] | None = None
        self._session_task: asyncio.Task[None] | None = None
        self._closing = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve until either side closes the connection. When the server shuts down, the session ends with its last transcripts.

        Raises:
            ClientGoneError: the client disconnected, or stopped reading.
        """
        try:
            await self._run_steps(self._conversation.greet())
            await run_until_first(self._handle_messages(), self._wait_until_closed())
        finally:
            await self._stop_session()

    async def _wait_until_closed(self) -> None:
        await self._over

    async def _handle_messages(self) -> None:
        """Handle the client's messages until the server shuts down. Then the session ends, and with it the connection."""
        async for message in self._socket:
            await self._run_steps(list(self._conversation.receive_message(message)))
        if self._session:
            await (await self._session).finish()
            await self._over
        else:
            await self._close(SHUTDOWN_CLOSE)

    async def _run_steps(self, steps: Iterable[ProtocolStep]) -> None:
        for step in steps:
            match step:
                case dict():
                    if not self._closing:
                        await self._socket.send_json(step)
                case CloseConnection():
                    await self._close(step)
                case OpenSession():
                    await self._open_session(step)
                case bytes() | ConfigureCommand() | CommitCommand() | ClearCommand():
                    await self._forward_step(step)
                case _:
                    assert_never(step)

    async def _open_session(self, step: OpenSession) -> None:
        await self._stop_session()
        self._session = asyncio.get_running_loop().create_future()
        self._session_task = asyncio.create_task(self._send_events(step, self._session))
        self._session_task.add_done_callback(self._handle_session_end)

    async def _forward_step(self, step: bytes | ConfigureCommand | CommitCommand | ClearCommand) -> None:
        assert self._session
        session = await self._session  # a model may have to be loaded first
        match step:
            case bytes():
                await session.feed(step)
            case ConfigureCommand(settings=settings):
                await session.configure(settings)
            case CommitCommand():
                await session.commit()
            case ClearCommand():
                await session.clear()

    async def _send_events(self, step: OpenSession, ready: asyncio.Future[ResumableSession]) -> None:
        """Send the events of a session. The connection ends with the session."""
        try:
            async with self._open_live_session(step.model, step.settings) as session:
                ready.set_result(session)
                async with aclosing(session.stream_events()) as events:
                    async for event in events:
                        await self._run_steps(list(self._conversation.receive_event(event)))
            await self._close(SHUTDOWN_CLOSE)
        except ShuttingDownError:  # the last transcripts are sent; an error event would suggest that something was lost
            await self._close(SHUTDOWN_CLOSE)
        except EardrumError as error:
            await self._run_steps(self._conversation.fail(error))

    def _handle_session_end(self, task: asyncio.Task[None]) -> None:
        """End the connection with the error of its session."""
        if not task.cancelled() and (error := task.exception()) and not self._over.done():
            self._over.set_exception(error)

    async def _stop_session(self) -> None:
        if self._session_task:
            self._session_task.cancel()
            await asyncio.gather(self._session_task, return_exceptions=True)

    async def _close(self, last: CloseConnection) -> None:
        if not self._closing:
            self._closing = True
            await self._socket.close(last.code, last.reason)
            self._over.set_result(None)
