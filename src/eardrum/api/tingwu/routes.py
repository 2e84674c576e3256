"""WS `/ws/realtime`."""

from __future__ import annotations

from urllib.parse import parse_qs

from eardrum.api.asgi import App, Receive, Scope, Send
from eardrum.api.sockets import Socket, closing
from eardrum.api.tingwu.conversation import Conversation
from eardrum.api.tingwu.messages import LARGEST
from eardrum.errors import EardrumError, MethodNotAllowedError
from eardrum.gateway.service import Service

PATH = "/ws/realtime"


class TingWu:
    """The edge."""

    def __init__(self, service: Service):
        self._service = service

    def route(self, scope: Scope) -> App | None:
        """What serves this request, if it is for this route."""
        if scope["path"] != PATH:
            return None
        return self._socket if scope["type"] == "websocket" else self._not_allowed

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        model, language = (query.get(name, [""])[-1] for name in ("model", "language"))
        stall_s = self._service.settings.limits.stall_seconds
        async with Socket(scope, receive, send, over=self._service.events.over, stall_s=stall_s, largest=LARGEST) as socket:
            conversation = Conversation(self._service, socket, scope, model=model, language=language)
            try:
                await conversation.run()
            except EardrumError as error:
                await conversation.warn(error)
                await socket.close(closing(error), error.message)

    async def _not_allowed(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise MethodNotAllowedError(f"{PATH} is a WebSocket: connect to it with ws:// (docs/reference/live.md shows how).")
