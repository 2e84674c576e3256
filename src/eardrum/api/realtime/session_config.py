"""Parses and describes the configuration of a transcription session, in the two shapes of the API: current (GA) and beta. Pure.

Errors name a value by its path, such as `session.audio.input.format`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, FailFast, Field, ValidationInfo, field_validator

from eardrum.api import fields
from eardrum.api.fields import NUMBER, UNSET_IF_EMPTY, ListOf, Prompt, RequestModel
from eardrum.errors import UnsupportedFeatureError
from eardrum.live import AudioEncoding, AudioFormat, EndpointingSettings, SessionSettings
from eardrum.transcription import Priority, TranscriptionRequest

PAUSES_S = {"low": 1.6, "medium": 0.8, "auto": 0.8, "high": 0.4}
"""Pauses that end a turn, by eagerness. No model here detects the end of a thought, so an eagerness only sets the pause."""

LOGPROBS = "item.input_audio_transcription.logprobs"

PCM_RATE = 24_000
"""Hz of PCM in OpenAI's API, always."""
PHONE_RATE = 8_000
"""Hz of G.711, always."""
PCM_RATES = 4_000, 192_000

AUDIO_TYPES = {"audio/pcm": AudioEncoding.PCM16, "audio/pcmu": AudioEncoding.MULAW, "audio/pcma": AudioEncoding.ALAW}
BETA_AUDIO_TYPES = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}

CLIENT_COMMITTED_MODELS = re.compile(r"(gpt-live-transcribe|gpt-realtime-whisper)(-\d{4}-\d{2}-\d{2})?(:latest)?", re.ASCII)
"""Models for which OpenAI's API detects no turns by default: their clients detect pauses themselves."""

MAX_LIST_CHARS = 20_000
"""Characters of all keywords, or of all languages."""

CONVERSATION_FIELDS = (
    *("instructions", "tools", "tool_choice", "voice", "output_modalities", "max_output_tokens", "speed", "temperature"),
    *("output_audio_format", "max_response_output_tokens", "prompt", "tracing", "truncation", "reasoning"),
)
"""Fields of sessions that talk."""


def _check_length(items: tuple[str, ...]) -> tuple[str, ...]:
    if sum(map(len, items)) > MAX_LIST_CHARS:
        raise ValueError
    return items


ShortText = Annotated[str, Field(max_length=500), UNSET_IF_EMPTY]
ShortList = Annotated[
    ListOf[str],
    Field(max_length=1000),
    AfterValidator(_check_length),
    fields.expect(f"a list of strings, at most 1000 and {MAX_LIST_CHARS} characters in all"),
]


class TranscriptionFields(RequestModel):
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
        names = ("eagerness",) if self.type == "semantic_vad" else tuple(fields.TurnDetection.model_fields)
        return {"type": self.type} | {name: getattr(self, name) for name in names}


class FormatFields(RequestModel):
    """The object `format`."""

    type: Annotated[Literal["audio/pcm", "audio/pcmu", "audio/pcma"] | None, UNSET_IF_EMPTY] = None
    rate: Annotated[
        float | None,
        Field(ge=PCM_RATES[0], le=PCM_RATES[1]),
        NUMBER,
        fields.expect(f"a number from {PCM_RATES[0]} to {PCM_RATES[1]}, and {PHONE_RATE} for G.711"),
    ] = None

    @field_validator("rate")
    @classmethod
    def _check_rate(cls, rate: float | None, info: ValidationInfo) -> float | None:
        if info.data.get("type") in ("audio/pcmu", "audio/pcma") and rate not in (None, PHONE_RATE):
            raise ValueError
        return rate


class NoiseReduction(RequestModel):
    """The object `noise_reduction`. It has no effect, and descriptions of the session show null."""

    type: Annotated[Literal["near_field", "far_field"] | None, UNSET_IF_EMPTY] = None


class AudioInput(RequestModel):
    """The object `session.audio.input`."""

    format: FormatFields | None = None
    transcription: TranscriptionFields | None = None
    turn_detection: RealtimeTurnDetection | None = None
    noise_reduction: NoiseReduction | None = None


