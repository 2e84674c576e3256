"""The upstream for a runner, on a unix socket or on TCP: transcriptions, live sessions and speech."""

from __future__ import annotations

import json
import os
import uuid
from asyncio import IncompleteReadError
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace

from eardrum import tls, tracing
from eardrum.aiohttp_import import aiohttp
from eardrum.errors import (
    EardrumError,
    RunnerCrashedError,
    RunnerTokenError,
    RunnerUnavailableError,
    build_shortage_error,
    error_from_json,
)
from eardrum.gateway.spool import AudioSource
from eardrum.gateway.upstreams import Upstream
from eardrum.gateway.upstreams.http_client import create_socket
from eardrum.live import LiveCommand, LiveEvent, SessionEnded, SessionSettings, decode_event, encode_audio, encode_command
from eardrum.request_ids import REQUEST_ID_HEADER, get_request_id
from eardrum.runner_access import GATEWAY_IDLE_S
from eardrum.speakers import SpeakerRequest, SpeakerTurns, VoicePrint
from eardrum.speech import SpeechBegun, SpeechEvent, SpeechRequest, SpeechSummary
from eardrum.transcription import (
    AudioOpened,
    Segment,
    SpeakerOptions,
    TranscriptionEvent,
    TranscriptionRequest,
    TranscriptionSummary,
    WindowCheckpoint,
)

EVENT_TYPES: dict[str, Any] = {
    "opened": AudioOpened,
    "segment": Segment,
    "checkpoint": WindowCheckpoint,
    "summary": TranscriptionSummary,
}
CONNECT_S = 2.0
"""Longest time for a connection to another machine, which may have lost its power."""
KEEPALIVE_S = 15.0
"""A connection to another machine that is silent for so long is tried. One that a firewall forgot would be waited for for ever,
although new ones, such as those of health checks, work."""
CANCEL_TIMEOUT_S = 2.0
READ_BUFFER_BYTES = 1 << 20
"""Bytes of an answer that are read ahead."""
MAX_LINE_BYTES = 16 << 20
"""Longest line of an answer that is read. The text of the longest utterance of a live session, with times and probabilities for
every word, stays far below."""


