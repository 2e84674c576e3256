"""An HTTP server that serves a model and is not a runner of ours."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from multidict import CIMultiDict
from yarl import URL

from eardrum.config.llama_swap import Timeouts
from eardrum.errors import UpstreamDiedError, UpstreamError, UpstreamTimeoutError
from eardrum.gateway.form import Form
from eardrum.gateway.habits import Habits
from eardrum.gateway.spool import Source
from eardrum.gateway.transcription import Answered, Transcription
from eardrum.types import Event, Request

Headers = Sequence[tuple[str, str]]
"""Names in lower case, in the order they came; a name may come twice."""

CREDENTIALS = ("authorization", "x-api-key")
AUTOMATIC = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
"""What aiohttp would add to a request that has none: a proxy says what its client said."""

PIECE = 1 << 18
"""Bytes of a large body that are written at once."""

MESSAGE = 64 << 20
"""Largest message of a WebSocket."""

WHOLE = 1 << 20
"""Largest body that is written at once; a larger one would hold up the event loop."""


class Stream:
    """A request's body that is sent on while it comes in. It can be read once.

    `size` is its length in bytes, None if nobody knows. `begun` tells whether any of it was taken, `failure` what ended it
    early.
    """

    def __init__(self, chunks: AsyncIterator[bytes], size: int | None):
        self.size = size
        self.begun = False
        self.failure: Exception | None = None
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        try:
            async for chunk in self._chunks:
                yield chunk
        except Exception as error:
            self.failure = error
            raise


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request for an upstream. `path` begins with a slash and has the query in it, escaped as it is to be sent."""

    method: str
    path: str
    headers: Headers = ()
    body: bytes | Stream | None = field(default=None, repr=False)

    @property
    def repeatable(self) -> bool:
        """Whether it could be sent once more."""
        return not isinstance(self.body, Stream) or not self.body.begun


class Resolver(ThreadedResolver):
    """Knows that `localhost` is this machine on IPv4 and on IPv6, also where the system's table has only one of them."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of a host."""
        if host != "localhost":
            return await super().resolve(host, port, family)
        both = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
        flags = socket.AI_NUMERICHOST
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=flags)
            for kind, address in both
            if family in (kind, socket.AF_UNSPEC)
        ]


