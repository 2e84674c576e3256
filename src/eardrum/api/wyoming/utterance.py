"""Transcribes one utterance, from its first audio to its transcript.

It goes through a live session, or as a WAV upload to models of commands and other servers, which take no live audio. Also
lists the models for `describe`, and chooses the one for an utterance.
"""

from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from eardrum import __version__
from eardrum.api.wyoming.protocol import SampleConverter, SampleFormat, TranscribeRequest, TranscriptEncoder, WyomingEvent
from eardrum.errors import EardrumError, TooLargeError
from eardrum.gateway.live import ResumableSession, open_session
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes.lease import make_session_shutdown_error
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.languages import LANGUAGE_NAMES
from eardrum.live import AudioFormat, FinalTranscript, LiveEvent, SessionEnded, SessionSettings
from eardrum.text import join_texts
from eardrum.transcription import TranscriptionRequest

log = logging.getLogger("eardrum.access")

EventSender = Callable[[WyomingEvent], Awaitable[None]]


class WyomingUtterance:
    """Audio goes in as it comes; `transcribe` runs beside that and tells the client."""

    def __init__(self, service: Service, ask: TranscribeRequest, shape: SampleFormat, *, client: str):
        self.format = shape
        self.complete = False
        """Whether the client has said that no more audio comes."""
        self._service = service
        self._request = ask
        self._samples = SampleConverter(shape)
        self._queue = AudioQueue()
        self._has_fed_all = False  # the session has all of it
        self._facts: dict[str, object] = {"protocol": "wyoming", "client": client}

    async def feed(self, audio: bytes) -> None:
        """The next bytes, any number of them; waits while too many wait for the model."""
        await self._queue.put(self._samples.feed(audio))

    def stop(self) -> None:
        """That was all of it."""
        self.complete = True
        self._queue.end()

    async def transcribe(self, tell: EventSender) -> None:
        """Tell the client what was said.

        Raises:
            EardrumError: that cannot be known, and why.
            OSError: the client is gone.
        """
        began, note = time.monotonic(), "given up"
        try:
            await self._transcribe(tell)
            note = ""
        except EardrumError as error:
            note = error.message
            raise
        except ConnectionAbortedError as error:
            note = str(error)
            raise
        finally:
            self._log_utterance(time.monotonic() - began, note)

    async def _transcribe(self, tell: EventSender) -> None:
        model = choose_model(self._service, self._request)
        self._facts["model"] = model.id
        request = self._service.prepare_request(model, self._request.request)
        streaming = self._service.settings.wyoming.streaming
        telling = TranscriptEncoder(request.language, streaming=streaming)
        if model.is_external:
            text_alone = replace(request, times=False)
            for event in await transcribe_recording(
                self._service, model, text_alone, self.format.live_format, self._queue.iterate_pieces()
            ):
                await self._send_event(event, telling, tell)
            return
        settings = SessionSettings(request, self.format.live_format, endpointing=None, partials=streaming)
        async with open_session(self._service, model, settings) as session:
            ways = [
                asyncio.create_task(self._send_events(session, telling, tell)),
                asyncio.create_task(self._feed_session(session)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                if ways[1].done():
                    ways[1].result()
                await ways[0]
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)

    async def _feed_session(self, session: ResumableSession) -> None:
        async for audio in self._queue.iterate_pieces():
            await session.feed(audio)
        self._has_fed_all = not session.is_finished  # else the server ends, and has not heard it all
        await session.finish()

    async def _send_events(self, session: ResumableSession, telling: TranscriptEncoder, tell: EventSender) -> None:
        async with aclosing(session.stream_events()) as events:
            async for event in events:
                if isinstance(event, SessionEnded) and not self._has_fed_all:
                    raise make_session_shutdown_error()  # half a command may mean something else than the whole
                await self._send_event(event, telling, tell)

    async def _send_event(self, event: LiveEvent, telling: TranscriptEncoder, tell: EventSender) -> None:
        if isinstance(event, SessionEnded):
            self._facts |= {"audio_s": round(event.duration, 2), "decode_s": round(event.decode_s, 3)}
        for told in telling.feed(event):
            await tell(told)

    def _log_utterance(self, seconds: float, note: str) -> None:
        facts = {**self._facts, "total_s": round(seconds, 3)} | ({"note": note} if note else {})
        line = " ".join(f"{name}={json.dumps(value) if ' ' in str(value) else value}" for name, value in facts.items())
        log.info("%s", line, extra={"facts": facts})


PROGRAM_NAME = "eardrum"
"""Home Assistant makes the entity's name of it, and remembers it."""

OTHER_SERVICES = ("tts", "handle", "intent", "wake", "mic", "snd")
"""Other kinds of services, of which there are none here; clients want to be told."""


def list_models(service: Service) -> list[Model]:
    """The models for speech that can be used at once, the default first."""
    service.catalog.rescan_if_changed()
    usable = [
        m
        for m in service.catalog
        if m.is_speech_model and m.is_runnable and not m.needs_download and not (m.entry and m.entry.unlisted)
    ]
    default = service.catalog.default.id
    return sorted(usable, key=lambda model: model.id != default)


def choose_model(service: Service, ask: TranscribeRequest) -> Model:
    """The model for an utterance.

    Home Assistant offers the languages of all models together and then names the language only.

    Raises:
        ModelNotFoundError: there is none of this name.
    """
    return service.find_model("" if ask.name == PROGRAM_NAME else ask.name, ask.request)


def build_info(models: Iterable[Model], *, streaming: bool) -> WyomingEvent:
    """The answer to `describe`: one program with all models."""
    program = {
        **_describe_artifact(PROGRAM_NAME, "Speech to text with every model of this server", "Eardrum", __version__),
        "models": [_describe_model(model) for model in models],
        "supports_transcript_streaming": streaming,
        "requires_external_vad": True,
    }
    return WyomingEvent("info", {"asr": [program], **{kind: [] for kind in OTHER_SERVICES}})


def _describe_model(model: Model) -> dict[str, Any]:
    description = f"{model.repository or model.id} ({model.engine})"
    return {
        **_describe_artifact(model.id, description, model.repository.partition("/")[0] or model.engine),
        "languages": _list_languages(model),
    }


def _list_languages(model: Model) -> list[str]:
    return list(model.capabilities.languages or LANGUAGE_NAMES)


def _describe_artifact(name: str, description: str, maker: str, version: str | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "attribution": {"name": maker, "url": ""},
        "installed": True,
        "description": description,
        "version": version,
    }


WAV_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
"""Of a WAV file, up to its samples."""
SAMPLE_BYTES = 2
"""Of a sample."""
MAX_WAV_BYTES = 0xFFFFFFFF - WAV_HEADER.size
"""Its lengths have 32 bits."""


class WavRecording:
    """16-bit samples in a spool, read as a WAV file."""

    def __init__(self, spool: Spool, format: AudioFormat):
        self._spool = spool
        self._format = format

    async def read(self) -> AsyncIterator[bytes]:
        """The file from its start. The spool must be finished: the header tells its length."""
        yield build_wav_header(self._format, self._spool.size)
        async for piece in self._spool.read():
            yield piece


def build_wav_header(format: AudioFormat, size: int) -> bytes:
    """What stands before so many bytes of samples."""
    frame = SAMPLE_BYTES * format.channels
    kind = (b"fmt ", 16, 1, format.channels, format.rate, format.rate * frame, frame, 8 * SAMPLE_BYTES)
    return WAV_HEADER.pack(b"RIFF", WAV_HEADER.size - 8 + size, b"WAVE", *kind, b"data", size)


async def transcribe_recording(
    service: Service, model: Model, request: TranscriptionRequest, format: AudioFormat, audio: AsyncIterator[bytes]
) -> list[LiveEvent]:
    """What a live session would say at its end.

    Raises:
        TooLargeError: there is more audio than an upload may have.
        EardrumError: anything else that went wrong.
    """
    most = min(service.settings.limits.upload_bytes, MAX_WAV_BYTES)
    with service.create_spool() as spool:
        async for piece in audio:
            await spool.write(piece)
            if spool.size > most:
                raise TooLargeError(f"The utterance is larger than limits.upload_bytes allows ({most} bytes).")
        spool.finish()
        transcript = await service.transcribe(model, request, WavRecording(spool, format))
    text, summary = join_texts(segment.text for segment in transcript.segments), transcript.summary
    return [
        FinalTranscript(1, 0.0, summary.duration, text, tuple(transcript.segments), summary.language),
        SessionEnded(summary.duration, summary.language, summary.decode_s),
    ]


MAX_QUEUED_BYTES = 1 << 20
"""Bytes that may wait, besides those that wait in the session. Then the client is not read until some are gone."""


class AudioQueue:
    """A bounded stretch of bytes: one task puts, another takes."""

    def __init__(self, most: int = MAX_QUEUED_BYTES) -> None:
        self._most = most
        self._buffer = bytearray()
        self._ended = False
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, audio: bytes) -> None:
        """Add these bytes, and wait while there are too many."""
        if self._ended:
            return  # nobody takes them
        self._buffer += audio
        self._more.set()
        if len(self._buffer) > self._most:
            self._room.clear()
        await self._room.wait()

    async def iterate_pieces(self) -> AsyncIterator[bytes]:
        """What there is, as soon as there is any, until the end."""
        while self._buffer or not self._ended:
            if not self._buffer:
                self._more.clear()
                await self._more.wait()
                continue
            taken = bytes(self._buffer)
            self._buffer.clear()
            self._room.set()
            yield taken

    def end(self) -> None:
        """No more comes."""
        self._ended = True
        self._more.set()
        self._room.set()
