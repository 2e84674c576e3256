"""The upstream for an external HTTP server: a command's, a peer's, or any address."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Literal

from multidict import CIMultiDict
from yarl import URL

from eardrum import tls, tracing
from eardrum.aiohttp_import import aiohttp
from eardrum.config.llama_swap import UpstreamTimeouts
from eardrum.errors import (
    InvalidRequestError,
    UpstreamDiedError,
    UpstreamError,
    UpstreamHungUpError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
    build_shortage_error,
)
from eardrum.gateway.spool import AudioSource
from eardrum.gateway.upstreams import Upstream
from eardrum.gateway.upstreams.http_client import (
    BodyStream,
    ConnectionPool,
    HeaderList,
    OutgoingRequest,
    UpstreamResponse,
    create_socket,
)
from eardrum.gateway.upstreams.speech import UpstreamSynthesizer
from eardrum.gateway.upstreams.transcription import TranscriptionResponse, UpstreamTranscriber
from eardrum.gateway.upstreams.transcription_request import RequestStrategy, TranscriptionForm
from eardrum.request_ids import RAW_REQUEST_ID_HEADER, get_request_id
from eardrum.speech import SpeechEvent, SpeechRequest
from eardrum.transcription import TranscriptionEvent, TranscriptionRequest

CREDENTIAL_HEADERS = (b"authorization", b"x-api-key")
AUTOMATIC_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
"""Headers that aiohttp adds by default. A proxy sends only those of its client."""

MAX_MESSAGE_BYTES = 64 << 20
"""Largest WebSocket message."""

BODY_METHODS = ("POST", "PUT", "PATCH")
UNSENDABLE = re.compile(r"[^\x21-\x7e]")


class ExternalUpstream(Upstream):
    """The way to an external server at `address`, a URL such as `http://127.0.0.1:5800`.

    Connections are reused. `localhost` is tried on IPv4 and IPv6. `key` replaces the credentials that the client sent. `model`
    is the server's name for its model, `strategy` how it is asked for transcripts.
    """

    def __init__(
        self,
        address: str,
        timeouts: UpstreamTimeouts | None = None,
        *,
        key: str = "",
        model: str = "",
        strategy: RequestStrategy | None = None,
    ):
        timeouts = timeouts or UpstreamTimeouts()
        url = URL(address.rstrip("/"), encoded=True)
        self.address = str(url.with_user(None))
        self._host = (url.host_port_subcomponent or "").encode("latin-1")
        self._root = url.raw_path.rstrip("/")
        self._credentials = _build_credentials(url, key)
        self._response_timeout = timeouts.response_header or None
        self._pool = ConnectionPool(self.address, timeouts)
        self._session: aiohttp.ClientSession | None = None
        self._keepalive = timeouts.keepalive
        self._is_encrypted, self._connect_timeout = url.scheme == "https", timeouts.connect or None
        secrets = tuple(value.decode().rpartition(" ")[2] for _, value in self._credentials)
        self._transcriber = UpstreamTranscriber(
            self._post_form, self.address, model, strategy or RequestStrategy.from_options({}), secrets
        )
        self._synthesizer = UpstreamSynthesizer(self.send_request, self.address, model)

    @property
    def session(self) -> aiohttp.ClientSession:
        """The session for WebSockets and readiness checks. All else goes over `ConnectionPool`, which needs no aiohttp."""
        if not self._session:
            self._session = self._create_session()
        return self._session

    def _create_session(self) -> aiohttp.ClientSession:
        from eardrum.gateway.upstreams.resolvers import LocalhostResolver  # noqa: PLC0415 -- see there

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                resolver=LocalhostResolver(),
                ssl=tls.get_client_context() if self._is_encrypted else True,
                socket_factory=partial(create_socket, self._keepalive),
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=AUTOMATIC_HEADERS,
            auto_decompress=False,
        )

    def send_request(self, request: OutgoingRequest) -> Coroutine[None, None, UpstreamResponse]:
        """Send the request and return the answer once its head is here. The caller reads it to its end, or releases it.

        Raises:
            UpstreamUnreachableError: the address does not answer.
            UpstreamDiedError: it broke off before it answered.
            UpstreamTimeoutError: it took longer to answer than it may.
            Exception: what reading the body raised.
        """
        return self._send_traced(request) if tracing.is_tracing() else self._send_once(request)

    async def connect_websocket(
        self, path: str, headers: HeaderList, subprotocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse[Literal[True]]:
        """A WebSocket to it.

        Raises:
            UpstreamDiedError, UpstreamTimeoutError: as `send`.
            UpstreamError: it refuses.
        """
        try:
            async with asyncio.timeout(self._response_timeout):
                return await self.session.ws_connect(
                    URL(self.address + path, encoded=True),
                    headers=CIMultiDict(_decode_headers(self._build_headers(_add_trace_headers(headers)))),
                    protocols=subprotocols,
                    max_msg_size=MAX_MESSAGE_BYTES,
                )
        except aiohttp.WSServerHandshakeError as error:
            raise UpstreamError(f"{self.address} refuses the WebSocket with {error.status}: {error.message}.") from error
        except aiohttp.ClientConnectorError as error:
            if known := build_shortage_error(error.os_error, f"to reach {self.address}"):
                raise known from error
            raise UpstreamUnreachableError(f"{self.address} cannot be reached: {error.os_error.strerror}.") from error
        except TimeoutError as error:
            raise self._make_timeout_error() from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamDiedError(f"{self.address} broke off before it answered: {error}.") from error

    def transcribe(self, request: TranscriptionRequest, audio: AudioSource) -> AsyncGenerator[TranscriptionEvent, None]:
        """Send the audio as it comes and yield events as they come, as a runner does. See `UpstreamTranscriber.transcribe`."""
        return self._transcriber.transcribe(request, audio)

    def speak(self, request: SpeechRequest, text: str | AsyncIterator[str]) -> AsyncGenerator[SpeechEvent, None]:
        """Send the text in parts and yield the audio as it comes. See `UpstreamSynthesizer.speak`."""
        return self._synthesizer.speak(request, text)

    def use_model_name(self, model: str) -> None:
        """Use this name of the server's model from the next request on. Forwarded requests hold the name themselves."""
        self._transcriber.model = self._synthesizer.model = model

    async def close(self) -> None:
        """Close all connections."""
        self._pool.close()
        if self._session:
            await self._session.close()

    async def _send_traced(self, request: OutgoingRequest) -> UpstreamResponse:
        url = URL(self.address)
        attributes: dict[str, tracing.AttributeValue] = {
            "http.request.method": request.method,
            "server.address": url.host or "",
            "server.port": url.port or 0,
        }
        with tracing.SpanScope(request.method, "CLIENT", attributes) as span:
            response = await self._send_once(replace(request, headers=_add_trace_headers(request.headers)))
            if span:
                span.set_attributes({"http.response.status_code": response.status})
            return response

    async def _send_once(self, request: OutgoingRequest) -> UpstreamResponse:
        head, body = self._build_head(request), request.body
        connection = await self._pool.acquire_connection()
        chunked = isinstance(body, BodyStream) and body.size is None
        no_body = request.method == "HEAD"
        try:
            return await connection.send_request(head, body, chunked=chunked, no_body=no_body, within_s=self._response_timeout)
        except TimeoutError:
            raise self._make_timeout_error() from None
        except UpstreamHungUpError:
            self._pool.drop_kept()  # the next attempt takes a new connection
            raise

    def _build_head(self, request: OutgoingRequest) -> bytes:
        """The request up to its body."""
        if UNSENDABLE.search(request.path):
            raise InvalidRequestError("The path has characters in it that must be escaped.")
        lines = [f"{request.method} {self._root}{request.path} HTTP/1.1".encode("latin-1")]
        lines += [name + b": " + value for name, value in self._build_headers(request.headers)]
        return b"\r\n".join((*lines, *_build_length_header(request), b"", b""))

    @asynccontextmanager
    async def _post_form(self, path: str, form: TranscriptionForm) -> AsyncIterator[TranscriptionResponse]:
        headers = [(b"accept", b"application/json, text/event-stream"), (b"content-type", form.content_type.encode("latin-1"))]
        response = await self.send_request(OutgoingRequest("POST", path, headers, BodyStream(aiter(form), form.size)))
        try:
            told = dict(_decode_headers(response.raw_headers))
            yield TranscriptionResponse(response.status, told, iterate_body(response))
        finally:
            response.release()  # closes the connection if the answer was not read to its end

    def _build_headers(self, headers: HeaderList) -> HeaderList:
        if self._credentials:
            headers = [*(item for item in headers if item[0] not in CREDENTIAL_HEADERS), *self._credentials]
        sent: list[tuple[bytes, bytes]] = []
        has_host = False
        for item in headers:
            if item[0] != RAW_REQUEST_ID_HEADER:
                sent.append(item)
                has_host = has_host or item[0] == b"host"
        if id := get_request_id():
            sent.append((RAW_REQUEST_ID_HEADER, id.encode()))
        return sent if has_host else [(b"host", self._host), *sent]

    def _make_timeout_error(self) -> UpstreamTimeoutError:
        return UpstreamTimeoutError(
            f"{self.address} did not begin to answer within {self._response_timeout:g} s (timeouts.response_header)."
        )


