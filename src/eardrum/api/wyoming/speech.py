"""Speaks for Wyoming: one text as a whole, or one that a language model is still writing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from eardrum import __version__, tracing
from eardrum.api.fields import RequestModel, Text
from eardrum.api.wyoming.protocol import PROGRAM_NAME, WyomingEvent, describe_artifact
from eardrum.concurrency import Channel
from eardrum.errors import EardrumError, EmptyTextError, InvalidRequestError
from eardrum.gateway import speech
from eardrum.gateway.metrics import CURRENT_MODEL_WAIT, ModelWait
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.languages import LANGUAGE_NAMES
from eardrum.request_ids import create_request_id, set_request_id
from eardrum.speech import OUTPUT_RATE, SpeechBegun, SpeechRequest, SpeechSummary
from eardrum.spoken_text import cut_text, is_ssml

log = logging.getLogger("eardrum.access")

AUDIO_FORMAT = {"rate": OUTPUT_RATE, "width": 2, "channels": 1}

MAX_QUEUED_CHARS = 100_000
"""Characters that may wait for the voice. Beyond that, reading from the client pauses."""

CHUNK_BYTES = 1 << 14
"""Bytes of audio in an event: a third of a second, so that players can begin."""


class WyomingVoice(RequestModel):
    """The voice that an event asks for: a name, or only a language."""

    name: Text = ""
    language: Text = ""


class SynthesizeRequest(RequestModel):
    """The data of `synthesize` and `synthesize-start`. Unknown fields are ignored, as by other servers."""

    text: str = ""
    voice: WyomingVoice | None = None


class WyomingSpeech:
    """One text to speak: `feed` takes it while `speak` runs and sends the audio."""

    def __init__(self, service: Service, request: SynthesizeRequest, *, client: str, streaming: bool):
        self.is_complete = False
        """Whether the client has sent all of the text."""
        self._service = service
        self._request = request
        self._is_streaming = streaming
        self._text = Channel[str](MAX_QUEUED_CHARS, len)
        self._characters = 0
        self._id = create_request_id()
        self._facts: dict[str, object] = {"request": self._id, "protocol": "wyoming", "client": client}

    async def feed(self, text: str) -> None:
        """Queue more of the text; waits while too much is queued.

        Raises:
            InvalidRequestError: the text is too long, or SSML.
        """
        limit = self._service.settings.limits.speech_chars
        if not self._characters and is_ssml(text):
            raise InvalidRequestError("The text is SSML, which no model here reads: send plain text.", param="text")
        self._characters += len(text)
        if self._characters > limit:
            raise InvalidRequestError(f"The text has more than {limit:,} characters (limits.speech_chars).", param="text")
        await self._text.send(text)

    def stop(self) -> None:
        """Mark the text as complete."""
        self.is_complete = True
        self._text.close()

    async def speak(self, send: Callable[[WyomingEvent], Awaitable[None]]) -> None:
        """Synthesize the text and send the audio to the client. A text without words is answered with no audio.

        Raises:
            EardrumError: the synthesis failed.
            OSError: the client disconnected.
        """
        set_request_id(self._id)
        CURRENT_MODEL_WAIT.set(wait := ModelWait())
        began, note = time.monotonic(), "canceled"
        try:
            with tracing.SpanScope("wyoming synthesize", "SERVER", headers={}):
                await self._speak(send)
            note = ""
        except (EardrumError, ConnectionAbortedError) as error:
            note = error.message if isinstance(error, EardrumError) else str(error)
            raise
        finally:
            seconds = round(time.monotonic() - began, 3)
            facts = {**self._facts, **wait.to_facts(), "total_s": seconds} | ({"note": note} if note else {})
            line = " ".join(f"{name}={json.dumps(value) if ' ' in str(value) else value}" for name, value in facts.items())
            log.info("%s", line, extra={"facts": facts})

    async def _speak(self, send: Callable[[WyomingEvent], Awaitable[None]]) -> None:
        if self._is_streaming or cut_text(self._request.text):
            await self._send_audio(send)
        else:  # Home Assistant sends emoji and nothing, too, and expects silence
            await send(WyomingEvent("audio-start", AUDIO_FORMAT))
        await send(WyomingEvent("audio-stop"))
        if self._is_streaming:
            await send(WyomingEvent("synthesize-stopped"))

    async def _send_audio(self, send: Callable[[WyomingEvent], Awaitable[None]]) -> None:
        """Send the start and the chunks."""
        wanted = self._request.voice or WyomingVoice()
        name = wanted.name if wanted.name != PROGRAM_NAME else ""
        model = speech.find_voice_model(self._service, "", name, wanted.language)
        self._facts["model"] = model.id
        request = SpeechRequest(speech.choose_voice(model, name, wanted.language))
        format = dict(AUDIO_FORMAT)
        try:
            async with aclosing(speech.stream_speech(self._service, model, request, self._iterate_text())) as events:
                async for event in events:
                    match event:
                        case SpeechBegun(sample_rate=rate):
                            format |= {"rate": rate}
                            await send(WyomingEvent("audio-start", format))
                        case bytes():
                            for at in range(0, len(event), CHUNK_BYTES):
                                await send(WyomingEvent("audio-chunk", format, event[at : at + CHUNK_BYTES]))
                        case SpeechSummary(duration=seconds, characters=characters):
                            self._facts |= {"audio_s": round(seconds, 2), "characters": characters}
        except EmptyTextError:
            await send(WyomingEvent("audio-start", format))

    async def _iterate_text(self) -> AsyncIterator[str]:
        async for text in self._text:
            yield text


def describe_speech(models: list[Model]) -> list[dict[str, Any]]:
    """Describe the voices of all models as one program, for the answer to `describe`: Home Assistant takes the first one only.
    Empty without voices."""
    taken: set[str] = set()
    voices = []
    for model in models:
        for voice, language in speech.list_voices(model):
            if voice not in taken:
                taken.add(voice)
                voices.append(_describe_voice(model, voice, language))
    if not voices:
        return []
    program = describe_artifact(PROGRAM_NAME, "Text to speech with every voice of this server", "Eardrum", __version__)
    return [{**program, "voices": voices, "supports_synthesize_streaming": True}]


def _describe_voice(model: Model, voice: str, language: str) -> dict[str, Any]:
    return {
        **describe_artifact(voice, f"{voice} ({model.id})", model.engine),
        "languages": [language] if language else list(LANGUAGE_NAMES),
    }
