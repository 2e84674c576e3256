"""Parses a session's settings from the URL's query and from `config` messages, which use the same names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict

from eardrum.api import fields
from eardrum.api.fields import UNSET_IF_EMPTY, WHOLE, Between, Flag, TranscriptionFields, TurnDetection
from eardrum.live import SAMPLE_BYTES, AudioEncoding, AudioFormat, SessionSettings
from eardrum.transcription import SAMPLE_RATE, Priority, SpeakerOptions, SpeechTask, TranscriptionRequest

ENCODINGS = {
    **dict.fromkeys(("s16le", "pcm16", "pcm_s16le", "linear16", "pcm", "raw", "audio/pcm", "audio/raw"), AudioEncoding.PCM16),
    **dict.fromkeys(("f32le", "pcm_f32le", "float32"), AudioEncoding.PCM32F),
    **dict.fromkeys(("mulaw", "ulaw", "pcm_mulaw", "g711_ulaw", "pcmu", "audio/pcmu"), AudioEncoding.MULAW),
    **dict.fromkeys(("alaw", "pcm_alaw", "g711_alaw", "pcma", "audio/pcma"), AudioEncoding.ALAW),
    **dict.fromkeys(("container", "webm", "ogg", "opus", "mp3", "wav", "flac", "mp4", "m4a"), AudioEncoding.CONTAINER),
}
CONTAINER_PREFIXES = ("audio/", "video/")
"""Prefixes of content types, so that clients can send `MediaRecorder.mimeType` unchanged."""

TELEPHONE_RATE = 8000
"""Default sample rate of G.711, in Hz."""

ALIASES = {
    "keywords": "hotwords",
    "format": "encoding",
    "audio_format": "encoding",
    "rate": "sample_rate",
    "interim_results": "partials",
    "enable_diarization": "diarize",
}
"""Names that similar APIs use for these settings."""

FORMAT_SETTINGS = ("encoding", "sample_rate", "channels", "audio_track")
"""Settings that cannot change after the first audio."""


def _parse_encoding(value: Any) -> Any:
    spelled = str(value).lower()
    is_container = spelled.startswith(CONTAINER_PREFIXES)
    return ENCODINGS.get(spelled.partition(";")[0].strip(), AudioEncoding.CONTAINER if is_container else value)


class VadSettings(TurnDetection):
    """The object `vad`."""

    model_config = ConfigDict(extra="forbid")

    type: Any = None


class LiveConfig(TranscriptionFields, TurnDetection):
    """The configuration of a live session: its model and settings."""

    model_config = ConfigDict(extra="forbid")

    language: fields.Language = None
    task: Annotated[SpeechTask, UNSET_IF_EMPTY] = SpeechTask.TRANSCRIBE
    words: Flag = False
    diarize: Flag = False
    max_speakers: Annotated[int | None, Between(1, 1000, WHOLE)] = None
    encoding: Annotated[
        AudioEncoding,
        BeforeValidator(_parse_encoding),
        fields.expect(f"{', '.join(AudioEncoding)}, or the content type of a recording"),
        UNSET_IF_EMPTY,
    ] = AudioEncoding.PCM16
    sample_rate: Annotated[int | None, Between(4000, 192_000, WHOLE)] = None
    channels: Annotated[int, Between(1, 64, WHOLE)] = 1
    partials: Flag = True
    vad: Annotated[bool, fields.expect("true or false, or an object"), UNSET_IF_EMPTY] = True

    def update(self, given: Mapping[str, Any]) -> LiveConfig:
        """Return the configuration with the given settings changed.

        Raises:
            InvalidRequestError: a name is unknown or a value invalid; `param` names it.
        """
        named = {ALIASES.get(name, name): value for name, value in given.items()}
        vad = named.get("vad", self.vad or not named.keys().isdisjoint(TurnDetection.model_fields))
        if isinstance(vad, str) and vad.lstrip().startswith("{"):
            with suppress(ValueError):
                vad = fields.parse_json_text(vad)
        if isinstance(vad, dict):
            named = VadSettings.parse(vad, "vad").changes | named
            named.pop("type", None)
            vad = True
        changes = LiveConfig.parse({**named, "vad": vad is not None and vad}).changes
        if "encoding" in changes:
            changes.setdefault("sample_rate", None)
        if "timestamp_granularities" in changes:
            changes.setdefault("words", "word" in changes["timestamp_granularities"])
        return self.model_copy(update=changes)

    @property
    def settings(self) -> SessionSettings:
        """The settings of the session."""
        request = TranscriptionRequest(
            task=self.task,
            language=self.language,
            prompt=self.prompt,
            hotwords=self.hotwords,
            temperature=self.temperature,
            words=self.words,
            speakers=self.diarize,
            speaker_options=SpeakerOptions(max_speakers=self.max_speakers),
            priority=Priority.LIVE,
        )
        rate = self.sample_rate or (TELEPHONE_RATE if SAMPLE_BYTES.get(self.encoding) == 1 else SAMPLE_RATE)
        format = AudioFormat(self.encoding, rate, self.channels, self.audio_track)
        return SessionSettings(request, format, self.to_endpointing() if self.vad else None, self.partials)

    @property
    def frame_bytes(self) -> int:
        """Bytes per frame, a sample of every channel; 1 for a container, which may end anywhere."""
        return AudioFormat(self.encoding, channels=self.channels).frame_bytes

    def describe(self, request: TranscriptionRequest) -> dict[str, Any]:
        """Describe the settings by their names in the protocol; `request` has the server's defaults."""
        format = self.settings.format
        raw = format.encoding is not AudioEncoding.CONTAINER
        return {
            "language": request.language,
            "task": request.task,
            "words": request.words,
            "partials": self.partials,
            **({"diarize": True, "max_speakers": self.max_speakers} if self.diarize else {}),
            "encoding": format.encoding,
            **({"sample_rate": format.rate, "channels": format.channels} if raw else {}),
            "vad": {name: getattr(self, name) for name in TurnDetection.model_fields} if self.vad else None,
        }
