"""Values of settings as clients write them: in JSON, or as text in a query."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from eardrum import json_text
from eardrum.api.whole_text import check_whole
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.languages import language_code
from eardrum.live import Encoding
from eardrum.types import Task

MAX_PROMPT = 4000
"""Characters; models look at far fewer."""

ENCODINGS = {
    **dict.fromkeys(("s16le", "pcm16", "pcm_s16le", "linear16", "pcm", "raw", "audio/pcm", "audio/raw"), Encoding.PCM16),
    **dict.fromkeys(("f32le", "pcm_f32le", "float32"), Encoding.PCM32F),
    **dict.fromkeys(("mulaw", "ulaw", "pcm_mulaw", "g711_ulaw", "pcmu", "audio/pcmu"), Encoding.MULAW),
    **dict.fromkeys(("alaw", "pcm_alaw", "g711_alaw", "pcma", "audio/pcma"), Encoding.ALAW),
    **dict.fromkeys(("container", "webm", "ogg", "opus", "mp3", "wav", "flac", "mp4", "m4a"), Encoding.CONTAINER),
}
CONTAINERS = ("audio/", "video/")
"""Beginnings of content types: `MediaRecorder.mimeType` may be sent as it is."""


def text(name: str, value: Any) -> str:
    """A text; null is none."""
    if value is not None and not isinstance(value, str):
        raise wrong(name, "a text", value)
    return (value or "").strip()


def prompt(name: str, value: Any) -> str:
    """A prompt, cut where no model looks any more."""
    return text(name, value)[:MAX_PROMPT]


def language(name: str, value: Any) -> str | None:
    """A language's code; none lets the model decide."""
    return language_code(text(name, value))


def task(name: str, value: Any) -> Task:
    """What to do with the speech."""
    try:
        return Task(text(name, value) or Task.TRANSCRIBE)
    except ValueError:
        raise wrong(name, "transcribe or translate", value) from None


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if isinstance(value, bool):
        return value
    if value is None:
        return False
    known = {"true": True, "1": True, "yes": True, "on": True, "": True, "false": False, "0": False, "no": False, "off": False}
    try:
        return known[str(value).strip().lower()]
    except KeyError:
        raise wrong(name, "true or false", value) from None


def number(name: str, value: Any, least: float, most: float) -> float:
    """A number within bounds."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = float("nan")
    if not least <= found <= most:
        raise wrong(name, f"a number from {least:g} to {most:g}", value)
    return found


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number within bounds."""
    found = number(name, value, least, most)
    if found != int(found):
        raise wrong(name, "a whole number", value)
    return int(found)


def words(name: str, value: Any) -> tuple[str, ...]:
    """A list, as one, as JSON, or with commas between."""
    if isinstance(value, str):
        value = parsed(name, value) if value.lstrip().startswith("[") else value.split(",")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise wrong(name, "a list of texts", value)
    return tuple(item.strip() for item in value if item.strip())


def encoding(name: str, value: Any) -> Encoding:
    """How audio is written down."""
    spelled = text(name, value).lower()
    if found := ENCODINGS.get(spelled.partition(";")[0].strip()):
        return found
    if spelled.startswith(CONTAINERS):
        return Encoding.CONTAINER
    known = ", ".join(encoding.value for encoding in Encoding)
    raise wrong(name, f"{known}, or the content type of a recording", value)


def mapping(name: str, value: Any) -> Mapping[str, Any]:
    """An object."""
    if isinstance(value, str):
        value = parsed(name, value)
    if not isinstance(value, dict):
        raise wrong(name, "true, false or an object", value)
    return value


def parsed(name: str, value: str) -> Any:
    """What a JSON text says."""
    try:
        found = json_text.parsed(value)
    except (ValueError, EardrumError):
        raise wrong(name, "valid JSON", value) from None
    check_whole(value, found)
    return found


def wrong(name: str, expected: str, value: Any) -> InvalidRequestError:
    """The refusal of a value."""
    shown = json.dumps(value, ensure_ascii=False)[:100]
    return InvalidRequestError(f"{name} must be {expected}, not {shown}.", param=name)
