"""One exchange with a client: a JSON object comes in, one goes out, or lines of them. Raw ASGI: lines go out one by one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

from eardrum import json_text
from eardrum.api import header_values
from eardrum.api.access import record
from eardrum.api.asgi import Receive, Scope, Send, header
from eardrum.api.json_body import opened, received
from eardrum.api.ollama.refusals import body, refusal
from eardrum.api.whole_text import check_whole
from eardrum.config import Limits
from eardrum.errors import EardrumError, InvalidRequestError

JSON = [(b"content-type", b"application/json; charset=utf-8")]
LINES = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


class Reply:
    """The answer on its way."""

    def __init__(self, scope: Scope, send: Send):
        self.record = record(scope)
        self.authorization = header(scope, b"authorization")
        """What the client shows as its right to be here; empty if nothing."""
        self.ignored: tuple[str, ...] = ()
        """Fields and options that have no effect, named in the answer."""
        self._scope = scope
        self._send = send
        self._streaming = False

    @property
    def begun(self) -> bool:
        """Whether something of it was sent."""
        return self._streaming

    async def whole(self, data: dict[str, Any] | None) -> None:
        """One object is all of it, or nothing is."""
        content = b"" if data is None else _json(data)
        await self._send({"type": "http.response.start", "status": 200, "headers": [*JSON, _length(content), *self._unused]})
        await self._send({"type": "http.response.body", "body": content, "more_body": False})

    async def line(self, data: dict[str, Any], *, last: bool = False) -> None:
        """One more line."""
        if not self._streaming:
            self._streaming = True
            await self._send({"type": "http.response.start", "status": 200, "headers": [*LINES, *self._unused]})
        await self._send({"type": "http.response.body", "body": _json(data) + b"\n", "more_body": not last})

    @property
    def _unused(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-eardrum-ignored", header_values.listed(self.ignored).encode())] if self.ignored else []

    async def refuse(self, error: EardrumError) -> None:
        """End with an error: as the answer, or, once that has begun, as its last line."""
        self.record.note = error.message
        if self._streaming:
            await self.line(body(error), last=True)
            return
        response = refusal(error)
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await self._send({"type": "http.response.body", "body": response.body, "more_body": False})


Answer = Callable[[dict[str, Any], Reply], Coroutine[Any, Any, None]]


class Endpoint:
    """An ASGI application around a function that answers. When the client leaves, that is cancelled."""

    def __init__(self, limits: Limits, answer: Answer):
        self._limits = limits
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        reply = Reply(scope, send)
        try:
            upload = opened(scope, receive, self._limits)
            wish = _object(await received(scope, upload, self._limits))
            await _while(upload.until_gone(), self._answer(wish, reply))
        except EardrumError as error:
            await reply.refuse(error)


def _object(data: bytes) -> dict[str, Any]:
    """The body, which is JSON whatever its content type says.

    Raises:
        InvalidRequestError: it is not, or not an object.
    """
    if not data.strip():
        raise InvalidRequestError("missing request body")
    try:
        found = json_text.parsed(data, parse_constant=_no_number)
    except ValueError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}.") from None
    if not isinstance(found, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    check_whole(data, found)
    return found


def _no_number(name: str) -> NoReturn:
    """What Python takes for a number and JSON does not."""
    raise ValueError(f"{name} is no number")


async def _while(gone: Awaitable[Any], work: Coroutine[Any, Any, None]) -> None:
    """Do the work unless, or until, the client is gone.

    Raises:
        ClientGoneError: it is.
    """
    watching, working = asyncio.ensure_future(gone), asyncio.ensure_future(work)
    try:
        await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
        await (working if working.done() else watching)
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.wait({watching, working})
        for task in (working, watching):
            if not task.cancelled():
                task.exception()  # seen; asyncio would otherwise complain of an error nobody asked for


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _length(content: bytes) -> tuple[bytes, bytes]:
    return b"content-length", str(len(content)).encode()
