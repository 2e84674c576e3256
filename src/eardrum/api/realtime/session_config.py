"""Parses and describes the configuration of a transcription session, in the two shapes of the API: current (GA) and beta. Pure.

Errors name a value by its path, such as `session.audio.input.format`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, FailFast, Field, ValidationInfo, field_validator

from eardrum.api import fields
from eardrum.api.fields import UNSET_IF_EMPTY, Between, ListOf, Prompt, RequestModel
from eardrum.errors import UnsupportedFeatureError
from eardrum.live import AudioEncoding, AudioFormat, EndpointingSettings, SessionSettings
from eardrum.transcription import Priority, TranscriptionRequest

PAUSES_S = {"low": 1.6, "medium": 0.8, "auto": 0.8, "high": 0.4}
"""Pauses that end a turn, by eagerness. No model here detects the end of a thought, so an eagerness only sets the pause."""

PCM_RATE = 24_000
"""Hz of PCM in OpenAI's API, always."""
PHONE_RATE = 8_000
"""Hz of G.711, always."""
PCM_RATES = 4_000, 192_000

AUDIO_TYPES = {"audio/pcm": AudioEncoding.PCM16, "audio/pcmu": AudioEncoding.MULAW, "audio/pcma": AudioEncoding.ALAW}
BETA_AUDIO_TYPES = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}

CLIENT_COMMITTED_MODELS = re.compile(r"(gpt-live-transcribe|gpt-realtime-whisper)(-\d{4}-\d{2}-\d{2})?(:latest)?", re.ASCII)
"""Models for which OpenAI's API detects no turns by default: their clients detect pauses themselves."""

MAX_ITEMS, MAX_LIST_CHARS = 1000, 20_000
"""Of all keywords, or of all languages."""

CONVERSATION_FIELDS = (
    *("instructions", "tools", "tool_choice", "voice", "output_modalities", "max_output_tokens", "speed", "temperature"),
    *("output_audio_format", "max_response_output_tokens", "prompt", "tracing", "truncation", "reasoning"),
)
"""Fields of sessions that talk."""


def _check_length(items: tuple[str, ...]) -> tuple[str, ...]:
    if len(items) > MAX_ITEMS or sum(map(len, items)) > MAX_LIST_CHARS:
        raise ValueError(f"a list of strings, at most {MAX_ITEMS} and {MAX_LIST_CHARS} characters in all")
    return items


ShortText = Annotated[str, Field(max_length=500), fields.expect("a string of at most 500 characters"), UNSET_IF_EMPTY]
ShortList = Annotated[ListOf[str], AfterValidator(_check_length)]
Include = Annotated[tuple[Literal["item.input_audio_transcription.logprobs"], ...], FailFast(), UNSET_IF_EMPTY]


class RealtimeTranscription(RequestModel):
    """The object `transcription`."""

    model: ShortText = ""
    language: ShortText = ""
    languages: ShortList = ()
    prompt: Prompt = ""
    keywords: ShortList = ()


class RealtimeTurnDetection(fields.TurnDetection):
    """The object `turn_detection`: when the server commits by itself."""

    type: Annotated[Literal["server_vad", "semantic_vad"], UNSET_IF_EMPTY] = "server_vad"
    eagerness: Annotated[Literal["low", "medium", "high", "auto"], UNSET_IF_EMPTY] = "auto"

    def to_endpointing(self) -> EndpointingSettings:
        """Convert to a session's settings."""
        return (
            EndpointingSettings(silence_s=PAUSES_S[self.eagerness]) if self.type == "semantic_vad" else super().to_endpointing()
        )

    def describe(self) -> dict[str, Any]:
        """Describe it as the API does."""
        names = {"eagerness"} if self.type == "semantic_vad" else set(fields.TurnDetection.model_fields)
        return self.model_dump(include={"type", *names})


