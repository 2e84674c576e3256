"""A client of a server with OpenAI's API: transcripts and answers as they are made, speech, and the list of models.

Only the names and shapes that all such servers share are needed. What Eardrum gives beyond them is used where it is there: times
of segments in the last event of a streamed transcript, and the modalities of models.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from msgspec import Struct
from pydantic import ValidationError

from eardrum import bounded_json, tls
from eardrum.aiohttp_import import aiohttp
from eardrum.errors import EardrumError
from eardrum.openai_replies import SseDecoder, UpstreamReply
from eardrum.openai_transcripts import UpstreamTranscript
from eardrum.text import append_text
from eardrum.transcription import Segment

CONNECT_TIMEOUT_S = 20.0

SILENCE_TIMEOUT_S = 900.0
"""Seconds without a byte from the server. It may have to load a model first; /stop ends the wait."""

MAX_SPEECH_BYTES = 45 << 20
"""Largest speech that is read: Telegram takes 50 MB."""

END_OF_STREAM = "[DONE]"

ChatMessage = dict[str, Any]
"""A message of a chat in OpenAI's shape."""


class ServerRefusalError(EardrumError):
    """The server refused a request, failed, or cannot be reached; the message is for the person who asked."""

    def __init__(self, message: str, *, http_status: int = 0):
        super().__init__(message)
        self.http_status = http_status
        """The status of the answer, 0 if there is none."""


class TranscriptProgress(Struct, frozen=True):
    """A transcript as far as it is decoded."""

    text: str
    segments: tuple[Segment, ...] = ()
    """The segments of the finished transcript; empty if the server tells no times."""


class ListedModel(Struct, frozen=True):
    """A model that the server lists."""

    id: str
    aliases: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    """`text`, `image`, `audio`, as far as the server tells."""
    outputs: tuple[str, ...] = ()


class ServerApi:
    """Talks to the server.

    Args:
        address: its address, with or without `/v1`; HTTP without a scheme.
        key: its API key, if it has any.
        certificate: a PEM file to trust in addition to the system's authorities.

    Raises:
        ConfigError: the file holds no certificate.
    """

    def __init__(self, address: str, key: str = "", certificate: Path | None = None):
        self._address = ("" if "://" in address else "http://") + address.rstrip("/").removesuffix("/v1")
        context = tls.create_client_context(certificate) if certificate else tls.get_client_context()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_TIMEOUT_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def transcribe(
        self, audio: AsyncIterable[bytes], name: str, *, model: str, language: str = ""
    ) -> AsyncGenerator[TranscriptProgress, None]:
        """Send a recording as it arrives, and yield its transcript as it grows. The last one is complete.

        Raises:
            ServerRefusalError: the server refused, failed, or broke off in the middle.
        """
        form = aiohttp.FormData({"model": model, "response_format": "json", "stream": "true"})
        if language:
            form.add_field("language", language)
        form.add_field("file", audio, filename=name, content_type="application/octet-stream")
        reader = TranscriptReader()
        async with aclosing(self._stream("/v1/audio/transcriptions", data=form)) as events:
            async for data in events:
                if progress := reader.read_event(data):
                    yield progress
        yield reader.finish()

    async def chat(self, model: str, messages: Sequence[ChatMessage]) -> AsyncGenerator[str, None]:
        """Ask a language model, and yield its answer piece by piece.

        Raises:
            ServerRefusalError: as above.
        """
        body = {"model": model, "messages": list(messages), "stream": True}
        is_complete = False
        async with aclosing(self._stream("/v1/chat/completions", json=body)) as events:
            async for data in events:
                if data == END_OF_STREAM:
                    is_complete = True
                    continue
                choice = _get_first_choice(_parse_event(data))
                part = choice.get("delta") or choice.get("message") or {}
                is_complete = is_complete or "message" in choice or bool(choice.get("finish_reason"))
                if isinstance(part, dict) and isinstance(content := part.get("content"), str) and content:
                    yield content
        if not is_complete:
            raise _build_break_off_error()

    async def speak(self, text: str, *, model: str, voice: str, format: str) -> bytes:
        """Return a text as speech in an audio format: opus (in Ogg), mp3 and others.

        Raises:
            ServerRefusalError: as above.
        """
        body = {"model": model, "voice": voice, "input": text, "response_format": format}
        speech = bytearray()
        async with self._request("POST", "/v1/audio/speech", json=body) as response:
            async for piece in response.content.iter_any():
                speech += piece
                if len(speech) > MAX_SPEECH_BYTES:
                    raise ServerRefusalError("The server's speech is longer than Telegram takes.")
        if not speech:
            raise ServerRefusalError("The server answered with no speech.")
        return bytes(speech)

    async def list_models(self) -> list[ListedModel]:
        """Return the server's models.

        Raises:
            ServerRefusalError: as above, also of a server without such a list.
        """
        async with self._request("GET", "/v1/models") as response:
            body = _parse_event(await response.text())
        return [_parse_model(item) for item in _find_list(body, "data", "models") if isinstance(item.get("id"), str)]

    async def has_model(self, name: str) -> bool:
        """Whether the server knows a model by this name, which may be an alias that it does not list.

        Raises:
            ServerRefusalError: it does not tell.
        """
        try:
            async with self._request("GET", f"/v1/models/{quote(name)}"):
                return True
        except ServerRefusalError as error:
            if error.http_status == 404:
                return False
            raise

    async def list_voices(self) -> list[str]:
        """Return the names of the server's voices. The route is a convention of servers for speech, not OpenAI's.

        Raises:
            ServerRefusalError: as above, also of a server without such a list.
        """
        async with self._request("GET", "/v1/audio/voices") as response:
            body = _parse_event(await response.text())
        voices = body.get("voices") or body.get("data") or []
        named = (voice.get("id") or voice.get("name") if isinstance(voice, dict) else voice for voice in voices)
        return [voice for voice in named if isinstance(voice, str)]

    async def _stream(self, path: str, **content: Any) -> AsyncGenerator[str, None]:
        """Send a request and yield the data of the answer's events, or the whole body of a server that streams none."""
        async with self._request("POST", path, **content) as response:
            if response.content_type != "text/event-stream":
                yield await response.text(errors="replace")
                return
            decoder = SseDecoder()
            async for piece in response.content.iter_any():
                for data in decoder.feed(piece):
                    yield data
            for data in decoder.flush():
                yield data

    @asynccontextmanager
    async def _request(self, method: str, path: str, **content: Any) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        try:
            async with self._session.request(method, self._address + path, **content) as response:
                if not response.ok:
                    raise _build_refusal(path, response.status, response.headers, await response.read())
                yield response
        except TimeoutError as error:
            raise ServerRefusalError("The server did not answer in time.") from error
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ServerRefusalError(f"The server cannot be reached, or broke off: {reason}.") from error


