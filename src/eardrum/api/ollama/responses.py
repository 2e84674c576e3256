"""Reads a request's JSON object and sends the response: one object, lines of them, or an error in Ollama's shape.

Raw ASGI, because lines are sent one by one. In an error, `error` is a string and never an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from starlette.responses import JSONResponse, Response

from eardrum.api import asgi
from eardrum.api.asgi import Receive, Scope, Send, StreamedResponse, get_header, receive_disconnect
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.request_body import parse_object, receive_body
from eardrum.api.request_log import get_record
from eardrum.config import LimitSettings
from eardrum.errors import BusyError, EardrumError, InvalidRequestError, KeyLimitError, UpstreamError


class OllamaResponse:
    """Sends one response: an object, lines, or an error."""

    def __init__(self, scope: Scope, send: Send):
        self.record = get_record(scope)
        self.authorization = get_header(scope, b"authorization")
        """The client's `Authorization` header; empty without one."""
        self.ignored: tuple[str, ...] = ()
        """Fields and options without effect, listed in a response header."""
        self._scope = scope
        self._send = send
        self._stream = StreamedResponse(send, asgi.build_stream_headers("application/x-ndjson"))

    @property
    def has_begun(self) -> bool:
        """Whether a line has been sent."""
        return self._stream.has_begun

    async def send_object(self, data: dict[str, Any] | None) -> None:
        """Send the whole response: one object, or an empty body for None."""
        response = Response(b"" if data is None else _encode_json(data), media_type="application/json; charset=utf-8")
        response.raw_headers += self._ignored_header
        await response(self._scope, receive_disconnect, self._send)

    async def send_line(self, data: dict[str, Any], *, last: bool = False) -> None:
        """Send one line of a streamed response."""
        if not self.has_begun:
            self._stream.headers += self._ignored_header
        await self._stream.send(_encode_json(data) + b"\n", last=last)

    @property
    def _ignored_header(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-eardrum-ignored", asgi.format_names(self.ignored).encode())] if self.ignored else []

    async def send_error(self, error: EardrumError) -> None:
        """Send an error, as the response or as the last line of a stream."""
        self.record.note = error.message
        if self.has_begun:
            await self.send_line(build_error_body(error), last=True)
            return
        await build_error_response(error)(self._scope, receive_disconnect, self._send)


EndpointHandler = Callable[[dict[str, Any], OllamaResponse], Coroutine[Any, Any, None]]


class JsonEndpoint:
    """An ASGI application around a handler, which is cancelled when the client disconnects."""

    def __init__(self, limits: LimitSettings, answer: EndpointHandler):
        self._limits = limits
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        reply = OllamaResponse(scope, send)
        try:
            request = _parse_object(await receive_body(scope, receive, self._limits))
            async with DisconnectWatcher(scope, receive):
                await self._answer(request, reply)
        except EardrumError as error:
            await reply.send_error(error)


def _parse_object(data: bytes) -> dict[str, Any]:
    """Parse the body as a JSON object, with any content type.

    Raises:
        InvalidRequestError: the body is not a JSON object.
    """
    if not data.strip():
        raise InvalidRequestError("missing request body")
    return parse_object(data, parse_constant=_reject_constant)


def _reject_constant(name: str) -> NoReturn:
    """Reject NaN and Infinity, which Python parses and JSON does not allow."""
    raise ValueError(f"{name} is not a number")


def _encode_json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


BUSY_MESSAGE = "server busy, please try again.  maximum pending requests exceeded"

OLLAMA_PATHS = re.compile(
    r"/api/(version|tags|show|ps|chat|generate|embed|embeddings|pull|delete|copy|create|push|blobs/.*|me|status|experimental/.*)"
)
"""Paths of Ollama's API, including those that this server does not implement."""


CLIENT_ERRORS = (400, 413, 422)
"""Upstream statuses that blame the client's request. Their message is passed on without naming the upstream."""

MISLEADING_STATUSES = (404, 405, 500)
"""Upstream statuses that would mislead if passed on: the model exists, and this server has not failed."""


class UpstreamRefusedError(UpstreamError):
    """The server behind a model responded with an error status that is passed on to the client."""

    def __init__(self, message: str, status: int, retry_after: float | None):
        super().__init__(message, retry_after=retry_after)
        self.upstream_status = status


def make_upstream_error(model: str, status: int, text: str, retry_after: float | None = None) -> UpstreamError:
    """Make the error for an upstream's error response: the client's fault or the upstream's, by its status."""
    message = f"The server behind {model} answered {status}: {text}" if status else text
    if 400 <= status < 600 and status not in MISLEADING_STATUSES:
        return UpstreamRefusedError(text if status in CLIENT_ERRORS else message, status, retry_after)
    return UpstreamError(message, retry_after=retry_after)


def is_ollama_path(path: str) -> bool:
    """Whether errors at this path take Ollama's format."""
    return bool(OLLAMA_PATHS.fullmatch(path))


def build_error_body(error: EardrumError) -> dict[str, Any]:
    """Build the body of an error response, or the last line of a stream that failed."""
    return {"error": BUSY_MESSAGE if _is_busy(error) else error.message}


def build_error_response(error: EardrumError) -> Response:
    """Build the response for an error."""
    return JSONResponse(build_error_body(error), _get_status(error), asgi.build_error_headers(error))


def _get_status(error: EardrumError) -> int:
    if isinstance(error, UpstreamRefusedError):
        return error.upstream_status
    return 503 if _is_busy(error) else error.status


def _is_busy(error: EardrumError) -> bool:
    """Whether the server is busy. The limit of a key says nothing about the server, so its own message and status are sent."""
    return isinstance(error, BusyError) and not isinstance(error, KeyLimitError)