class RunnerUpstream(Upstream):
    """The way to a runner: over its unix socket, or by TCP to `address`, a URL, with the token that the runner requires."""

    def __init__(self, socket: str = "", *, address: str = "", token: str = ""):
        self._address = address.rstrip("/") or "http://runner"
        ssl = tls.get_client_context() if address.startswith("https:") else True
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket, limit=0, keepalive_timeout=GATEWAY_IDLE_S)
            if socket
            else aiohttp.TCPConnector(
                limit=0, keepalive_timeout=GATEWAY_IDLE_S, ssl=ssl, socket_factory=partial(create_socket, KEEPALIVE_S)
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None if socket else CONNECT_S),
            headers={"authorization": f"Bearer {token}"} if token else {},
            read_bufsize=READ_BUFFER_BYTES,
        )

    async def fetch_health(self) -> dict[str, Any]:
        """Ask the runner for its state, as in `GET /health`.

        Raises:
            RunnerUnavailableError: it cannot be reached or refuses.
            ValueError: it answers with something else.
        """
        try:
            async with self._session.get(f"{self._address}/health") as response:
                await self._check_status(response)
                health = json.loads(await response.read())
        except (aiohttp.ClientError, ConnectionError) as error:
            raise make_connection_error(error) from error
        if not isinstance(health, dict):
            raise ValueError("not an object")
        return health

    async def _check_status(self, response: aiohttp.ClientResponse) -> None:
        """Check that the runner took the request.

        Raises:
            RunnerUnavailableError: it did not, or another program answered.
        """
        if response.status == 200:
            return
        if response.status == 401:
            raise RunnerTokenError(f"The runner at {self._address} requires another token.")
        reasons = {404: "no runner answers there", 503: "it is about to end"}
        reason = reasons.get(response.status, f"it answers with status {response.status}")
        raise RunnerUnavailableError(f"The runner at {self._address} does not take the request: {reason}.")

    async def transcribe(self, request: TranscriptionRequest, audio: AudioSource) -> AsyncGenerator[TranscriptionEvent, None]:
        """Send the audio in the request's body; the response is a line of JSON per event."""
        name = uuid.uuid4().hex
        request = replace(request, extra=(), speaker_options=SpeakerOptions())
        headers = {"x-eardrum-id": name, "x-eardrum-request": json.dumps(request.to_json())} | _build_common_headers()
        ended = False
        try:
            async with self._session.post(f"{self._address}/transcribe", data=audio.read(), headers=headers) as response:
                await self._check_status(response)
                while line := await _read_line(response.content):
                    ((kind, data),) = json.loads(line).items()
                    ended = kind in ("summary", "error")
                    if kind == "error":
                        raise error_from_json(data)
                    yield EVENT_TYPES[kind].from_json(data)
                    if ended:
                        return
        except (aiohttp.ClientError, ConnectionError) as error:
            failure = make_connection_error(error)
            ended = isinstance(failure, RunnerUnavailableError)  # then there is nothing to cancel
            raise failure from error
        finally:
            if not ended:
                await self._cancel(name)
        raise RunnerCrashedError("The model's process ended in the middle of its answer.")

    async def stream_live(
        self, settings: SessionSettings, messages: AsyncIterator[bytes | LiveCommand]
    ) -> AsyncGenerator[LiveEvent, None]:
        """Run a live session over one HTTP exchange: the request's body is `messages`, the response a line per event."""
        headers = {"x-eardrum-live": json.dumps(settings.to_json())} | _build_common_headers()
        body = _encode_messages(messages)
        try:
            async with self._session.post(f"{self._address}/live", data=body, headers=headers) as response:
                await self._check_status(response)
                while line := await _read_line(response.content):
                    event = decode_event(line)
                    yield event
                    if isinstance(event, SessionEnded):
                        return
        except (aiohttp.ClientError, ConnectionError) as error:
            raise make_connection_error(error) from error
        raise RunnerCrashedError("The model's process ended in the middle of a live session.")

    async def speak(self, request: SpeechRequest, text: str | AsyncIterator[str]) -> AsyncGenerator[SpeechEvent, None]:
        """Send the text in the request's body, as it comes; the response is a sequence of messages (`runner/speech_app.py`)."""
        headers = {"x-eardrum-speech": json.dumps(request.to_json())} | _build_common_headers()
        body = text.encode() if isinstance(text, str) else _encode_text(text)
        try:
            async with self._session.post(f"{self._address}/speak", data=body, headers=headers) as response:
                await self._check_status(response)
                while line := await _read_line(response.content):
                    ((kind, data),) = json.loads(line).items()
                    if kind == "error":
                        raise error_from_json(data)
                    if kind == "audio":
                        yield await response.content.readexactly(data)
                    elif kind == "begun":
                        yield SpeechBegun.from_json(data)
                    else:
                        yield SpeechSummary.from_json(data)
                        return
        except (aiohttp.ClientError, ConnectionError, IncompleteReadError) as error:
            raise make_connection_error(error) from error
        raise RunnerCrashedError("The model's process ended in the middle of its answer.")

    async def find_turns(self, request: SpeakerRequest, audio: AudioSource) -> SpeakerTurns:
        """Find the turns of the speakers in a recording, with the runner for speaker labels.

        Raises:
            RunnerCrashedError: the process ended.
            EardrumError: the audio cannot be decoded.
        """
        headers = {"x-eardrum-request": json.dumps(request.to_json())}
        return SpeakerTurns.from_json(await self._send_audio("/speakers", audio.read(), headers))

    async def find_voice(self, recording: bytes) -> VoicePrint:
        """Find the voice in the recording of one speaker. Raises what `find_turns` does."""
        return VoicePrint.from_json(await self._send_audio("/voice", recording, {}))

    async def _send_audio(self, path: str, audio: AsyncIterator[bytes] | bytes, headers: dict[str, str]) -> dict[str, Any]:
        """Send audio and return the result, which is the last line of the answer."""
        name = uuid.uuid4().hex
        headers |= {"x-eardrum-id": name} | _build_common_headers()
        result: dict[str, Any] = {}
        try:
            async with self._session.post(f"{self._address}{path}", data=audio, headers=headers) as response:
                result = json.loads(await response.read() or b"{}")
        except (aiohttp.ClientError, ConnectionError) as error:
            raise make_connection_error(error) from error
        finally:
            if not result:
                await self._cancel(name)
        if "error" in result:
            raise error_from_json(result["error"])
        if "result" not in result:
            raise RunnerCrashedError("The model's process ended in the middle of its answer.")
        found: dict[str, Any] = result["result"]
        return found

    async def _cancel(self, name: str) -> None:
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            timeout = aiohttp.ClientTimeout(total=CANCEL_TIMEOUT_S)
            async with self._session.delete(f"{self._address}/transcribe/{name}", timeout=timeout):
                pass

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


async def _read_line(content: aiohttp.StreamReader) -> bytes:
    """Read a line; empty at the end. Without a limit given, aiohttp takes twice `READ_BUFFER_BYTES`."""
    return await content.readline(max_line_length=MAX_LINE_BYTES)


def _build_common_headers() -> dict[str, str]:
    """Build the headers by which logs and traces find a request again."""
    return {REQUEST_ID_HEADER: get_request_id(), **tracing.build_trace_headers()}


def make_connection_error(error: aiohttp.ClientError | ConnectionError | IncompleteReadError) -> EardrumError:
    """Make the error of a failed exchange with a runner, which mostly means that the process is gone."""
    known = build_shortage_error(error, "to reach the model's process") if isinstance(error, OSError) else None
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return RunnerUnavailableError(f"The runner cannot be reached within {CONNECT_S:g} s.")
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(
        error, aiohttp.client_exceptions.UnixClientConnectorError
    ):
        return known or RunnerUnavailableError(f"The runner cannot be reached: {_explain_system_error(error.os_error)}.")
    return known or RunnerCrashedError(f"The connection to the model's process broke: {error}")


def _explain_system_error(error: OSError) -> str:
    """Return the system's words: asyncio's own repeat the address."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


async def _encode_messages(messages: AsyncIterator[bytes | LiveCommand]) -> AsyncIterator[bytes]:
    async for message in messages:
        yield encode_audio(message) if isinstance(message, bytes) else encode_command(message)


async def _encode_text(text: AsyncIterator[str]) -> AsyncIterator[bytes]:
    async for piece in text:
        yield piece.encode()
