"""Speaks for the command line: in this process, or through a running server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from eardrum.api.openai.speech import SpeechForm, describe_voices, prepare_request
from eardrum.client import EardrumClient
from eardrum.config import Settings
from eardrum.gateway import speech
from eardrum.gateway.service import Service


class SpeechClient(Protocol):
    """Turns texts into speech."""

    async def list_voices(self) -> list[dict[str, Any]]:
        """Return the voices as `GET /v1/audio/voices` lists them."""
        ...

    def speak(self, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the audio for a body as `POST /v1/audio/speech` takes it.

        Raises:
            EardrumError: the text cannot be spoken; the message gives the reason.
        """
        ...


@asynccontextmanager
async def open_local_client(settings: Settings) -> AsyncIterator[SpeechClient]:
    """Speak in this process, with the gateway's service but without its port."""
    service = Service(settings)
    try:
        yield LocalSpeechClient(service)
    finally:
        await service.shutdown()


@asynccontextmanager
async def open_remote_client(address: str, key: str = "", certificate: Path | None = None) -> AsyncIterator[SpeechClient]:
    """Speak through a running server."""
    async with EardrumClient(address, key, certificate) as client:
        yield RemoteSpeechClient(client)


class LocalSpeechClient:
    """Speaks with the models of this machine."""

    def __init__(self, service: Service):
        self._service = service

    async def list_voices(self) -> list[dict[str, Any]]:
        """Return the voices of all models."""
        return describe_voices(speech.list_voice_models(self._service))

    async def speak(self, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the audio as it comes."""
        form = SpeechForm.parse(body)
        model = speech.find_voice_model(self._service, form.model, form.voice)
        request = await prepare_request(self._service, model, form)
        async with aclosing(speech.stream_speech(self._service, model, request, form.input)) as events:
            async for event in events:
                if isinstance(event, bytes):
                    yield event


class RemoteSpeechClient:
    """Speaks through a server."""

    def __init__(self, client: EardrumClient):
        self._client = client

    async def list_voices(self) -> list[dict[str, Any]]:
        """Return the voices of the server."""
        return await self._client.list_voices()

    def speak(self, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """Yield the audio as it comes."""
        return self._client.speak({name: value for name, value in body.items() if value})
