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
"""Characters; models look at far fewer."""

ENCODINGS = {
    **dict.fromkeys(("s16le", "pcm16", "pcm_s16le", "linear16", "pcm", "raw", "audio/pcm", "audio/raw"), AudioEncoding.PCM16),
    **dict.fromkeys(("f32le", "pcm_f32le", "float32"), AudioEncoding.PCM32F),
    **dict.fromkeys(("mulaw", "ulaw", "pcm_mulaw", "g711_ulaw", "pcmu", "audio/pcmu"), AudioEncoding.MULAW),
    **dict.fromkeys(("alaw", "pcm_alaw", "g711_alaw", "pcma", "audio/pcma"), AudioEncoding.ALAW),
    **dict.fromkeys(("container", "webm", "ogg", "opus", "mp3", "wav", "flac", "mp4", "m4a"), AudioEncoding.CONTAINER),
}
CONTAINER_PREFIXES = ("audio/", "video/")
"""Beginnings of content types: `MediaRecorder.mimeType` may be sent as it is."""


def read_text(name: str, value: Any) -> str:
    """A text; null is none."""
    if value is not None and not isinstance(value, str):
        raise make_error(name, "a text", value)
    return (value or "").strip()


def read_prompt(name: str, value: Any) -> str:
    """A prompt, cut where no model looks any more."""
    return read_text(name, value)[:MAX_PROMPT]


def read_language(name: str, value: Any) -> str | None:
    """A language's code; none lets the model decide."""
    return parse_language(read_text(name, value))


def read_task(name: str, value: Any) -> SpeechTask:
    """What to do with the speech."""
    try:
        return SpeechTask(read_text(name, value) or SpeechTask.TRANSCRIBE)
    except ValueError:
        raise make_error(name, "transcribe or translate", value) from None


def read_flag(name: str, value: Any) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    if value is None:
        return False
    known = {"true": True, "1": True, "yes": True, "on": True, "": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return known[str(value).strip().lower()]
    except KeyError:
        raise make_error(name, "true or false", value) from None


def read_number(name: str, value: Any, least: float, most: float) -> float:
    """A number within bounds."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not least <= found <= most:
        raise make_error(name, f"a number from {least:g} to {most:g}", value)
    return found


def read_integer(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within bounds."""
    found = read_number(name, value, least, most)
    if found != int(found):
        raise make_error(name, "a whole number", value)
    return int(found)


def read_words(name: str, value: Any) -> tuple[str, ...]:
    """A list, as one, as JSON, or with commas between."""
    if isinstance(value, str):
        value = read_json(name, value) if value.lstrip().startswith("[") else value.split(",")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise make_error(name, "a list of texts", value)
    return tuple(item.strip() for item in value if item.strip())


def read_encoding(name: str, value: Any) -> AudioEncoding:
    """How audio is written down."""
    spelled = read_text(name, value).lower()
    if found := ENCODINGS.get(spelled.partition(";")[0].strip()):
        return found
    if spelled.startswith(CONTAINER_PREFIXES):
        return AudioEncoding.CONTAINER
    known = ", ".join(encoding.value for encoding in AudioEncoding)
    raise make_error(name, f"{known}, or the content type of a recording", value)


def read_mapping(name: str, value: Any) -> Mapping[str, Any]:
    """An object."""
    if isinstance(value, str):
        value = read_json(name, value)
    if not isinstance(value, dict):
        raise make_error(name, "true, false or an object", value)
    return value


def read_json(name: str, value: str) -> Any:
    """What a JSON text says."""
    try:
        found = bounded_json.parse_json(value)
    except (ValueError, EardrumError):
        raise make_error(name, "valid JSON", value) from None
    check_surrogates(value, found)
    return found


def make_error(name: str, expected: str, value: Any) -> InvalidRequestError:
    """The refusal of a value."""
    shown = json.dumps(value, ensure_ascii=False)[:100]
    return InvalidRequestError(f"{name} must be {expected}, not {shown}.", param=name)


TELEPHONE_RATE = 8000
"""Hz of G.711, unless something else is said."""
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
"""Other names for settings, by which clients of similar routes know them."""

TURN_SETTINGS: dict[str, tuple[str, float, float]] = {
    "threshold": ("threshold", 1.0, 1.0),
    "prefix_padding_ms": ("prefix_s", 1000.0, 5000.0),
    "silence_duration_ms": ("silence_s", 1000.0, 10_000.0),
    "idle_timeout_ms": ("idle_s", 1000.0, 600_000.0),
}
"""Settings of endpointing: the house's name, how much bigger the client's unit is, and the most it may be."""

REQUEST_SETTINGS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "language": ("language", read_language),
    "prompt": ("prompt", read_prompt),
    "hotwords": ("hotwords", read_words),
    "task": ("task", read_task),
    "temperature": ("temperature", lambda name, value: read_number(name, value, 0.0, 1.0)),
    "words": ("words", read_flag),
}
"""Settings that are the request's: the house's name, and how they are read."""