Include = Annotated[tuple[Literal["item.input_audio_transcription.logprobs"], ...], FailFast(), UNSET_IF_EMPTY]


class AudioFields(RequestModel):
    """The object `session.audio`."""

    input: AudioInput | None = None
    output: Any = None


class Session(RequestModel):
    """A session in the current shape."""

    include: Include = ()
    audio: AudioFields | None = None


def _name_format(value: Any) -> Any:
    return {"type": BETA_AUDIO_TYPES.get(value, value)} if isinstance(value, str) else value


class BetaSession(AudioInput):
    """A session in the beta's shape."""

    model_config = ConfigDict(
        alias_generator=lambda name: name if name in ("include", "turn_detection") else f"input_audio_{name}"
    )

    include: Include = ()
    format: Annotated[
        FormatFields | None, BeforeValidator(_name_format), fields.expect(f"{', '.join(BETA_AUDIO_TYPES)} or an object")
    ] = None


@dataclass(frozen=True, slots=True)
class RealtimeConfig:
    """A transcription session's configuration, as far as it has an effect here."""

    model: str = ""
    """The client's name for it; empty is the default model."""
    language: str = ""
    languages: tuple[str, ...] = ()
    prompt: str = ""
    keywords: tuple[str, ...] = ()
    format: AudioFormat = field(default_factory=lambda: make_pcm_format(PCM_RATE))
    wanted: RealtimeTurnDetection | None = None
    """The client's choice of turn detection, if `chosen`."""
    chosen: bool = False
    logprobs: bool = False
    pcm_rate: int = PCM_RATE
    """Hz of PCM for clients that send no rate."""

    @property
    def detection(self) -> RealtimeTurnDetection | None:
        """The turn detection in force: the client's choice, else the default of the model's name."""
        if self.chosen:
            return self.wanted
        return None if CLIENT_COMMITTED_MODELS.fullmatch(self.model) else RealtimeTurnDetection()

    def build_request(self) -> TranscriptionRequest:
        """Build the transcription request.

        Raises:
            InvalidRequestError: the language is unknown.
        """
        return TranscriptionRequest(
            language=fields.choose_language(self.language, self.languages),
            prompt=self.prompt,
            hotwords=self.keywords,
            logprobs=self.logprobs,
            priority=Priority.LIVE,
        )

    def build_settings(self, request: TranscriptionRequest) -> SessionSettings:
        """Build the session's settings; `request` has the server's defaults for the model."""
        return SessionSettings(request, self.format, self.detection.to_endpointing() if self.detection else None)


def make_pcm_format(rate: float) -> AudioFormat:
    """Return the format of 16-bit PCM with this rate."""
    return AudioFormat(AudioEncoding.PCM16, round(rate))


@dataclass(frozen=True, slots=True)
class SessionShape:
    """How a session object is parsed and described."""

    apply_update: Callable[[RealtimeConfig, dict[str, Any], str], RealtimeConfig]
    """Returns the configuration after an update, a session at a path in the message. Raises `InvalidRequestError`, or
    `UnsupportedFeatureError` for a session that talks."""
    describe: Callable[[RealtimeConfig, str], dict[str, Any]]
    """Returns the object for a configuration and a session's id."""


def choose_shape(session: dict[str, Any], *, beta: bool) -> SessionShape:
    """Return the shape of an update; its fields override the connection's API version."""
    if "audio" in session:
        return GA
    flat = any(name in session for name in ("input_audio_format", "input_audio_transcription", "input_audio_noise_reduction"))
    return BETA if beta or flat else GA


def _apply_update(now: RealtimeConfig, given: dict[str, Any], path: str) -> RealtimeConfig:
    _refuse_conversation(given, path)
    session = Session.parse(given, path)
    if session.audio and session.audio.output:
        raise UnsupportedFeatureError(f"This server does not talk: leave {path}.audio.output out.", param=f"{path}.audio.output")
    if "include" in session.model_fields_set:
        now = replace(now, logprobs=bool(session.include))
    return _apply_input(now, session.audio.input, f"{path}.audio.input.") if session.audio and session.audio.input else now


