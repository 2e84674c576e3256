"""Reads and writes the configuration of a transcription session, in the two shapes of the API: current (GA) and beta. Pure.

Errors name a value by its path, such as `session.audio.input.format`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from eardrum.errors import InvalidRequestError, UnsupportedFeatureError
from eardrum.languages import parse_language
from eardrum.live import AudioEncoding, AudioFormat, EndpointingSettings, SessionSettings
from eardrum.transcription import Priority, TranscriptionRequest

SERVER_VAD, SEMANTIC_VAD = "server_vad", "semantic_vad"

PAUSES_S = {"low": 1.6, "medium": 0.8, "auto": 0.8, "high": 0.4}
"""Pauses that end a turn, by eagerness. No model here listens for the end of a thought, so a client who asks for that gets
patience in its stead."""

MAX_MS = 60_000


@dataclass(frozen=True, slots=True)
class TurnDetection:
    """When the server commits by itself, in the words of the client."""

    type: str = SERVER_VAD
    threshold: float = 0.5
    prefix_padding_ms: float = 300
    silence_duration_ms: float = 500
    idle_timeout_ms: float | None = None
    eagerness: str = "auto"

    def to_endpointing(self) -> EndpointingSettings:
        """The same for a session."""
        if self.type == SEMANTIC_VAD:
            return EndpointingSettings(silence_s=PAUSES_S[self.eagerness])
        return EndpointingSettings(
            threshold=self.threshold,
            prefix_s=self.prefix_padding_ms / 1000,
            silence_s=self.silence_duration_ms / 1000,
            idle_s=self.idle_timeout_ms / 1000 if self.idle_timeout_ms else None,
        )

    def to_json(self) -> dict[str, Any]:
        """The same for the wire."""
        if self.type == SEMANTIC_VAD:
            return {"type": SEMANTIC_VAD, "eagerness": self.eagerness}
        return {
            "type": SERVER_VAD,
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_padding_ms,
            "silence_duration_ms": self.silence_duration_ms,
            "idle_timeout_ms": self.idle_timeout_ms,
        }


def change_detection(now: TurnDetection | None, given: EventPart | None) -> TurnDetection | None:
    """What a client's `turn_detection` makes of the one in force: null is none, what it leaves out stays.

    Raises:
        InvalidRequestError: a value is out of bounds.
    """
    if given is None:
        return None
    kind = given.get_choice("type", (SERVER_VAD, SEMANTIC_VAD), now.type if now else SERVER_VAD)
    old = now if now and now.type == kind else TurnDetection(type=kind)
    if kind == SEMANTIC_VAD:
        return replace(old, eagerness=given.get_choice("eagerness", tuple(PAUSES_S), old.eagerness))
    idle = old.idle_timeout_ms
    if "idle_timeout_ms" in given:
        idle = given.get_number("idle_timeout_ms", 1, 24 * 3600_000, 0) or None
    return replace(
        old,
        threshold=given.get_number("threshold", 0.0, 1.0, old.threshold),
        prefix_padding_ms=given.get_number("prefix_padding_ms", 0, MAX_MS, old.prefix_padding_ms),
        silence_duration_ms=given.get_number("silence_duration_ms", 0, MAX_MS, old.silence_duration_ms),
        idle_timeout_ms=idle,
    )


LOGPROBS = "item.input_audio_transcription.logprobs"

PCM_RATE = 24_000
"""Hz of PCM in OpenAI's API, always."""
PHONE_RATE = 8_000
"""Hz of G.711, always."""
PCM_RATES = 4_000, 192_000

CLIENT_COMMITTED_MODELS = re.compile(r"(gpt-live-transcribe|gpt-realtime-whisper)(-\d{4}-\d{2}-\d{2})?(:latest)?", re.ASCII)
"""Names of models with which OpenAI has no turn detection unless it is asked for: their clients listen for pauses themselves."""

MAX_PROMPT = 4000
"""Characters; models look at far fewer."""

MAX_NAME_CHARS = 500
"""Characters of a model's name, or of a language."""

MAX_ITEMS, MAX_LIST_CHARS = 1000, 20_000
"""Keywords and languages, and the characters of all of them."""