async def iterate_body(answer: UpstreamResponse) -> AsyncIterator[bytes]:
    """The body of an answer as it comes.

    Raises:
        UpstreamDiedError: it ends in the middle.
    """
    while chunk := await answer.read_chunk():
        yield chunk


def _add_trace_headers(headers: HeaderList) -> HeaderList:
    """Replace the client's place in its trace by that of the current span, if traces are sent."""
    trace = tracing.build_trace_headers()
    if not trace:
        return headers
    others = [item for item in headers if item[0].decode("latin-1") not in tracing.TRACE_HEADERS]
    return [*others, *((name.encode(), value.encode()) for name, value in trace.items())]


def _decode_headers(headers: HeaderList) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _build_length_header(request: OutgoingRequest) -> list[bytes]:
    """The header that says how long the body is, if there is one."""
    body = request.body
    if isinstance(body, BodyStream):
        return [b"transfer-encoding: chunked" if body.size is None else b"content-length: %d" % body.size]
    if body is None:
        return [b"content-length: 0"] if request.method in BODY_METHODS else []
    return [b"content-length: %d" % len(body)]


def _build_credentials(url: URL, key: str) -> HeaderList:
    if key:
        return [(b"authorization", b"Bearer " + key.encode()), (b"x-api-key", key.encode())]
    if url.user is not None:
        basic = base64.b64encode(f"{url.user}:{url.password or ''}".encode())
        return [(b"authorization", b"Basic " + basic)]
    return []
