"""The runner's web service: `POST /transcribe` takes bytes and answers a line of JSON per event.

The request's wishes come in the header `x-eardrum-request` as JSON. Each line of the answer is an object
with one key: `opened`, `segment`, `summary` (the last line of a success) or `error` (of a failure). An answer
without either of the last two means that the runner died.

`POST /live` takes the messages of a live session (`eardrum.live`) and answers a line per event; its settings come in the header
`x-eardrum-live`, its last line is `ended` or `error`.

Hanging up cancels the request. While the runner is behind with reading it cannot see that at once, so a client that
has sent a name in `x-eardrum-id` does better to call `DELETE /transcribe/NAME`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.runner.batcher import Batcher
from eardrum.runner.listener import Listener
from eardrum.runner.live import exchange
from eardrum.runner.live.driver import Driver
from eardrum.runner.vad import Vad
from eardrum.runner.windows import Cutting
from eardrum.types import Capabilities, Event, Opened, Priority, Request, Segment, Task

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class RunnerApp:
    """The ASGI application around one loaded model."""

    def __init__(self, batcher: Batcher, vad: Vad, capabilities: Capabilities, *, max_audio_s: float):
        self._batcher = batcher
        self._vad = vad
        self._capabilities = capabilities
        self._max_audio_s = max_audio_s
        self._named: dict[str, asyncio.Future[None]] = {}
        self._over = asyncio.Event()
        self._app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/transcribe/{name}", self._cancel, methods=["DELETE"]),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Bytes and lines bypass the framework; everything else does not need to."""
        route = (scope["path"], scope["method"]) if scope["type"] == "http" else None
        if route == ("/transcribe", "POST"):
            await self._in_lines(self._transcribe(scope, receive, send), send)
        elif route == ("/live", "POST"):
            await self._in_lines(self._live(scope, receive, send), send)
        else:
            await self._app(scope, receive, send)

    def end(self) -> None:
        """The process ends: so do live sessions, which may rest for hours; requests may be answered yet."""
        self._over.set()

    async def _health(self, _: HttpRequest) -> Response:
        return JSONResponse(
            {
                "status": "ok",
                "capabilities": self._capabilities.to_json(),
                "batch": self._batcher.batch,
                "windows": self._batcher.decoded,
            }
        )

    async def _cancel(self, request: HttpRequest) -> Response:
        if writing := self._named.get(request.path_params["name"]):
            writing.cancel()
        return Response(status_code=204)

    async def _in_lines(self, answer: Awaitable[None], send: Send) -> None:
        """Answer in lines of JSON, the last of which is the error if there was one."""
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")],
            }
        )
        try:
            await answer
        except EardrumError as error:
            await send(_line({"error": error.to_json()}))
        except Exception as error:
            log.exception("A request failed")
            await send(_line({"error": EardrumError(f"The model failed on this audio: {error}").to_json()}))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _transcribe(self, scope: Scope, receive: Receive, send: Send) -> None:
        listener = Listener(
            _request(scope),
            batcher=self._batcher,
            vad=self._vad,
            cutting=Cutting.of(self._capabilities),
            max_seconds=self._max_audio_s,
        )
        await self._answer(listener, _header(scope, b"x-eardrum-id"), receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        driver = Driver(
            exchange.settings_of(_header(scope, b"x-eardrum-live")),
            batcher=self._batcher,
            vad=self._vad,
            capabilities=self._capabilities,
            max_seconds=self._max_audio_s,
        )
        await exchange.run(driver, receive, send, self._over)

    async def _answer(self, listener: Listener, name: str, receive: Receive, send: Send) -> None:
        """Send events while bytes come in; stop as soon as the other side is gone or says so."""

        async def write() -> None:
            async with aclosing(listener.events()) as events:
                async for event in events:
                    await send(_line({_name(event): event.to_json()}))

        writing = asyncio.ensure_future(write())
        feeding = asyncio.ensure_future(_feed(listener, receive))
        feeding.add_done_callback(lambda _: writing.cancel())  # it only ends when the client hangs up
        if name:
            self._named[name] = writing
        try:
            await asyncio.wait([writing])
            if not writing.cancelled():
                writing.result()
        finally:
            self._named.pop(name, None)
            feeding.cancel()
            writing.cancel()
            await asyncio.wait([feeding, writing])


async def _feed(listener: Listener, receive: Receive) -> None:
    while (message := await receive())["type"] == "http.request":
        await listener.inlet.feed(message.get("body", b""))
        if not message.get("more_body", False):
            listener.inlet.finish()


def _request(scope: Scope) -> Request:
    try:
        wishes = json.loads(_header(scope, b"x-eardrum-request") or "{}")
        wishes |= {
            "task": Task(wishes.get("task", Task.TRANSCRIBE)),
            "priority": Priority(wishes.get("priority", Priority.INTERACTIVE)),
            "hotwords": tuple(wishes.get("hotwords", ())),
        }
        return Request.from_json(wishes)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidRequestError(f"The header x-eardrum-request is not a request in JSON: {error}") from error


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _name(event: Event) -> str:
    return "opened" if isinstance(event, Opened) else "segment" if isinstance(event, Segment) else "summary"


def _line(data: dict[str, Any]) -> dict[str, Any]:
    return {"type": "http.response.body", "body": json.dumps(data).encode() + b"\n", "more_body": True}
