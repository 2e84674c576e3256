"""What the server and the models said: once, or as they say it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.endless import Write, endless
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.logs import Log
from eardrum.gateway.service import Service

SERVER, MODELS = "proxy", "upstream"
"""Names of the server's log and of the log of all models. Any other name is a model's."""

PLAIN = "text/plain; charset=utf-8"


class History:
    """The lines that are known."""

    def __init__(self, service: Service):
        self._service = service

    async def of_server(self, _: Request) -> Response:
        """The server's."""
        return PlainTextResponse(text(self._service.logs.server.lines()).encode(errors="replace"))

    async def of_name(self, request: Request) -> Response:
        """A model's, or of what else has a log."""
        return PlainTextResponse(text(_log(self._service, request.path_params["name"]).lines()).encode(errors="replace"))


class Stream:
    """The lines that are known and those that come, as an ASGI application."""

    def __init__(self, service: Service):
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one follower."""
        request = Request(scope)
        log = _log(self._service, request.path_params.get("name", SERVER))

        async def tell(write: Write) -> None:
            async with aclosing(log.follow(history="no-history" not in request.query_params)) as news:
                async for lines in news:
                    await write(text(lines).encode(errors="replace"))

        await endless(self._service, scope, receive, send, PLAIN, tell)


def _log(service: Service, name: str) -> Log:
    if name in (SERVER, MODELS):
        return service.logs.server if name == SERVER else service.logs.models
    model = service.find(name)
    if model.absent:  # names of what could be fetched are without number
        raise ModelNotFoundError(service.catalog.how_to_fetch(model))
    return service.logs.of(model.id)


def text(lines: Sequence[str]) -> str:
    """Each line with its end."""
    return "".join(f"{line}\n" for line in lines)
