"""What a client wants of its session, from the query of its address and from its `config` messages, which have the same names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eardrum.api.stream import values
from eardrum.errors import InvalidRequestError
from eardrum.live import Encoding, Endpointing, Settings
from eardrum.types import SAMPLE_RATE, Capabilities, Request

TELEPHONE_RATE = 8000
"""Hz of G.711, unless something else is said."""
RATES = 4000, 192_000
MAX_CHANNELS = 64
MOST_TRACKS = 1000
SAMPLE_BYTES = {Encoding.PCM16: 2, Encoding.PCM32F: 4, Encoding.MULAW: 1, Encoding.ALAW: 1}

ALIASES = {
    "keywords": "hotwords",
    "format": "encoding",
    "audio_format": "encoding",
    "rate": "sample_rate",
    "interim_results": "partials",
}
"""Other names for settings, by which clients of similar routes know them."""

TURNS: dict[str, tuple[str, float, float]] = {
    "threshold": ("threshold", 1.0, 1.0),
    "prefix_padding_ms": ("prefix_s", 1000.0, 5000.0),
    "silence_duration_ms": ("silence_s", 1000.0, 10_000.0),
    "idle_timeout_ms": ("idle_s", 1000.0, 600_000.0),
}
"""Settings of endpointing: the house's name, how much bigger the client's unit is, and the most it may be."""

ASKED: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "language": ("language", values.language),
    "prompt": ("prompt", values.prompt),
    "hotwords": ("hotwords", values.words),
    "task": ("task", values.task),
    "temperature": ("temperature", lambda name, value: values.number(name, value, 0.0, 1.0)),
    "words": ("words", values.flag),
}
"""Settings that are the request's: the house's name, and how they are read."""

FORMAT = ("encoding", "sample_rate", "channels", "audio_track")
"""Settings that cannot change once there was audio."""

KNOWN = ("model", *ASKED, *FORMAT, "partials", "timestamp_granularities", "vad", *TURNS)


@dataclass(frozen=True, slots=True)
class Config:
    """A session as its client wants it."""

    model: str = ""
    settings: Settings = field(default_factory=Settings)

    def changed(self, given: Mapping[str, Any]) -> Config:
        """The same, but for what is given.

        Raises:
            InvalidRequestError: a name nobody knows, or a value that cannot be; `param` names it.
        """
        named = {ALIASES.get(name, name): value for name, value in given.items()}
        if unknown := [name for name in named if name not in KNOWN]:
            raise InvalidRequestError(
                f"There is no setting {', '.join(map(repr, unknown))}; there are {', '.join(KNOWN)}.", param=unknown[0]
            )
        model = values.text("model", named["model"]) if "model" in named else self.model
        settings = replace(
            self.settings,
            request=_request(self.settings.request, named),
            format=_format(self.settings, named),
            endpointing=_endpointing(self.settings.endpointing, named),
            partials=values.flag("partials", named["partials"]) if "partials" in named else self.settings.partials,
        )
        return Config(model, settings)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel; 1 in a container, which may end anywhere."""
        format = self.settings.format
        return 1 if format.encoding is Encoding.CONTAINER else SAMPLE_BYTES[format.encoding] * format.channels

    def shown(self) -> dict[str, Any]:
        """The settings in the client's words."""
        request, format, turns = self.settings.request, self.settings.format, self.settings.endpointing
        raw = format.encoding is not Encoding.CONTAINER
        return {
            "language": request.language,
            "task": request.task,
            "words": request.words,
            "partials": self.settings.partials,
            "encoding": format.encoding,
            **({"sample_rate": format.rate, "channels": format.channels} if raw else {}),
            "vad": {name: _told(turns, name) for name in TURNS} if turns else None,
        }


def ignored(request: Request, can: Capabilities) -> list[str]:
    """Hints that this model cannot take. They change nothing about what is asked, so it answers without them."""
    hints = {
        "prompt": bool(request.prompt) and not can.prompt,
        "hotwords": bool(request.hotwords) and not can.hotwords,
        "temperature": request.temperature > 0 and not can.temperature,
    }
    return [name for name, unused in hints.items() if unused]


def _request(before: Request, named: Mapping[str, Any]) -> Request:
    wishes = {own: read(name, named[name]) for name, (own, read) in ASKED.items() if name in named}
    if "timestamp_granularities" in named:
        granularities = values.words("timestamp_granularities", named["timestamp_granularities"])
        if other := set(granularities) - {"word", "segment"}:
            raise values.wrong("timestamp_granularities", "word or segment", min(other))
        wishes.setdefault("words", "word" in granularities)
    return replace(before, **wishes)


def _format(before: Settings, named: Mapping[str, Any]) -> Any:
    format = before.format
    if "encoding" in named:
        encoding = values.encoding("encoding", named["encoding"])
        phone = encoding in (Encoding.MULAW, Encoding.ALAW)
        format = replace(format, encoding=encoding, rate=TELEPHONE_RATE if phone else SAMPLE_RATE)
    if "sample_rate" in named:
        format = replace(format, rate=values.whole("sample_rate", named["sample_rate"], *RATES))
    if "channels" in named:
        format = replace(format, channels=values.whole("channels", named["channels"], 1, MAX_CHANNELS))
    if "audio_track" in named:
        format = replace(format, audio_track=values.whole("audio_track", named["audio_track"], 1, MOST_TRACKS))
    return format


def _endpointing(before: Endpointing | None, named: Mapping[str, Any]) -> Endpointing | None:
    """`vad` is a flag, or an object of the four settings, which may also stand beside it."""
    given = {name: named[name] for name in TURNS if name in named}
    vad = named.get("vad", before is not None or bool(given))
    if isinstance(vad, dict) or (isinstance(vad, str) and vad.lstrip().startswith("{")):
        parts = dict(values.mapping("vad", vad))
        parts.pop("type", None)
        if unknown := [name for name in parts if name not in TURNS]:
            raise InvalidRequestError(f"vad has no setting {unknown[0]!r}; it has {', '.join(TURNS)}.", param="vad")
        given = parts | given
    elif not values.flag("vad", vad):
        return None
    turns: dict[str, Any] = {TURNS[name][0]: _turn(name, value) for name, value in given.items()}
    return replace(before or Endpointing(), **turns)


def _turn(name: str, value: Any) -> float | None:
    _, unit, most = TURNS[name]
    if value is None and name == "idle_timeout_ms":
        return None
    return values.number(name, value, 0.0, most) / unit


def _told(turns: Endpointing, name: str) -> float | None:
    own, unit, _ = TURNS[name]
    value = getattr(turns, own)
    return None if value is None else round(value * unit, 3)