FORMAT_SETTINGS = ("encoding", "sample_rate", "channels", "audio_track")
"""Settings that cannot change once there was audio."""

KNOWN_SETTINGS = ("model", *REQUEST_SETTINGS, *FORMAT_SETTINGS, "partials", "timestamp_granularities", "vad", *TURN_SETTINGS)


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """A session as its client wants it."""

    model: str = ""
    settings: SessionSettings = field(default_factory=SessionSettings)

    def update(self, given: Mapping[str, Any]) -> LiveConfig:
        """The same, but for what is given.

        Raises:
            InvalidRequestError: a name nobody knows, or a value that cannot be; `param` names it.
        """
        named = {ALIASES.get(name, name): value for name, value in given.items()}
        if unknown := [name for name in named if name not in KNOWN_SETTINGS]:
            raise InvalidRequestError(
                f"There is no setting {', '.join(map(repr, unknown))}; there are {', '.join(KNOWN_SETTINGS)}.", param=unknown[0]
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
        """Bytes of one sample of every channel; 1 in a container, which may end anywhere."""
        format = self.settings.format
        return 1 if format.encoding is AudioEncoding.CONTAINER else SAMPLE_BYTES[format.encoding] * format.channels

    def describe(self) -> dict[str, Any]:
        """The settings in the client's words."""
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


def list_ignored(request: TranscriptionRequest, can: Capabilities) -> list[str]:
    """Hints that this model cannot take. They change nothing about what is asked, so it answers without them."""
    hints = {
        "prompt": bool(request.prompt) and not can.prompt,
        "hotwords": bool(request.hotwords) and not can.hotwords,
        "temperature": request.temperature > 0 and not can.temperature,
    }
    return [name for name, unused in hints.items() if unused]


def _read_request(before: TranscriptionRequest, named: Mapping[str, Any]) -> TranscriptionRequest:
    wishes = {own: read(name, named[name]) for name, (own, read) in REQUEST_SETTINGS.items() if name in named}
    if "timestamp_granularities" in named:
        granularities = read_words("timestamp_granularities", named["timestamp_granularities"])
        if other := set(granularities) - {"word", "segment"}:
            raise make_error("timestamp_granularities", "word or segment", min(other))
        wishes.setdefault("words", "word" in granularities)
    return replace(before, **wishes)


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
    """`vad` is a flag, or an object of the four settings, which may also stand beside it."""
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
    _, unit, most = TURN_SETTINGS[name]
    if value is None and name == "idle_timeout_ms":
        return None
    return read_number(name, value, 0.0, most) / unit


def _describe_turn_setting(turns: EndpointingSettings, name: str) -> float | None:
    own, unit, _ = TURN_SETTINGS[name]
    value = getattr(turns, own)
    return None if value is None else round(value * unit, 3)
