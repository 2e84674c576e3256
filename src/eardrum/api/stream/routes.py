"""WS `/v1/audio/transcriptions/stream`."""

from __future__ import annotations

from urllib.parse import parse_qsl

from eardrum.api.asgi import App, Receive, Scope, Send
from eardrum.api.sockets import Socket, closing
from eardrum.api.stream.config import Config
from eardrum.api.stream.conversation import Conversation
from eardrum.api.stream.messages import AUDIO_BYTES, Worded
from eardrum.errors import EardrumError, MethodNotAllowedError
from eardrum.gateway.service import Service

PATH = "/v1/audio/transcriptions/stream"


class Stream:
    """The edge."""

    def __init__(self, service: Service, worded: Worded):
        self._service = service
        self._worded = worded

    def route(self, scope: Scope) -> App | None:
        """What serves this request, if it is for this route."""
        if scope["path"] != PATH:
            return None
        return self._socket if scope["type"] == "websocket" else self._not_allowed

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        stall_s = self._service.settings.limits.stall_seconds
        async with Socket(scope, receive, send, over=self._service.events.over, stall_s=stall_s, largest=AUDIO_BYTES) as socket:
            conversation = Conversation(self._service, socket, scope, self._worded)
            try:
                query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
                await conversation.run(Config().changed(dict(query)))
            except EardrumError as error:
                await conversation.fail(error)
                await socket.close(closing(error), error.message)

    async def _not_allowed(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise MethodNotAllowedError(f"{PATH} is a WebSocket: connect to it with ws:// (docs/reference/live.md shows how).")
