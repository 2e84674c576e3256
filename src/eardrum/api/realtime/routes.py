"""The routes of the Realtime API: a WebSocket, and keys for it. Raw ASGI: audio goes through here."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NoReturn
from urllib.parse import parse_qs

from starlette.responses import JSONResponse

from eardrum.api.access import record
from eardrum.api.asgi import App, Receive, Scope, Send, header
from eardrum.api.auth import SUBPROTOCOL, key_of
from eardrum.api.realtime import rest
from eardrum.api.realtime.config import RATES, Config, pcm
from eardrum.api.realtime.conversation import LONGEST, Conversation
from eardrum.api.realtime.line import Line
from eardrum.api.realtime.secrets import PREFIX, Secrets
from eardrum.api.sockets import Socket
from eardrum.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotOfferedError,
    UnauthorizedError,
)
from eardrum.gateway.live import Session, live, named
from eardrum.gateway.service import Service
from eardrum.live import Settings
from eardrum.types import Request

SOCKET = "/v1/realtime"
TALKING = (SOCKET, "/v1/realtime/calls", "/v1/realtime/sessions", "/v1/realtime/translations/client_secrets")
"""What OpenAI has besides: conversations, over WebRTC too."""

BETA_HEADER, BETA_SUBPROTOCOL = "realtime=v1", "openai-beta.realtime-v1"


class Realtime:
    """The endpoints. WebSockets for models that other servers serve are left to who forwards."""

    def __init__(self, service: Service):
        self._service = service
        self._secrets = Secrets()

    def opens(self, scope: Scope, key: str) -> bool:
        """Whether the key is a client secret, and this what it is for."""
        return scope["type"] == "websocket" and scope["path"] == SOCKET and bool(self._secrets.find(key, time.time()))

    def invited(self, scope: Scope) -> bool:
        """Whether a page shows a client secret that somebody with a key has had made for it: no other page could."""
        return bool(self._service.settings.apiKeys) and self.opens(scope, key_of(scope))

    def route(self, scope: Scope) -> App | None:
        """What serves this request, if it is for one of these routes."""
        path = scope["path"]
        if scope["type"] == "websocket":
            return self._socket if path == SOCKET and not self._is_foreign(scope) else None
        if path in rest.ANSWERS:
            return self._posted if scope["method"] == "POST" else self._not_allowed
        return self._talking if path in TALKING else None

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        conversation = self._conversation(scope)

        @asynccontextmanager
        async def listen(id: str, settings: Settings) -> AsyncIterator[Session]:
            record(scope).model = id
            async with live(self._service, self._service.catalog.find(id), settings) as session:
                try:
                    yield session
                finally:
                    record(scope).about(session.model, session.summary)

        over, stall_s = self._service.events.over, self._service.settings.limits.stall_seconds
        async with Socket(
            scope, receive, send, over=over, stall_s=stall_s, largest=LONGEST, subprotocol=_subprotocol(scope)
        ) as socket:
            await Line(conversation, listen, socket).run()

    def _conversation(self, scope: Scope) -> Conversation:
        """What is known of it before anything is said.

        Raises:
            UnauthorizedError: the client secret has expired.
            InvalidRequestError: the query makes no sense.
        """
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode("latin-1")).items()}
        config = self._config()
        key = key_of(scope)
        if secret := self._secrets.find(key, time.time()):
            config = secret.config
        elif key.startswith(PREFIX) and key not in self._service.settings.apiKeys:
            raise UnauthorizedError("The client secret has expired, or is none of this server's: ask for another one.")
        transcribes = query.get("intent") == "transcription"
        if not transcribes and query.get("intent"):
            raise InvalidRequestError("intent must be transcription: this server does not talk.", param="intent")
        if rate := query.get("rate"):
            config = replace(config, format=pcm(_rate(rate)), pcm_rate=_rate(rate))
        beta = header(scope, b"openai-beta") == BETA_HEADER or BETA_SUBPROTOCOL in scope["subprotocols"]
        return Conversation(
            secrets.token_hex(10),
            self._admit,
            config if config.model else replace(config, model=query.get("model", "").strip()),
            beta=beta,
            certain=transcribes or bool(config.model),
        )

    def _config(self) -> Config:
        rate = self._service.settings.realtime_rate
        return Config(format=pcm(rate), pcm_rate=rate)

    def _admit(self, name: str, request: Request) -> tuple[str, Request]:
        model = named(self._service, name, request)
        return model.id, self._service.prepared(model, request)

    def _is_foreign(self, scope: Scope) -> bool:
        """Whether the model of the query is another server's, to which the socket goes as it is."""
        name = parse_qs(scope["query_string"].decode("latin-1")).get("model", [""])[-1].strip()
        if not name or key_of(scope).startswith(PREFIX):
            return False
        try:
            return self._service.find_for_live(name).foreign
        except ModelNotFoundError:
            return False

    async def _posted(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await rest.parsed(scope, receive, self._service.settings.limits)
        answer = rest.ANSWERS[scope["path"]](body, self._secrets, self._admit, self._config(), time.time())
        await JSONResponse(answer)(scope, receive, send)

    async def _not_allowed(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:
        raise MethodNotAllowedError(f"{scope['path']} takes POST, not {scope['method']}.")

    async def _talking(self, scope: Scope, receive: Receive, send: Send) -> NoReturn:
        raise NotOfferedError(
            f"This server transcribes and does not talk, and has no WebRTC: open a WebSocket at {SOCKET}?intent=transcription."
        )


def _subprotocol(scope: Scope) -> str | None:
    """One that the client offers, as browsers insist on; not the one that is a key, if there is another."""
    offered: list[str] = scope["subprotocols"]
    return min(offered, key=lambda name: (name != "realtime", name.startswith(SUBPROTOCOL)), default=None)


def _rate(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not RATES[0] <= int(text) <= RATES[1]:
        raise InvalidRequestError(f"rate must be a number of Hz from {RATES[0]} to {RATES[1]}, not {text[:20]!r}.", param="rate")
    return int(text)
