"""Reads a session's settings from the URL's query and from `config` messages, which use the same names. Pure.

Values may be JSON or text, as in a query.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eardrum import bounded_json
from eardrum.api.json_body import check_surrogates
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.languages import parse_language
from eardrum.live import AudioEncoding, EndpointingSettings, SessionSettings
from eardrum.transcription import SAMPLE_RATE, Capabilities, SpeechTask, TranscriptionRequest

MAX_PROMPT = 4000
"""The longest prompt, in characters; models read far fewer."""

ENCODINGS = {
    **dict.fromkeys(("s16le", "pcm16", "pcm_s16le", "linear16", "pcm", "raw", "audio/pcm", "audio/raw"), AudioEncoding.PCM16),
    **dict.fromkeys(("f32le", "pcm_f32le", "float32"), AudioEncoding.PCM32F),
    **dict.fromkeys(("mulaw", "ulaw", "pcm_mulaw", "g711_ulaw", "pcmu", "audio/pcmu"), AudioEncoding.MULAW),
    **dict.fromkeys(("alaw", "pcm_alaw", "g711_alaw", "pcma", "audio/pcma"), AudioEncoding.ALAW),
    **dict.fromkeys(("container", "webm", "ogg", "opus", "mp3", "wav", "flac", "mp4", "m4a"), AudioEncoding.CONTAINER),
}
CONTAINER_PREFIXES = ("audio/", "video/")
"""Prefixes of content types, so that clients can send `MediaRecorder.mimeType` unchanged."""


def read_text(name: str, value: Any) -> str:
    """Read a string; null is empty."""
    if value is not None and not isinstance(value, str):
        raise make_error(name, "a string", value)
    return (value or "").strip()


def read_prompt(name: str, value: Any) -> str:
    """Read a prompt, cut to `MAX_PROMPT` characters."""
    return read_text(name, value)[:MAX_PROMPT]


def read_language(name: str, value: Any) -> str | None:
    """Read a language code; None lets the model detect the language."""
    return parse_language(read_text(name, value))


def read_task(name: str, value: Any) -> SpeechTask:
    """Read the task, transcription or translation."""
    try:
        return SpeechTask(read_text(name, value) or SpeechTask.TRANSCRIBE)
    except ValueError:
        raise make_error(name, "transcribe or translate", value) from None


def read_flag(name: str, value: Any) -> bool:
    """Read a boolean; null is false, and an empty string is true, as in `?partials`."""
    if isinstance(value, bool):
        return value
    if value is None:
        return False
    values = {"true": True, "1": True, "yes": True, "on": True, "": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return values[str(value).strip().lower()]
    except KeyError:
        raise make_error(name, "true or false", value) from None


def read_number(name: str, value: Any, minimum: float, maximum: float) -> float:
    """Read a number within bounds."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not minimum <= found <= maximum:
        raise make_error(name, f"a number from {minimum:g} to {maximum:g}", value)
    return found


def read_integer(name: str, value: Any, minimum: int, maximum: int) -> int:
    """Read an integer within bounds."""
    found = read_number(name, value, minimum, maximum)
    if found != int(found):
        raise make_error(name, "a whole number", value)
    return int(found)


def read_words(name: str, value: Any) -> tuple[str, ...]:
    """Read a list of strings, given as a list, as JSON, or separated by commas."""
    if isinstance(value, str):
        value = read_json(name, value) if value.lstrip().startswith("[") else value.split(",")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise make_error(name, "a list of strings", value)
    return tuple(item.strip() for item in value if item.strip())


def read_encoding(name: str, value: Any) -> AudioEncoding:
    """Read the encoding of the audio, by name or content type."""
    spelled = read_text(name, value).lower()
    if found := ENCODINGS.get(spelled.partition(";")[0].strip()):
        return found
    if spelled.startswith(CONTAINER_PREFIXES):
        return AudioEncoding.CONTAINER
    known = ", ".join(encoding.value for encoding in AudioEncoding)
    raise make_error(name, f"{known}, or the content type of a recording", value)


