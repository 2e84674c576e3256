"""The upstream for a runner of our own, on a unix socket: transcriptions, and live sessions.

In a live session audio and commands go up while events come down, over one HTTP exchange.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import aiohttp

from eardrum.errors import EardrumError, RunnerCrashedError, build_shortage_error, error_from_json
from eardrum.gateway.spool import AudioSource
from eardrum.live import ClearCommand, CommitCommand, ConfigureCommand, FinishCommand, LiveEvent, SessionEnded, SessionSettings
from eardrum.runner_protocol import decode_event, encode_audio, encode_command
from eardrum.transcription import AudioOpened, Segment, TranscriptionEvent, TranscriptionRequest, TranscriptionSummary

EVENT_TYPES: dict[str, Any] = {"opened": AudioOpened, "segment": Segment, "summary": TranscriptionSummary}
CANCEL_TIMEOUT = aiohttp.ClientTimeout(total=2)
MAX_LINE_BYTES = 1 << 20
"""Longest line of an answer that is read; a segment with all its words stays far below."""


class RunnerUpstream:
    """A runner's side of the wall."""

    def __init__(self, socket: str):
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=MAX_LINE_BYTES,
        )

    async def transcribe(self, request: TranscriptionRequest, audio: AudioSource) -> AsyncGenerator[TranscriptionEvent, None]:
        """Send the audio as it comes and yield events as they come. Closing the iterator hangs up.

        Raises:
            RunnerCrashedError: the connection ended before the answer did.
            EardrumError: what the runner answered.
        """
        name = uuid.uuid4().hex
        headers = {"x-eardrum-id": name, "x-eardrum-request": json.dumps(replace(request, extra=()).to_json())}
        ended = False
        try:
            async with self._session.post("http://runner/transcribe", data=audio.read(), headers=headers) as response:
                async for line in response.content:
                    ((kind, data),) = json.loads(line).items()
                    ended = kind in ("summary", "error")
                    if kind == "error":
                        raise error_from_json(data)
                    yield EVENT_TYPES[kind].from_json(data)
                    if ended:
                        return
        except (aiohttp.ClientError, ConnectionError) as error:
            raise make_connection_error(error) from error
        finally:
            if not ended:
                await self._cancel(name)
        raise RunnerCrashedError("The model's process ended in the middle of its answer.")

    def open_live(self, settings: SessionSettings) -> RunnerSession:
        """A live session; it begins when its events are asked for."""
        return RunnerSession(self._session, settings)

    async def _cancel(self, name: str) -> None:
        with suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with self._session.delete(f"http://runner/transcribe/{name}", timeout=CANCEL_TIMEOUT):
                pass

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


SEND_AHEAD_BYTES = 1 << 16
"""Bytes that may wait to be sent; whoever has more to say waits."""


def make_connection_error(error: aiohttp.ClientError | ConnectionError) -> EardrumError:
    """What it means that an exchange with a runner failed: mostly that the process is gone."""
    known = build_shortage_error(error, "to reach the model's process") if isinstance(error, OSError) else None
    return known or RunnerCrashedError(f"The connection to the model's process broke: {error}")


class LiveSessionProtocol(Protocol):
    """One stream of audio. `feed` and the commands belong to one task, `events` to another."""

    async def feed(self, audio: bytes) -> None:
        """Hand over the next bytes of audio, any number of them; waits while too many were not heard."""

    async def configure(self, settings: SessionSettings) -> None:
        """Go by other settings; answered by `Refused` where that cannot be."""

    async def commit(self) -> None:
        """End the utterance; answered by `Committed`, then `Final` or `Failed`, or by `Refused`."""

    async def clear(self) -> None:
        """Forget the utterance in progress; answered by `Cleared`."""

    async def finish(self) -> None:
        """No more audio comes; answered by the last finals and `Ended`, which ends `events`."""

    def stream_events(self) -> AsyncGenerator[LiveEvent, None]:
        """Events as they come, up to `Ended`.

        Raises:
            EardrumError: the session is over, and why.
        """


class RunnerSession:
    """One that ends with the runner's process."""

    def __init__(self, http: aiohttp.ClientSession, settings: SessionSettings):
        self._http = http
        self._settings = settings
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False
        """Nobody listens any more, and whoever reads the events knows why."""

    async def feed(self, audio: bytes) -> None:
        """Hand over the next bytes of audio, any number of them; waits while the runner is far behind."""
        await self._send_message(encode_audio(audio))

    async def configure(self, settings: SessionSettings) -> None:
        """Go by other settings; answered by `Refused` where that cannot be."""
        await self._send_message(encode_command(ConfigureCommand(settings)))

    async def commit(self) -> None:
        """End the utterance; answered by `Committed`, then `Final` or `Failed`, or by `Refused`."""
        await self._send_message(encode_command(CommitCommand()))

    async def clear(self) -> None:
        """Forget the utterance in progress; answered by `Cleared`."""
        await self._send_message(encode_command(ClearCommand()))

    async def finish(self) -> None:
        """No more audio comes; answered by the last finals and `Ended`, which ends `events`."""
        await self._send_message(encode_command(FinishCommand()))

    async def stream_events(self) -> AsyncGenerator[LiveEvent, None]:
        """Events as they come, up to `Ended`. Closing the iterator hangs up.

        Raises:
            RunnerCrashedError: the model's process died.
            EardrumError: the session is over, and why.
        """
        headers = {"x-eardrum-live": json.dumps(self._settings.to_json())}
        try:
            async with self._http.post("http://runner/live", data=self._stream_messages(), headers=headers) as response:
                async for line in response.content:
                    event = decode_event(line)
                    yield event
                    if isinstance(event, SessionEnded):
                        return
        except (aiohttp.ClientError, ConnectionError) as error:
            raise make_connection_error(error) from error
        finally:
            self.closed = True
            self._room.set()
            self._more.set()
        raise RunnerCrashedError("The model's process ended in the middle of a live session.")

    async def _send_message(self, message: bytes) -> None:
        if self.closed:
            return
        self._waiting.append(message)
        self._size += len(message)
        self._more.set()
        if self._size > SEND_AHEAD_BYTES:
            self._room.clear()
        await self._room.wait()

    async def _stream_messages(self) -> AsyncIterator[bytes]:
        """Never ends by itself: the exchange does, with the last event."""
        while not self.closed:
            await self._more.wait()
            self._more.clear()
            if self._waiting:
                piece = b"".join(self._waiting)
                self._waiting.clear()
                self._size = 0
                yield piece
                self._room.set()
