"""Upstreams: the ways to a model's server. A runner and an external server offer the same interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Literal

from eardrum.errors import UnsupportedFeatureError
from eardrum.gateway.spool import AudioSource
from eardrum.gateway.upstreams.http_client import HeaderList, OutgoingRequest, UpstreamResponse
from eardrum.live import LiveCommand, LiveEvent, SessionSettings
from eardrum.speech import SpeechEvent, SpeechRequest
from eardrum.transcription import TranscriptionEvent, TranscriptionRequest

if TYPE_CHECKING:
    import aiohttp  # costs 0.1 s, and the catalog needs this package without it


class Upstream(ABC):
    """The way to one model's server. Every upstream transcribes; it refuses what its server has no interface for."""

    @abstractmethod
    def transcribe(self, request: TranscriptionRequest, audio: AudioSource) -> AsyncGenerator[TranscriptionEvent, None]:
        """Send the audio as it comes in and yield events as they arrive. Closing the iterator hangs up.

        Raises:
            RunnerCrashedError: the connection ended before the answer did.
            EardrumError: the server's own error.
        """

    def stream_live(
        self, settings: SessionSettings, messages: AsyncIterator[bytes | LiveCommand]
    ) -> AsyncGenerator[LiveEvent, None]:
        """Run a live session: send audio and commands, and yield events up to `SessionEnded`. Closing the iterator hangs up.

        Args:
            settings: the settings at its start.
            messages: audio and commands. Only as many are taken as the server accepts; the session's end stops the iteration.

        Raises:
            RunnerCrashedError: the connection ended in the middle.
            EardrumError: the server ended the session with this error.
        """
        raise UnsupportedFeatureError("This model's server takes whole recordings only.", param="model")

    def speak(self, request: SpeechRequest, text: str | AsyncIterator[str]) -> AsyncGenerator[SpeechEvent, None]:
        """Send the text, which may still arrive, and yield the audio as it comes. Closing the iterator hangs up.

        Raises:
            RunnerCrashedError: the connection ended before the answer did.
            EardrumError: the server's own error.
        """
        raise UnsupportedFeatureError("This model does not speak.", param="model")

    async def send_request(self, request: OutgoingRequest) -> UpstreamResponse:
        """Send an HTTP request and return the response once its head is here. Read it to its end, or release it.

        Raises:
            UpstreamUnreachableError: nothing answers at the address.
            UpstreamDiedError: the connection ended before the response.
            UpstreamTimeoutError: the response did not begin in time.
            Exception: the error that reading the body raised.
        """
        raise UnsupportedFeatureError("This model has no HTTP server.", param="model")

    async def connect_websocket(
        self, path: str, headers: HeaderList, subprotocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse[Literal[True]]:
        """Open a WebSocket to the server.

        Raises:
            UpstreamDiedError, UpstreamTimeoutError: as `send_request`.
            UpstreamError: the server refuses the WebSocket.
        """
        raise UnsupportedFeatureError("This model has no HTTP server.", param="model")

    @abstractmethod
    async def close(self) -> None:
        """Close all connections."""