def _apply_beta_update(now: RealtimeConfig, given: dict[str, Any], path: str) -> RealtimeConfig:
    _refuse_conversation(given, path)
    session = BetaSession.parse(given, path)
    if "include" in session.model_fields_set:
        now = replace(now, logprobs=bool(session.include))
    return _apply_input(now, session, f"{path}.input_audio_")


def _refuse_conversation(session: dict[str, Any], path: str) -> None:
    """Refuse a session that talks.

    Raises:
        UnsupportedFeatureError: the message names the field.
    """
    if (kind := session.get("type")) not in (None, "transcription"):
        raise UnsupportedFeatureError(
            f"This server transcribes and does not talk: {path}.type must be transcription, not {fields.show_value(kind)}.",
            param=f"{path}.type",
        )
    for name in CONVERSATION_FIELDS:
        if session.get(name):
            raise UnsupportedFeatureError(
                f"This server transcribes and does not talk: leave {path}.{name} out.", param=f"{path}.{name}"
            )
    if session.get("model"):
        raise UnsupportedFeatureError(
            f"{path}.model is the model of a conversation: name the one that transcribes in "
            "session.audio.input.transcription.model.",
            param=f"{path}.model",
        )


def _apply_input(now: RealtimeConfig, given: AudioInput, prefix: str) -> RealtimeConfig:
    if given.format:
        now = replace(now, format=_convert_format(now, given.format))
    if given.transcription:
        now = replace(now, **given.transcription.changes)
    elif "transcription" in given.model_fields_set:
        path = f"{prefix}transcription"
        raise UnsupportedFeatureError(f"This server only transcribes: {path} cannot be null.", param=path)
    if "turn_detection" in given.model_fields_set:
        now = replace(now, wanted=_change_detection(now.detection, given.turn_detection), chosen=True)
    return now


def _change_detection(now: RealtimeTurnDetection | None, given: RealtimeTurnDetection | None) -> RealtimeTurnDetection | None:
    """Return the turn detection after a change: null turns it off, and missing values stay."""
    if not given:
        return None
    kind = given.changes.get("type", now.type if now else given.type)
    return (now if now and now.type == kind else RealtimeTurnDetection(type=kind)).model_copy(update=given.changes)


def _convert_format(now: RealtimeConfig, given: FormatFields) -> AudioFormat:
    encoding = AUDIO_TYPES[given.type] if given.type else now.format.encoding
    if encoding is not AudioEncoding.PCM16:
        return AudioFormat(encoding, PHONE_RATE)
    return make_pcm_format(given.rate or (now.format.rate if now.format.encoding is AudioEncoding.PCM16 else now.pcm_rate))


def _describe_session(config: RealtimeConfig, id: str) -> dict[str, Any]:
    name = next(name for name, encoding in AUDIO_TYPES.items() if encoding is config.format.encoding)
    return {
        "type": "transcription",
        **_describe_head(config, id),
        "audio": {
            "input": {
                "format": {"type": name, "rate": config.format.rate} if name == "audio/pcm" else {"type": name},
                "transcription": _describe_transcription(config),
                "noise_reduction": None,
                "turn_detection": config.detection.describe() if config.detection else None,
            }
        },
    }


def _describe_beta_session(config: RealtimeConfig, id: str) -> dict[str, Any]:
    return {
        **_describe_head(config, id),
        "input_audio_format": next(
            name for name, type in BETA_AUDIO_TYPES.items() if AUDIO_TYPES[type] is config.format.encoding
        ),
        "input_audio_transcription": _describe_transcription(config),
        "turn_detection": config.detection.describe() if config.detection else None,
        "input_audio_noise_reduction": None,
    }


def _describe_head(config: RealtimeConfig, id: str) -> dict[str, Any]:
    return {"object": "realtime.transcription_session", "id": id, "include": [LOGPROBS] if config.logprobs else None}


def _describe_transcription(config: RealtimeConfig) -> dict[str, Any]:
    lists = {"languages": list(config.languages), "keywords": list(config.keywords)}
    shown = {"model": config.model or None, "language": config.language or None, "prompt": config.prompt}
    return shown | {name: items for name, items in lists.items() if items}


GA = SessionShape(_apply_update, _describe_session)
BETA = SessionShape(_apply_beta_update, _describe_beta_session)
