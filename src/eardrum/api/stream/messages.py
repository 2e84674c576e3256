"""Messages of the stream protocol: what a client says in the house's words, and what the house says in the client's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eardrum import json_text
from eardrum.api.whole_text import check_whole
from eardrum.errors import EardrumError, InvalidRequestError, TooLargeError
from eardrum.live import (
    Clear,
    Cleared,
    Commit,
    Ended,
    Failed,
    Final,
    Finish,
    Idle,
    LiveEvent,
    Partial,
    Refused,
    Rested,
    SpeechStarted,
    SpeechStopped,
)
from eardrum.types import Segment, Word

AUDIO_BYTES = 4 << 20
"""Of one message: two minutes of s16le at 16 kHz."""
TEXT_BYTES = 64 << 10

END = "EOS"
"""As a message of its own, text or binary, it ends the audio too: so do clients of agent-cli's server."""

FINISH = ("finish", "stop", "end", "end_of_stream", "eos")
"""Types that end the audio; we say `finish`."""

TYPES = "config, commit, clear and finish"

Worded = Callable[[EardrumError], dict[str, Any]]
"""An error as OpenAI's object."""


@dataclass(frozen=True, slots=True)
class Configured:
    """The client changes settings."""

    given: Mapping[str, Any]


Said = bytes | Configured | Commit | Clear | Finish


def said(message: str | bytes) -> Said:
    """What a message means; bytes are audio.

    Raises:
        TooLargeError: it is larger than any should be. The session is to end.
        InvalidRequestError: nobody knows what it means.
    """
    if len(message) > (AUDIO_BYTES if isinstance(message, bytes) else TEXT_BYTES):
        raise TooLargeError(
            f"One message holds at most {AUDIO_BYTES >> 20} MiB of audio or {TEXT_BYTES >> 10} KiB of JSON: send smaller ones."
        )
    if isinstance(message, bytes):
        return Finish() if message == END.encode() else message
    return Finish() if message.strip() == END else _command(_parsed(message))


def _parsed(message: str) -> dict[str, Any]:
    try:
        parsed = json_text.parsed(message)
    except ValueError as error:
        raise InvalidRequestError(
            f"This text is not valid JSON ({error}). Text messages are JSON objects; audio goes into binary ones."
        ) from None
    if not isinstance(parsed, dict):
        raise InvalidRequestError('A text message is a JSON object, as in {"type": "commit"}.')
    check_whole(message, parsed)
    return parsed


def _command(message: dict[str, Any]) -> Said:
    given = {name: value for name, value in message.items() if name != "type"}
    kind = message.get("type", "config" if given else None)
    if kind == "config":
        return Configured(given)
    if kind in FINISH:
        return Finish()
    if kind == "commit":
        return Commit()
    if kind == "clear":
        return Clear()
    shown = json.dumps(kind)[:100]
    raise InvalidRequestError(f"There is no message of type {shown}: a client sends {TYPES}.", param="type")


def told(event: LiveEvent, worded: Worded) -> dict[str, Any] | None:
    """The message for an event; `Committed` needs none, because a final follows."""
    if isinstance(event, Failed | Refused):
        which = {"utterance": event.utterance} if isinstance(event, Failed) else {}
        return {"type": "error", **worded(event.error), **which}
    tell = TOLD.get(type(event))
    return tell(event) if tell else None


def _partial(event: Partial) -> dict[str, Any]:
    message = {
        "type": "partial",
        "utterance": event.utterance,
        "text": (event.stable + event.tentative).strip(),
        "stable": event.stable,
        "tentative": event.tentative,
        "start": _time(event.start),
        "end": _time(event.end),
        "is_final": False,
    }
    return message | ({"words": _words(event.words)} if event.words else {})


def _final(event: Final) -> dict[str, Any]:
    words = [word for segment in event.segments for word in segment.words]
    return {
        "type": "final",
        "utterance": event.utterance,
        "text": event.text.strip(),
        "start": _time(event.start),
        "end": _time(event.end),
        "language": event.language or None,
        "confidence": confidence(event.segments),
        **({"words": _words(words)} if words else {}),
        "is_final": True,
    }


TOLD: dict[type[LiveEvent], Callable[[Any], dict[str, Any]]] = {
    SpeechStarted: lambda event: {"type": "speech_started", "utterance": event.utterance, "start": _time(event.at)},
    Partial: _partial,
    SpeechStopped: lambda event: {"type": "speech_stopped", "utterance": event.utterance, "end": _time(event.at)},
    Final: _final,
    Cleared: lambda event: {"type": "cleared", "utterance": event.utterance},
    Idle: lambda event: {"type": "idle", "at": _time(event.at)},
    Rested: lambda event: {"type": "rested", "after": _time(event.after_s)},
    Ended: lambda event: {
        "type": "done",
        "duration": _time(event.duration),
        "language": event.language or None,
        **({"warnings": list(event.warnings)} if event.warnings else {}),
    },
}


def confidence(segments: Iterable[Segment]) -> float | None:
    """The mean probability of a token, in 0..1, weighted by the length of segments; None where the engine does not tell."""
    told = [(segment.avg_logprob, max(segment.end - segment.start, 0.01)) for segment in segments if segment.avg_logprob < 0]
    if not told:
        return None
    return round(math.exp(sum(logprob * length for logprob, length in told) / sum(length for _, length in told)), 3)


def _words(words: Iterable[Word]) -> list[dict[str, Any]]:
    return [
        {"word": word.word, "start": _time(word.start), "end": _time(word.end), "probability": round(word.probability, 3)}
        for word in words
    ]


def _time(seconds: float) -> float:
    return round(seconds, 3)