class ForeignUpstream:
    """The way to it. `address` is its URL without a path of a route, such as `http://127.0.0.1:5800`.

    Connections are kept and used again. `localhost` is tried on IPv6 and IPv4, whichever the server listens on. `key` goes out
    in the place of whatever credentials the client sent. `model` is the name it has for its model, `known` how it transcribes.
    """

    def __init__(
        self, address: str, timeouts: Timeouts | None = None, *, key: str = "", model: str = "", known: Habits | None = None
    ):
        timeouts = timeouts or Timeouts()
        url = URL(address.rstrip("/"), encoded=True)
        self.address = str(url.with_user(None))
        self._credentials = _credentials(url, key)
        self._answer_within = timeouts.responseHeader or None
        handshake = timeouts.tlsHandshake if url.scheme == "https" else 0.0
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                resolver=Resolver(),
                keepalive_timeout=timeouts.idleConn or None,
                socket_factory=_probing(timeouts.keepalive),
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect + handshake if timeouts.connect else None),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=AUTOMATIC,
            auto_decompress=False,
        )
        secrets = tuple(value.rpartition(" ")[2] for _, value in self._credentials)
        self._transcription = Transcription(self._answered, self.address, model, known or Habits.of({}), secrets)

    async def send(self, request: Outgoing) -> aiohttp.ClientResponse:
        """Send the request and return the answer once its head is here. The caller closes or reads it to its end.

        Raises:
            UpstreamDiedError: it cannot be reached, or broke off before it answered.
            UpstreamTimeoutError: it took longer to answer than it may.
            Exception: what reading the body raised.
        """
        try:
            if not self._answer_within:
                return await self._request(request)
            async with asyncio.timeout(self._answer_within):
                return await self._request(request)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            if isinstance(request.body, Stream) and request.body.failure:
                raise request.body.failure from None
            raise self._worded(error) from error

    async def connect(
        self, path: str, headers: Headers, subprotocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse[Literal[True]]:
        """A WebSocket to it.

        Raises:
            UpstreamDiedError, UpstreamTimeoutError: as `send`.
            UpstreamError: it does not want one.
        """
        try:
            async with asyncio.timeout(self._answer_within):
                return await self.session.ws_connect(
                    URL(self.address + path, encoded=True),
                    headers=CIMultiDict(self._headers(Outgoing("GET", path, headers))),
                    protocols=subprotocols,
                    max_msg_size=MESSAGE,
                )
        except aiohttp.WSServerHandshakeError as error:
            raise UpstreamError(f"{self.address} refuses the WebSocket with {error.status}: {error.message}.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._worded(error) from error

    def transcribe(self, request: Request, audio: Source) -> AsyncGenerator[Event, None]:
        """Send the audio as it comes and yield events as they come, as a runner does. See `Transcription.transcribe`."""
        return self._transcription.transcribe(request, audio)

    async def close(self) -> None:
        """Close all connections."""
        await self.session.close()

    def _request(self, request: Outgoing) -> Awaitable[aiohttp.ClientResponse]:
        return self.session.request(
            request.method,
            URL(self.address + request.path, encoded=True),
            headers=CIMultiDict(self._headers(request)),
            data=_payload(request.body),
            allow_redirects=False,
        )

    @asynccontextmanager
    async def _answered(self, path: str, form: Form) -> AsyncIterator[Answered]:
        headers = [("accept", "application/json, text/event-stream"), ("content-type", form.content_type)]
        response = await self.send(Outgoing("POST", path, headers, Stream(aiter(form), form.size)))
        try:
            yield Answered(response.status, response.headers, chunks(response))
        finally:
            response.release()  # closes the connection if the answer was not read to its end

    def _headers(self, request: Outgoing) -> Headers:
        headers = [*request.headers]
        if self._credentials:
            headers = [*(item for item in headers if item[0] not in CREDENTIALS), *self._credentials]
        body = request.body
        size = body.size if isinstance(body, Stream) else len(body) if body is not None else None
        if size is not None:
            headers.append(("content-length", str(size)))
        return headers

    def _worded(self, error: Exception) -> UpstreamDiedError | UpstreamTimeoutError:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamTimeoutError(f"{self.address} could not be reached in time (timeouts.connect).")
        if isinstance(error, TimeoutError):
            limit = f"{self._answer_within:g} s (timeouts.responseHeader)"
            return UpstreamTimeoutError(f"{self.address} did not begin to answer within {limit}.")
        if isinstance(error, aiohttp.ClientConnectorError):
            return UpstreamDiedError(f"{self.address} cannot be reached: {error.os_error.strerror or error.os_error}.")
        return UpstreamDiedError(f"{self.address} broke off before it answered: {_said(error)}.")


async def next_chunk(response: aiohttp.ClientResponse) -> bytes:
    """What has come of the body of an answer since the last call; empty at its end.

    Raises:
        UpstreamDiedError: it ends in the middle.
    """
    try:
        return await response.content.readany()
    except (aiohttp.ClientError, OSError) as error:
        raise UpstreamDiedError(f"{response.url.origin()} broke off in the middle of its answer: {_said(error)}.") from error


async def chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The body of an answer as it comes.

    Raises:
        UpstreamDiedError: it ends in the middle.
    """
    while chunk := await next_chunk(response):
        yield chunk


def _credentials(url: URL, key: str) -> Headers:
    if key:
        return [("authorization", f"Bearer {key}"), ("x-api-key", key)]
    if url.user is not None:
        basic = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
        return [("authorization", f"Basic {basic}")]
    return []


def _payload(body: bytes | Stream | None) -> Any:
    if isinstance(body, bytes) and len(body) > WHOLE:
        return _pieces(body)
    return aiter(body) if isinstance(body, Stream) else body


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), PIECE):
        yield body[at : at + PIECE]


def _probing(every_s: float) -> Any:
    """Makes sockets that ask every so many seconds whether the other side is still there; 0 never asks."""

    def make(address: Any) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        if every_s:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):  # not every system has both
                if option := getattr(socket, name, None):
                    made.setsockopt(socket.IPPROTO_TCP, option, max(1, int(every_s)))
        return made

    return make


def _said(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