def read_mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Read an object, or its JSON."""
    if isinstance(value, str):
        value = read_json(name, value)
    if not isinstance(value, dict):
        raise make_error(name, "true, false or an object", value)
    return value


def read_json(name: str, value: str) -> Any:
    """Parse a JSON value."""
    try:
        found = bounded_json.parse_json(value)
    except (ValueError, EardrumError):
        raise make_error(name, "valid JSON", value) from None
    check_surrogates(value, found)
    return found


def make_error(name: str, expected: str, value: Any) -> InvalidRequestError:
    """Make the error for an invalid value."""
    shown = json.dumps(value, ensure_ascii=False)[:100]
    return InvalidRequestError(f"{name} must be {expected}, not {shown}.", param=name)


TELEPHONE_RATE = 8000
"""Default sample rate of G.711, in Hz."""
RATES = 4000, 192_000
MAX_CHANNELS = 64
MAX_TRACKS = 1000
SAMPLE_BYTES = {AudioEncoding.PCM16: 2, AudioEncoding.PCM32F: 4, AudioEncoding.MULAW: 1, AudioEncoding.ALAW: 1}

ALIASES = {
    "keywords": "hotwords",
    "format": "encoding",
    "audio_format": "encoding",
    "rate": "sample_rate",
    "interim_results": "partials",
}
"""Names that similar APIs use for these settings."""

TURN_SETTINGS: dict[str, tuple[str, float, float]] = {
    "threshold": ("threshold", 1.0, 1.0),
    "prefix_padding_ms": ("prefix_s", 1000.0, 5000.0),
    "silence_duration_ms": ("silence_s", 1000.0, 10_000.0),
    "idle_timeout_ms": ("idle_s", 1000.0, 600_000.0),
}
"""Endpointing settings: the attribute, client units per unit of the attribute, and the maximum in client units."""

REQUEST_SETTINGS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "language": ("language", read_language),
    "prompt": ("prompt", read_prompt),
    "hotwords": ("hotwords", read_words),
    "task": ("task", read_task),
    "temperature": ("temperature", lambda name, value: read_number(name, value, 0.0, 1.0)),
    "words": ("words", read_flag),
}
"""Settings of the transcription request: the attribute, and its reader."""

FORMAT_SETTINGS = ("encoding", "sample_rate", "channels", "audio_track")
"""Settings that cannot change after the first audio."""

KNOWN_SETTINGS = ("model", *REQUEST_SETTINGS, *FORMAT_SETTINGS, "partials", "timestamp_granularities", "vad", *TURN_SETTINGS)


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """The configuration of a live session: its model and settings."""

    model: str = ""
    settings: SessionSettings = field(default_factory=SessionSettings)

    def update(self, given: Mapping[str, Any]) -> LiveConfig:
        """Return the configuration with the given settings changed.

        Raises:
            InvalidRequestError: a name is unknown or a value invalid; `param` names it.
        """
        named = {ALIASES.get(name, name): value for name, value in given.items()}
        if unknown := [name for name in named if name not in KNOWN_SETTINGS]:
            raise InvalidRequestError(
                f"Unknown setting {', '.join(map(repr, unknown))}; the settings are {', '.join(KNOWN_SETTINGS)}.",
                param=unknown[0],
            )
        model = read_text("model", named["model"]) if "model" in named else self.model
        settings = replace(
            self.settings,
            request=_read_request(self.settings.request, named),
            format=_read_format(self.settings, named),
            endpointing=_read_endpointing(self.settings.endpointing, named),
            partials=read_flag("partials", named["partials"]) if "partials" in named else self.settings.partials,
        )
        return LiveConfig(model, settings)

    @property
    def frame_bytes(self) -> int:
        """Bytes per frame, a sample of every channel; 1 for a container, which may end anywhere."""
        format = self.settings.format
        return 1 if format.encoding is AudioEncoding.CONTAINER else SAMPLE_BYTES[format.encoding] * format.channels

    def describe(self) -> dict[str, Any]:
        """Describe the settings by their names in the protocol."""
        request, format, turns = self.settings.request, self.settings.format, self.settings.endpointing
        raw = format.encoding is not AudioEncoding.CONTAINER
        return {
            "language": request.language,
            "task": request.task,
            "words": request.words,
            "partials": self.settings.partials,
            "encoding": format.encoding,
            **({"sample_rate": format.rate, "channels": format.channels} if raw else {}),
            "vad": {name: _describe_turn_setting(turns, name) for name in TURN_SETTINGS} if turns else None,
        }


def list_ignored(request: TranscriptionRequest, capabilities: Capabilities) -> list[str]:
    """List the hints that the model does not support. They are ignored, as they only improve the transcript."""
    hints = {
        "prompt": bool(request.prompt) and not capabilities.prompt,
        "hotwords": bool(request.hotwords) and not capabilities.hotwords,
        "temperature": request.temperature > 0 and not capabilities.temperature,
    }
    return [name for name, unused in hints.items() if unused]


def _read_request(before: TranscriptionRequest, named: Mapping[str, Any]) -> TranscriptionRequest:
    changes = {own: read(name, named[name]) for name, (own, read) in REQUEST_SETTINGS.items() if name in named}
    if "timestamp_granularities" in named:
        granularities = read_words("timestamp_granularities", named["timestamp_granularities"])
        if other := set(granularities) - {"word", "segment"}:
            raise make_error("timestamp_granularities", "word or segment", min(other))
        changes.setdefault("words", "word" in granularities)
    return replace(before, **changes)


def _read_format(before: SessionSettings, named: Mapping[str, Any]) -> Any:
    format = before.format
    if "encoding" in named:
        encoding = read_encoding("encoding", named["encoding"])
        phone = encoding in (AudioEncoding.MULAW, AudioEncoding.ALAW)
        format = replace(format, encoding=encoding, rate=TELEPHONE_RATE if phone else SAMPLE_RATE)
    if "sample_rate" in named:
        format = replace(format, rate=read_integer("sample_rate", named["sample_rate"], *RATES))
    if "channels" in named:
        format = replace(format, channels=read_integer("channels", named["channels"], 1, MAX_CHANNELS))
    if "audio_track" in named:
        format = replace(format, audio_track=read_integer("audio_track", named["audio_track"], 1, MAX_TRACKS))
    return format


def _read_endpointing(before: EndpointingSettings | None, named: Mapping[str, Any]) -> EndpointingSettings | None:
    """Read `vad`: a flag, or an object of the four settings, which may also stand beside it."""
    given = {name: named[name] for name in TURN_SETTINGS if name in named}
    vad = named.get("vad", before is not None or bool(given))
    if isinstance(vad, dict) or (isinstance(vad, str) and vad.lstrip().startswith("{")):
        parts = dict(read_mapping("vad", vad))
        parts.pop("type", None)
        if unknown := [name for name in parts if name not in TURN_SETTINGS]:
            raise InvalidRequestError(f"vad has no setting {unknown[0]!r}; it has {', '.join(TURN_SETTINGS)}.", param="vad")
        given = parts | given
    elif not read_flag("vad", vad):
        return None
    turns: dict[str, Any] = {TURN_SETTINGS[name][0]: _read_turn_setting(name, value) for name, value in given.items()}
    return replace(before or EndpointingSettings(), **turns)


def _read_turn_setting(name: str, value: Any) -> float | None:
    _, unit, maximum = TURN_SETTINGS[name]
    if value is None and name == "idle_timeout_ms":
        return None
    return read_number(name, value, 0.0, maximum) / unit


def _describe_turn_setting(turns: EndpointingSettings, name: str) -> float | None:
    own, unit, _ = TURN_SETTINGS[name]
    value = getattr(turns, own)
    return None if value is None else round(value * unit, 3)