class TranscriptReader:
    """Reads a streamed transcript in the shapes that servers have: OpenAI's events, chat chunks (vLLM), a text for each segment
    (speaches), or no stream at all but one transcript."""

    def __init__(self) -> None:
        self._progress = TranscriptProgress("")
        self._is_complete = False

    def read_event(self, data: str) -> TranscriptProgress | None:
        """Read one event; returns the transcript if it has grown.

        Raises:
            ServerRefusalError: the event is an error, or is not JSON.
        """
        if data == END_OF_STREAM:
            self._is_complete = True
            return None
        event = _parse_event(data)
        before = self._progress
        match event.get("type"):
            case "transcript.text.delta":
                self._grow(before.text + str(event.get("delta", "")), is_complete=False)
            case "transcript.text.done":
                self._progress, self._is_complete = _parse_transcript(event), True
            case None if "choices" in event:
                choice = _get_first_choice(event)
                delta = choice.get("delta") or {}
                self._grow(before.text + str(delta.get("content") or ""), is_complete=bool(choice.get("finish_reason")))
            case None:
                found = _parse_transcript(event)
                segments = (*before.segments, *found.segments)
                self._progress, self._is_complete = TranscriptProgress(append_text(before.text, found.text), segments), True
        return self._progress if self._progress != before else None

    def finish(self) -> TranscriptProgress:
        """Return the whole transcript, without spaces around it.

        Raises:
            ServerRefusalError: the stream ended in the middle.
        """
        if not self._is_complete:
            raise _build_break_off_error()
        return TranscriptProgress(self._progress.text.strip(), self._progress.segments)

    def _grow(self, text: str, *, is_complete: bool) -> None:
        self._progress, self._is_complete = TranscriptProgress(text), is_complete


def _parse_transcript(event: dict[str, Any]) -> TranscriptProgress:
    try:
        found = UpstreamTranscript.model_validate(event)
    except ValidationError:
        raise ServerRefusalError("The server answered with something that is no transcript.") from None
    timed = [segment.end for segment in found.segments or () if segment.start is not None and segment.end is not None]
    end = found.estimate_duration(max(timed, default=0.0))
    segments = found.to_segments((0.0, end), end) if timed else ()
    return TranscriptProgress(found.text.strip(), tuple(segments))


def _parse_event(data: str) -> dict[str, Any]:
    """Parse a JSON object that is no error.

    Raises:
        ServerRefusalError: it is an error, or no JSON object.
    """
    try:
        event = bounded_json.parse_upstream_json(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise ServerRefusalError("The server answered with something that is not JSON: is its address right?")
    if event.get("error") or event.get("type") == "error":
        raise ServerRefusalError(UpstreamReply("", 200, {}, json.dumps(event).encode()).message)
    return event


def _get_first_choice(event: dict[str, Any]) -> dict[str, Any]:
    choices = event.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else {}
    return first if isinstance(first, dict) else {}


def _find_list(body: dict[str, Any], *keys: str) -> list[dict[str, Any]]:
    found: list[Any] = next((body[key] for key in keys if isinstance(body.get(key), list)), [])
    return [item for item in found if isinstance(item, dict)]


def _parse_model(item: dict[str, Any]) -> ListedModel:
    architecture = item.get("architecture")
    kinds = architecture if isinstance(architecture, dict) else {}
    inputs, outputs, aliases = kinds.get("input_modalities"), kinds.get("output_modalities"), item.get("aliases")
    return ListedModel(item["id"], *(tuple(map(str, names or ())) for names in (aliases, inputs, outputs)))


def _build_refusal(path: str, status: int, headers: Any, body: bytes) -> ServerRefusalError:
    reply = UpstreamReply(path, status, headers, body)
    message = reply.message if isinstance(reply.json, dict) else f"The server answered {status}: {reply.message}"
    if status in (401, 403):
        message = f"The server refuses the bot ({status}): start it with a --key that may do this."
    return ServerRefusalError(message, http_status=status)


def _build_break_off_error() -> ServerRefusalError:
    return ServerRefusalError("The server broke off in the middle of the answer.")
