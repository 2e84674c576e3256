"""Transcribes one utterance, from its first audio to its transcript.

The audio goes through a live session, or as a WAV upload to external models, which take no live audio. Also lists the
models for `describe`, and chooses the model of an utterance.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from msgspec.structs import replace

from eardrum import __version__, tracing
from eardrum.api.wyoming.protocol import (
    PROGRAM_NAME,
    SampleConverter,
    SampleFormat,
    TranscribeRequest,
    TranscriptEncoder,
    WyomingEvent,
    describe_artifact,
)
from eardrum.concurrency import Channel, run_alongside
from eardrum.errors import EardrumError, TooLargeError
from eardrum.gateway.live import ResumableSession, open_session
from eardrum.gateway.metrics import CURRENT_MODEL_WAIT, ModelWait
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.places import make_session_shutdown_error
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.languages import LANGUAGE_NAMES
from eardrum.live import AudioFormat, FinalTranscript, LiveEvent, SessionEnded, SessionSettings
from eardrum.request_ids import create_request_id, set_request_id
from eardrum.text import join_texts
from eardrum.transcription import TranscriptionRequest
from eardrum.wav import MAX_WAV_SIZE, WAV_HEADER, build_wav_header

log = logging.getLogger("eardrum.access")

MAX_QUEUED_BYTES = 1 << 20
"""Bytes to queue in addition to the session's own queue. Beyond that, reading from the client pauses."""

PIECE_OVERHEAD_BYTES = 100
"""Approximate memory of a piece of audio besides its bytes."""

EventSender = Callable[[WyomingEvent], Awaitable[None]]


class WyomingUtterance:
    """One utterance: `feed` takes the audio while `transcribe` runs and sends the results."""

    def __init__(self, service: Service, request: TranscribeRequest, format: SampleFormat, *, client: str):
        self.request = request
        self.format = format
        self.complete = False
        """Whether the client has sent all audio."""
        self._service = service
        self._samples = SampleConverter(format)
        self._audio = Channel[bytes](MAX_QUEUED_BYTES, lambda piece: len(piece) + PIECE_OVERHEAD_BYTES)
        self._has_fed_all = False  # the session has all of it
        self._id = create_request_id()
        self._facts: dict[str, object] = {"request": self._id, "protocol": "wyoming", "client": client}
        self._model_wait = ModelWait()

    async def feed(self, audio: bytes) -> None:
        """Queue audio of any length; waits while too much is queued."""
        await self._audio.send(self._samples.feed(audio))

    def stop(self) -> None:
        """Mark the audio as complete."""
        self.complete = True
        self._audio.close()

    async def transcribe(self, send: EventSender) -> None:
        """Transcribe the audio and send the events to the client.

        Raises:
            EardrumError: the transcription failed.
            OSError: the client disconnected.
        """
        set_request_id(self._id)
        CURRENT_MODEL_WAIT.set(self._model_wait)
        began, note = time.monotonic(), "canceled"
        try:
            with tracing.SpanScope("wyoming transcribe", "SERVER", headers={}) as span:
                await self._transcribe(send)
                if span:
                    span.set_attributes({"eardrum.model": str(self._facts["model"])})
                    span.set_attributes({"eardrum.audio.duration": float(str(self._facts.get("audio_s", 0.0)))})
            note = ""
        except EardrumError as error:
            note = error.message
            raise
        except ConnectionAbortedError as error:
            note = str(error)
            raise
        finally:
            self._log_utterance(time.monotonic() - began, note)

    async def _transcribe(self, send: EventSender) -> None:
        model = choose_model(self._service, self.request)
        self._facts["model"] = model.id
        request = self._service.prepare_request(model, self.request.request)
        streaming = self._service.settings.wyoming.streaming
        encoder = TranscriptEncoder(request.language, streaming=streaming)
        if not model.supports_live:
            text_alone = replace(request, times=False)
            for event in await transcribe_recording(
                self._service, model, text_alone, self.format.live_format, self._iterate_audio()
            ):
                await self._send_event(event, encoder, send)
            return
        settings = SessionSettings(request, self.format.live_format, endpointing=None, partials=streaming)
        async with open_session(self._service, model, settings) as session:
            await run_alongside(self._send_events(session, encoder, send), self._feed_session(session))

    async def _iterate_audio(self) -> AsyncIterator[bytes]:
        """Yield the queued audio as it arrives, until its end."""
        while pieces := await self._audio.receive_all():
            if audio := b"".join(pieces):
                yield audio

    async def _feed_session(self, session: ResumableSession) -> None:
        async for audio in self._iterate_audio():
            await session.feed(audio)
        self._has_fed_all = not session.is_finished  # False: the server shut down before the end of the audio
        await session.finish()

    async def _send_events(self, session: ResumableSession, encoder: TranscriptEncoder, send: EventSender) -> None:
        async with aclosing(session.stream_events()) as events:
            async for event in events:
                if isinstance(event, SessionEnded) and not self._has_fed_all:
                    raise make_session_shutdown_error()  # half a command may mean something else
                await self._send_event(event, encoder, send)

    async def _send_event(self, event: LiveEvent, encoder: TranscriptEncoder, send: EventSender) -> None:
        if isinstance(event, SessionEnded):
            self._facts |= {"audio_s": round(event.duration, 2), "decode_s": round(event.decode_s, 3)}
        for encoded in encoder.feed(event):
            await send(encoded)

    def _log_utterance(self, seconds: float, note: str) -> None:
        facts = {**self._facts, **self._model_wait.to_facts(), "total_s": round(seconds, 3)} | ({"note": note} if note else {})
        line = " ".join(f"{name}={json.dumps(value) if ' ' in str(value) else value}" for name, value in facts.items())
        log.info("%s", line, extra={"facts": facts})