class RealtimeFormat(RequestModel):
    """The object `format`. Without a rate, PCM has the default of the connection."""

    type: Annotated[Literal["audio/pcm", "audio/pcmu", "audio/pcma"], UNSET_IF_EMPTY] = "audio/pcm"
    rate: Annotated[float | None, Between(*PCM_RATES)] = None

    @field_validator("rate")
    @classmethod
    def _check_rate(cls, rate: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("type", "audio/pcm") != "audio/pcm" and rate not in (None, PHONE_RATE):
            raise ValueError(f"{PHONE_RATE} for G.711")
        return rate


class NoiseReduction(RequestModel):
    """The object `noise_reduction`. It has no effect, and descriptions of the session show null."""

    type: Annotated[Literal["near_field", "far_field"] | None, UNSET_IF_EMPTY] = None


class AudioInput(RequestModel):
    """The object `session.audio.input`."""

    format: RealtimeFormat | None = None
    transcription: RealtimeTranscription | None = None
    turn_detection: RealtimeTurnDetection | None = None
    noise_reduction: NoiseReduction | None = None


class SessionAudio(RequestModel):
    """The object `session.audio`."""

    input: AudioInput | None = None


class Session(RequestModel):
    """A session in the current shape."""

    include: Include = ()
    audio: SessionAudio | None = None


def _name_format(value: Any) -> Any:
    if value is None or isinstance(value, dict):
        return value
    if not isinstance(value, str) or value not in BETA_AUDIO_TYPES:
        raise ValueError(f"{', '.join(BETA_AUDIO_TYPES)} or an object")
    return {"type": BETA_AUDIO_TYPES[value]}


class BetaSession(AudioInput):
    """A session in the beta's shape."""

    model_config = ConfigDict(
        alias_generator=lambda name: name if name in ("include", "turn_detection") else f"input_audio_{name}"
    )

    include: Include = ()
    format: Annotated[RealtimeFormat | None, BeforeValidator(_name_format)] = None


class RealtimeConfig(RealtimeTranscription):
    """A transcription session's configuration, as far as it has an effect here."""

    format: RealtimeFormat = Field(default_factory=RealtimeFormat)
    turn_detection: RealtimeTurnDetection | None = None
    """The client's choice, if this field is set; see `detection`."""
    include: Include = ()
    pcm_rate: float = PCM_RATE
    """Hz of PCM for clients that send no rate."""

    @property
    def detection(self) -> RealtimeTurnDetection | None:
        """The turn detection in force: the client's choice, else the default of the model's name."""
        if "turn_detection" in self.model_fields_set:
            return self.turn_detection
        return None if CLIENT_COMMITTED_MODELS.fullmatch(self.model) else RealtimeTurnDetection()

    @property
    def audio_format(self) -> AudioFormat:
        """The format of the client's audio."""
        rate = PHONE_RATE if self.format.type != "audio/pcm" else self.format.rate or self.pcm_rate
        return AudioFormat(AUDIO_TYPES[self.format.type], round(rate))

    def build_request(self) -> TranscriptionRequest:
        """Build the transcription request.

        Raises:
            InvalidRequestError: the language is unknown.
        """
        return TranscriptionRequest(
            language=fields.choose_language(self.language, self.languages),
            prompt=self.prompt,
            hotwords=self.keywords,
            logprobs=bool(self.include),
            priority=Priority.LIVE,
        )

    def build_settings(self, request: TranscriptionRequest) -> SessionSettings:
        """Build the session's settings; `request` has the server's defaults for the model."""
        return SessionSettings(request, self.audio_format, self.detection.to_endpointing() if self.detection else None)

    def update(self, given: dict[str, Any], *, beta: bool) -> RealtimeConfig:
        """Return the configuration after an update: missing values stay, and null unsets them.

        Args:
            given: the client's session object.
            beta: whether it has the beta's shape.

        Raises:
            InvalidRequestError: a value is invalid.
            UnsupportedFeatureError: the session talks.
        """
        _refuse_conversation(given)
        session: Session | BetaSession = (BetaSession if beta else Session).parse(given, "session")
        changes = {"include": session.include} if "include" in session.model_fields_set else {}
        input = session if isinstance(session, BetaSession) else session.audio and session.audio.input
        return self.model_copy(update=changes | (self._change_input(input) if input else {}))

    def _change_input(self, given: AudioInput) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if given.transcription:
            changes = given.transcription.changes
        elif "transcription" in given.model_fields_set:
            path = "session.input_audio_transcription" if isinstance(given, BetaSession) else "session.audio.input.transcription"
            raise UnsupportedFeatureError(f"This server only transcribes: {path} cannot be null.", param=path)
        if given.format:
            changes["format"] = _change(self.format, given.format)
        if "turn_detection" in given.model_fields_set:
            detection = given.turn_detection
            changes["turn_detection"] = detection and _change(self.detection or RealtimeTurnDetection(), detection)
        return changes

    def describe(self, id: str, *, beta: bool) -> dict[str, Any]:
        """Describe the session with this id as the API does, in the shape of the beta or of today."""
        head = {"object": "realtime.transcription_session", "id": id, "include": list(self.include) or None}
        lists = {"languages": list(self.languages), "keywords": list(self.keywords)}
        texts: dict[str, Any] = {"model": self.model or None, "language": self.language or None, "prompt": self.prompt}
        transcription = texts | {name: items for name, items in lists.items() if items}
        detection = self.detection.describe() if self.detection else None
        format = self.format.type
        if beta:
            return {
                **head,
                "input_audio_format": next(name for name, type in BETA_AUDIO_TYPES.items() if type == format),
                "input_audio_transcription": transcription,
                "turn_detection": detection,
                "input_audio_noise_reduction": None,
            }
        input = {
            "format": {"type": format} | ({"rate": self.audio_format.rate} if format == "audio/pcm" else {}),
            "transcription": transcription,
            "noise_reduction": None,
            "turn_detection": detection,
        }
        return {"type": "transcription", **head, "audio": {"input": input}}


Changeable = TypeVar("Changeable", RealtimeFormat, RealtimeTurnDetection)


def _change(now: Changeable, given: Changeable) -> Changeable:
    """Return an object after an update: missing values stay, unless the type changes."""
    kind = given.changes.get("type", now.type)
    return (now if now.type == kind else type(given)()).model_copy(update=given.changes)


def is_beta(session: dict[str, Any], *, beta: bool) -> bool:
    """Whether an update has the beta's shape; its fields override the connection's API version, `beta`."""
    flat = any(name in session for name in ("input_audio_format", "input_audio_transcription", "input_audio_noise_reduction"))
    return "audio" not in session and (beta or flat)


def _refuse_conversation(session: dict[str, Any]) -> None:
    """Refuse a session that talks.

    Raises:
        UnsupportedFeatureError: the message names the field.
    """
    if (kind := session.get("type")) not in (None, "transcription"):
        raise UnsupportedFeatureError(
            f"This server only transcribes: session.type must be transcription, not {fields.show_value(kind)}.",
            param="session.type",
        )
    audio = session.get("audio")
    talks = [f"session.{name}" for name in CONVERSATION_FIELDS if session.get(name)]
    if isinstance(audio, dict) and audio.get("output"):
        talks.append("session.audio.output")
    if talks:
        raise UnsupportedFeatureError(f"This server only transcribes: leave {talks[0]} out.", param=talks[0])
    if session.get("model"):
        raise UnsupportedFeatureError(
            "session.model is the model of a conversation: name the one that transcribes in "
            "session.audio.input.transcription.model.",
            param="session.model",
        )