CONVERSATION_FIELDS = (
    *("instructions", "tools", "tool_choice", "voice", "output_modalities", "max_output_tokens", "speed", "temperature"),
    *("output_audio_format", "max_response_output_tokens", "prompt", "tracing", "truncation", "reasoning"),
)
"""Fields of sessions that talk."""


@dataclass(frozen=True, slots=True)
class RealtimeConfig:
    """A transcription session's configuration, as far as it has an effect here."""

    model: str = ""
    """As the client calls it; empty is the default model."""
    language: str = ""
    languages: tuple[str, ...] = ()
    prompt: str = ""
    keywords: tuple[str, ...] = ()
    format: AudioFormat = field(default_factory=lambda: make_pcm_format(PCM_RATE))
    wanted: TurnDetection | None = field(default_factory=TurnDetection)
    """What the client has said of turn detection, if it has."""
    chosen: bool = False
    """Whether it has."""
    logprobs: bool = False
    pcm_rate: int = PCM_RATE
    """Hz of PCM whose rate the client does not say."""

    @property
    def detection(self) -> TurnDetection | None:
        """What is in force: the client's choice, else what its model's name means."""
        return self.wanted if self.chosen or not CLIENT_COMMITTED_MODELS.fullmatch(self.model) else None

    def build_request(self) -> TranscriptionRequest:
        """What is asked of the model.

        Raises:
            InvalidRequestError: nobody knows the language.
        """
        return TranscriptionRequest(
            language=self._get_language(),
            prompt=self.prompt[:MAX_PROMPT],
            hotwords=self.keywords,
            logprobs=self.logprobs,
            priority=Priority.LIVE,
        )

    def build_settings(self, request: TranscriptionRequest) -> SessionSettings:
        """What the session goes by; `request` is this one's as the model gets it."""
        return SessionSettings(request, self.format, self.detection.to_endpointing() if self.detection else None)

    def _get_language(self) -> str | None:
        """The language, else the only one of several possible ones; a choice is left to the model."""
        if code := parse_language(self.language):
            return code
        possible = {parse_language(spelled, param="languages") for spelled in self.languages}
        return possible.pop() if len(possible) == 1 else None


def change_transcription(now: RealtimeConfig, given: EventPart) -> RealtimeConfig:
    """The configuration with another `transcription`: what it leaves out stays, what is null or empty is unset.

    Raises:
        InvalidRequestError: a value is of the wrong kind.
    """
    texts = {name: _read_bounded_text(given, name) for name in ("model", "language", "prompt") if name in given}
    lists = {name: given.get_texts(name) for name in ("languages", "keywords") if name in given}
    for name, items in lists.items():
        if len(items) > MAX_ITEMS or sum(map(len, items)) > MAX_LIST_CHARS:
            message = f"{given.get_path(name)} has at most {MAX_ITEMS} entries and {MAX_LIST_CHARS} characters."
            raise InvalidRequestError(message, param=given.get_path(name))
    return replace(now, **texts, **lists)  # type: ignore[arg-type]


def _read_bounded_text(given: EventPart, name: str) -> str:
    """The text, cut where no model looks any more if it is a prompt: a configuration is kept, and told to the client."""
    text = given.get_text(name)
    if name == "prompt":
        return text[:MAX_PROMPT]
    if len(text) > MAX_NAME_CHARS:
        raise InvalidRequestError(f"{given.get_path(name)} has at most {MAX_NAME_CHARS} characters.", param=given.get_path(name))
    return text


def change_include(now: RealtimeConfig, session: EventPart) -> RealtimeConfig:
    """The configuration with what the client wants to have in events.

    Raises:
        InvalidRequestError: there is nothing of that name.
    """
    if "include" not in session:
        return now
    for name in (names := session.get_texts("include")):
        if name != LOGPROBS:
            raise InvalidRequestError(
                f"{session.get_path('include')} may hold {LOGPROBS}, not {name!r}.", param="session.include"
            )
    return replace(now, logprobs=bool(names))


def refuse_conversation(session: EventPart) -> None:
    """Refuse what only a session that talks could do.

    Raises:
        UnsupportedFeatureError: the message names the field.
    """
    if (kind := session.get_raw("type")) not in (None, "transcription"):
        raise UnsupportedFeatureError(
            f"This server transcribes and does not talk: session.type must be transcription, not {kind!r}.", param="session.type"
        )
    for name in CONVERSATION_FIELDS:
        if session.get_raw(name):
            raise UnsupportedFeatureError(
                f"This server transcribes and does not talk: leave {session.get_path(name)} out.", param=session.get_path(name)
            )
    if session.get_raw("model"):
        raise UnsupportedFeatureError(
            "session.model is that of a conversation: name the one that transcribes in session.audio.input.transcription.model.",
            param="session.model",
        )