OTHER_SERVICES = ("handle", "intent", "wake", "mic", "snd")
"""Wyoming's other service types. Clients expect a list, here empty, for each."""


def list_models(service: Service) -> list[Model]:
    """List the speech models that need no download, the default first."""
    service.catalog.rescan_if_changed()
    usable = [
        m
        for m in service.catalog
        if m.is_speech_model and m.is_runnable and not m.needs_download and not (m.entry and m.entry.unlisted)
    ]
    default = service.catalog.default.id
    return sorted(usable, key=lambda model: model.id != default)


def choose_model(service: Service, request: TranscribeRequest) -> Model:
    """Choose the model of an utterance.

    Home Assistant offers the languages of all models together, and then sends only the language.

    Raises:
        ModelNotFoundError: no model has the request's name.
    """
    return service.find_model("" if request.name == PROGRAM_NAME else request.name, request.request)


def build_info(models: Iterable[Model], *, streaming: bool, voices: Sequence[dict[str, Any]] = ()) -> WyomingEvent:
    """Build the response to `describe`: one program with all models, and those in `voices`."""
    program = {
        **describe_artifact(PROGRAM_NAME, "Speech to text with every model of this server", "Eardrum", __version__),
        "models": [_describe_model(model) for model in models],
        "supports_transcript_streaming": streaming,
        "requires_external_vad": True,
    }
    return WyomingEvent("info", {"asr": [program], "tts": list(voices), **{kind: [] for kind in OTHER_SERVICES}})


def _describe_model(model: Model) -> dict[str, Any]:
    description = f"{model.repository or model.id} ({model.engine})"
    return {
        **describe_artifact(model.id, description, model.repository.partition("/")[0] or model.engine),
        "languages": _list_languages(model),
    }


def _list_languages(model: Model) -> list[str]:
    return list(model.capabilities.languages or LANGUAGE_NAMES)


MAX_WAV_BYTES = MAX_WAV_SIZE - WAV_HEADER.size
"""The lengths in a WAV file have 32 bits."""


class WavRecording:
    """16-bit samples in a spool, read as a WAV file."""

    def __init__(self, spool: Spool, format: AudioFormat):
        self._spool = spool
        self._format = format

    async def read(self) -> AsyncIterator[bytes]:
        """Yield the file from its start. The spool must be finished, as the header holds its length."""
        yield build_wav_header(self._spool.size, self._format.rate, self._format.channels)
        async for piece in self._spool.read():
            yield piece


async def transcribe_recording(
    service: Service, model: Model, request: TranscriptionRequest, format: AudioFormat, audio: AsyncIterator[bytes]
) -> list[LiveEvent]:
    """Transcribe an utterance as an upload; returns the events that end a live session.

    Raises:
        TooLargeError: the audio is larger than `limits.upload_bytes`.
        EardrumError: the transcription failed.
    """
    maximum = min(service.settings.limits.upload_bytes, MAX_WAV_BYTES)
    with service.create_spool() as spool:
        async for piece in audio:
            await spool.write(piece)
            if spool.size > maximum:
                raise TooLargeError(f"The utterance is larger than limits.upload_bytes allows ({maximum} bytes).")
        spool.finish()
        transcript = await service.transcribe(model, request, WavRecording(spool, format))
    text, summary = join_texts(segment.text for segment in transcript.segments), transcript.summary
    return [
        FinalTranscript(1, 0.0, summary.duration, text, tuple(transcript.segments), summary.language),
        SessionEnded(summary.duration, summary.language, summary.decode_s),
    ]
