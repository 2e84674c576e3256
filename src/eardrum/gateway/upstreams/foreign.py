"""An HTTP server that serves a model and is not a runner of ours."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from multidict import CIMultiDict
from yarl import URL

from eardrum.config.llama_swap import Timeouts
from eardrum.errors import (
    InvalidRequestError,
    UpstreamDiedError,
    UpstreamError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    shortage,
)
from eardrum.gateway.spool import Source
from eardrum.gateway.upstreams.connection import Answer
from eardrum.gateway.upstreams.form import Form
from eardrum.gateway.upstreams.habits import Habits
from eardrum.gateway.upstreams.pool import LOCALHOST, Pool
from eardrum.gateway.upstreams.transcription import Answered, Transcription
from eardrum.types import Event, Request

Headers = Sequence[tuple[bytes, bytes]]
"""As they are sent. Names in lower case, in the order they came; a name may come twice."""

CREDENTIALS = (b"authorization", b"x-api-key")
AUTOMATIC = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
"""What aiohttp would add to a request that has none: a proxy says what its client said."""

MESSAGE = 64 << 20
"""Largest message of a WebSocket."""

WITH_BODY = ("POST", "PUT", "PATCH")
UNSENDABLE = re.compile(r"[^\x21-\x7e]")


class Stream:
    """A request's body that is sent on while it comes in. It can be read once.

    `size` is its length in bytes, None if nobody knows. `begun` tells whether any of it was taken.
    """

    def __init__(self, chunks: AsyncIterator[bytes], size: int | None):
        self.size = size
        self.begun = False
        self._chunks = chunks

    def __aiter__(self) -> AsyncIterator[bytes]:
        self.begun = True
        return self._chunks


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


class ForeignUpstream:
    """The way to it. `address` is its URL without a path of a route, such as `http://127.0.0.1:5800`.

    Connections are kept and used again. `localhost` is tried on IPv4 and IPv6, whichever the server listens on. `key` goes out
    in the place of whatever credentials the client sent. `model` is the name it has for its model, `known` how it transcribes.
    """

    def __init__(
        self, address: str, timeouts: Timeouts | None = None, *, key: str = "", model: str = "", known: Habits | None = None
    ):
        timeouts = timeouts or Timeouts()
        url = URL(address.rstrip("/"), encoded=True)
        self.address = str(url.with_user(None))
        self._host = (url.host_port_subcomponent or "").encode("latin-1")
        self._root = url.raw_path.rstrip("/")
        self._credentials = _credentials(url, key)
        self._answer_within = timeouts.responseHeader or None
        self._pool = Pool(self.address, timeouts)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, resolver=Resolver()),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeouts.connect or None),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=AUTOMATIC,
            auto_decompress=False,
        )
        """For WebSockets, and for whoever wants more than bytes."""
        secrets = tuple(value.decode().rpartition(" ")[2] for _, value in self._credentials)
        self._transcription = Transcription(self._answered, self.address, model, known or Habits.of({}), secrets)

    async def send(self, request: Outgoing) -> Answer:
        """Send the request and return the answer once its head is here. The caller reads it to its end, or releases it.

        Raises:
            UpstreamUnreachableError: nobody answers at the address.
            UpstreamDiedError: it broke off before it answered.
            UpstreamTimeoutError: it took longer to answer than it may.
            Exception: what reading the body raised.
        """
        if not self._answer_within:
            return await self._asked(request)
        try:
            async with asyncio.timeout(self._answer_within):
                return await self._asked(request)
        except TimeoutError:
            raise self._too_late() from None

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
                    headers=CIMultiDict(_decoded(self._headers(headers))),
                    protocols=subprotocols,
                    max_msg_size=MESSAGE,
                )
        except aiohttp.WSServerHandshakeError as error:
            raise UpstreamError(f"{self.address} refuses the WebSocket with {error.status}: {error.message}.") from error
        except aiohttp.ClientConnectorError as error:
            if known := shortage(error.os_error, f"to reach {self.address}"):
                raise known from error
            raise UpstreamUnreachableError(f"{self.address} cannot be reached: {error.os_error.strerror}.") from error
        except TimeoutError as error:
            raise self._too_late() from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamDiedError(f"{self.address} broke off before it answered: {error}.") from error

    def transcribe(self, request: Request, audio: Source) -> AsyncGenerator[Event, None]:
        """Send the audio as it comes and yield events as they come, as a runner does. See `Transcription.transcribe`."""
        return self._transcription.transcribe(request, audio)

    async def close(self) -> None:
        """Close all connections."""
        self._pool.close()
        await self.session.close()

    async def _asked(self, request: Outgoing) -> Answer:
        head, body = self._head(request), request.body
        connection = await self._pool.connection()
        chunked = isinstance(body, Stream) and body.size is None
        return await connection.ask(head, body, chunked=chunked, no_body=request.method == "HEAD")

    def _head(self, request: Outgoing) -> bytes:
        """The request up to its body."""
        if UNSENDABLE.search(request.path):
            raise InvalidRequestError("The path has characters in it that must be escaped.")
        lines = [f"{request.method} {self._root}{request.path} HTTP/1.1".encode("latin-1")]
        lines += [name + b": " + value for name, value in self._headers(request.headers)]
        return b"\r\n".join((*lines, *_length(request), b"", b""))

    @asynccontextmanager
    async def _answered(self, path: str, form: Form) -> AsyncIterator[Answered]:
        headers = [(b"accept", b"application/json, text/event-stream"), (b"content-type", form.content_type.encode("latin-1"))]
        response = await self.send(Outgoing("POST", path, headers, Stream(aiter(form), form.size)))
        try:
            told = dict(_decoded(response.raw_headers))
            yield Answered(response.status, told, chunks(response))
        finally:
            response.release()  # closes the connection if the answer was not read to its end

    def _headers(self, headers: Headers) -> Headers:
        if self._credentials:
            headers = [*(item for item in headers if item[0] not in CREDENTIALS), *self._credentials]
        return headers if any(name == b"host" for name, _ in headers) else [(b"host", self._host), *headers]

    def _too_late(self) -> UpstreamTimeoutError:
        return UpstreamTimeoutError(
            f"{self.address} did not begin to answer within {self._answer_within:g} s (timeouts.responseHeader)."
        )


async def chunks(answer: Answer) -> AsyncIterator[bytes]:
    """The body of an answer as it comes.

    Raises:
        UpstreamDiedError: it ends in the middle.
    """
    while chunk := await answer.next_chunk():
        yield chunk


def _decoded(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _length(request: Outgoing) -> list[bytes]:
    """The header that says how long the body is, if there is one."""
    body = request.body
    if isinstance(body, Stream):
        return [b"transfer-encoding: chunked" if body.size is None else b"content-length: %d" % body.size]
    if body is None:
        return [b"content-length: 0"] if request.method in WITH_BODY else []
    return [b"content-length: %d" % len(body)]


def _credentials(url: URL, key: str) -> Headers:
    if key:
        return [(b"authorization", b"Bearer " + key.encode()), (b"x-api-key", key.encode())]
    if url.user is not None:
        basic = base64.b64encode(f"{url.user}:{url.password or ''}".encode())
        return [(b"authorization", b"Basic " + basic)]
    return []


class Resolver(ThreadedResolver):
    """Knows that `localhost` is this machine on IPv4 and on IPv6, as `Pool` does."""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of a host."""
        if host != "localhost":
            return await super().resolve(host, port, family)
        families = (socket.AF_INET, socket.AF_INET6)
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in zip(families, LOCALHOST, strict=True)
            if family in (kind, socket.AF_UNSPEC)
        ]