def make_pcm_format(rate: float) -> AudioFormat:
    """PCM of 16 bits at this rate."""
    return AudioFormat(AudioEncoding.PCM16, round(rate))


AUDIO_TYPES = {"audio/pcm": AudioEncoding.PCM16, "audio/pcmu": AudioEncoding.MULAW, "audio/pcma": AudioEncoding.ALAW}
BETA_AUDIO_TYPES = {"pcm16": AudioEncoding.PCM16, "g711_ulaw": AudioEncoding.MULAW, "g711_alaw": AudioEncoding.ALAW}

SESSION_OBJECT = "realtime.transcription_session"


@dataclass(frozen=True, slots=True)
class SessionShape:
    """How a session object is read, and written."""

    apply_update: Callable[[RealtimeConfig, EventPart], RealtimeConfig]
    """The configuration after an update; raises `InvalidRequestError`, or `UnsupportedFeatureError` for a session that talks."""
    describe: Callable[[RealtimeConfig, str], dict[str, Any]]
    """The object for a configuration and a session's id."""


def _apply_update(now: RealtimeConfig, session: EventPart) -> RealtimeConfig:
    refuse_conversation(session)
    audio = session.get_part("audio")
    if audio and audio.get_raw("output"):
        raise UnsupportedFeatureError("This server does not talk: leave session.audio.output out.", param="session.audio.output")
    new = change_include(now, session)
    given = audio.get_part("input") if audio else None
    if not given:
        return new
    if wanted := given.get_part("format"):
        new = replace(new, format=_read_format(new, wanted))
    return _apply_input(new, given, "transcription", "noise_reduction")


def _apply_input(now: RealtimeConfig, given: EventPart, transcript: str, noise: str) -> RealtimeConfig:
    """What both shapes have, under two names each."""
    if transcript in given:
        if not (wanted := given.get_part(transcript)):
            raise UnsupportedFeatureError(
                f"This server does nothing but transcribe: {given.get_path(transcript)} cannot be null.",
                param=given.get_path(transcript),
            )
        now = change_transcription(now, wanted)
    if "turn_detection" in given:
        now = replace(now, wanted=change_detection(now.detection, given.get_part("turn_detection")), chosen=True)
    if reduction := given.get_part(noise):  # of a known kind, and not done: the answer says null
        reduction.get_choice("type", ("near_field", "far_field"), "")
    return now


def _read_format(now: RealtimeConfig, given: EventPart) -> AudioFormat:
    names = {encoding: name for name, encoding in AUDIO_TYPES.items()}
    encoding = AUDIO_TYPES[given.get_choice("type", tuple(AUDIO_TYPES), names[now.format.encoding])]
    if encoding is not AudioEncoding.PCM16:
        given.get_number("rate", PHONE_RATE, PHONE_RATE, PHONE_RATE)
        return AudioFormat(encoding, PHONE_RATE)
    rate = now.format.rate if now.format.encoding is AudioEncoding.PCM16 else now.pcm_rate
    return make_pcm_format(given.get_number("rate", *PCM_RATES, rate))


def _describe_session(config: RealtimeConfig, id: str) -> dict[str, Any]:
    name = next(name for name, encoding in AUDIO_TYPES.items() if encoding is config.format.encoding)
    return {
        "type": "transcription",
        "object": SESSION_OBJECT,
        "id": id,
        "include": [LOGPROBS] if config.logprobs else None,
        "audio": {
            "input": {
                "format": {"type": name, "rate": config.format.rate} if name == "audio/pcm" else {"type": name},
                "transcription": _describe_transcription(config),
                "noise_reduction": None,
                "turn_detection": config.detection.to_json() if config.detection else None,
            }
        },
    }


def _describe_transcription(config: RealtimeConfig) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "model": config.model or None,
        "language": config.language or None,
        "prompt": config.prompt,
    }
    if config.languages:
        shown["languages"] = list(config.languages)
    if config.keywords:
        shown["keywords"] = list(config.keywords)
    return shown


def _apply_beta_update(now: RealtimeConfig, session: EventPart) -> RealtimeConfig:
    refuse_conversation(session)
    new = change_include(now, session)
    if isinstance(session.get_raw("input_audio_format"), dict):
        wanted = session.get_part("input_audio_format")
        assert wanted
        new = replace(new, format=_read_format(new, wanted))
    elif session.get_raw("input_audio_format") is not None:
        encoding = BETA_AUDIO_TYPES[session.get_choice("input_audio_format", tuple(BETA_AUDIO_TYPES), "")]
        if encoding is not AudioEncoding.PCM16:
            new = replace(new, format=AudioFormat(encoding, PHONE_RATE))
        elif new.format.encoding is not AudioEncoding.PCM16:
            new = replace(new, format=make_pcm_format(new.pcm_rate))
    return _apply_input(new, session, "input_audio_transcription", "input_audio_noise_reduction")


def _describe_beta_session(config: RealtimeConfig, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "object": SESSION_OBJECT,
        "input_audio_format": next(name for name, encoding in BETA_AUDIO_TYPES.items() if encoding is config.format.encoding),
        "input_audio_transcription": _describe_transcription(config),
        "turn_detection": config.detection.to_json() if config.detection else None,
        "input_audio_noise_reduction": None,
        "include": [LOGPROBS] if config.logprobs else None,
    }


GA = SessionShape(_apply_update, _describe_session)
BETA = SessionShape(_apply_beta_update, _describe_beta_session)


def choose_shape(session: EventPart, *, beta: bool) -> SessionShape:
    """The shape in which an update is written, whatever the connection said of itself."""
    if "audio" in session:
        return GA
    flat = any(name in session for name in ("input_audio_format", "input_audio_transcription", "input_audio_noise_reduction"))
    return BETA if beta or flat else GA


class EventPart:
    """An object in a client's event. What is null counts as given: it means "off" or "unset"."""

    def __init__(self, value: object, path: str):
        if not isinstance(value, dict):
            raise InvalidRequestError(f"{path} must be an object, not {shorten_value(value)}.", param=path)
        self._values: dict[str, Any] = value
        self._path = path

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get_path(self, name: str) -> str:
        """What errors call the value."""
        return f"{self._path}.{name}"

    def get_raw(self, name: str) -> Any:
        """The value, whatever it is; None if there is none."""
        return self._values.get(name)

    def get_part(self, name: str) -> EventPart | None:
        """The object of this name; None if it is null or missing.

        Raises:
            InvalidRequestError: it is no object.
        """
        return EventPart(value, self.get_path(name)) if (value := self.get_raw(name)) is not None else None

    def get_text(self, name: str) -> str:
        """The text without space around it; empty if it is null or missing.

        Raises:
            InvalidRequestError: it is no text.
        """
        value = self.get_raw(name)
        if value is not None and not isinstance(value, str):
            raise self.make_error(name, "a string")
        return (value or "").strip()

    def get_texts(self, name: str) -> tuple[str, ...]:
        """The list of texts; empty if it is null or missing.

        Raises:
            InvalidRequestError: it is no such list.
        """
        value = self.get_raw(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise self.make_error(name, "a list of strings")
        return tuple(value or ())

    def get_choice(self, name: str, choices: tuple[str, ...], otherwise: str) -> str:
        """One of the words; `otherwise` if it is null or missing.

        Raises:
            InvalidRequestError: it is none of them.
        """
        value = self.get_raw(name)
        if value is None:
            return otherwise
        if value not in choices:
            raise self.make_error(name, " or ".join(choices))
        return str(value)

    def get_number(self, name: str, least: float, most: float, otherwise: float) -> float:
        """The number; `otherwise` if it is null or missing.

        Raises:
            InvalidRequestError: it is no number, or outside of these bounds.
        """
        value = self.get_raw(name)
        if value is None:
            return otherwise
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.make_error(name, f"a number from {least:g} to {most:g}")
        return value

    def make_error(self, name: str, wanted: str) -> InvalidRequestError:
        """The error for a value that is not what it should be."""
        path = self.get_path(name)
        return InvalidRequestError(f"{path} must be {wanted}, not {shorten_value(self.get_raw(name))}.", param=path)


def shorten_value(value: object) -> str:
    """A client's value in a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
