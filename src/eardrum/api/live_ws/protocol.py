"""Parses client messages and builds server messages of the live WebSocket protocol. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec import Struct

from eardrum.api.asgi import ErrorBodyBuilder
from eardrum.api.request_body import parse_object
from eardrum.api.transcript_formats import round_time
from eardrum.errors import InvalidRequestError, TooLargeError
from eardrum.live import (
    ClearCommand,
    CommandRefused,
    CommitCommand,
    FinalTranscript,
    FinishCommand,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SessionPaused,
    SpeechIdle,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceFailed,
)
from eardrum.transcription import Segment, Word

AUDIO_BYTES = 4 << 20
"""The largest audio message: two minutes of s16le at 16 kHz."""
TEXT_BYTES = 64 << 10

END_MARKER = "EOS"
"""A text or binary message with this content also ends the audio, as for agent-cli's server."""

FINISH_TYPES = ("finish", "stop", "end", "end_of_stream", "eos")
"""Message types that end the audio; `finish` is the documented one."""

CLIENT_TYPES = "config, commit, clear and finish"


class ConfigMessage(Struct, frozen=True):
    """A client's change of settings."""

    given: Mapping[str, Any]


ClientMessage = bytes | ConfigMessage | CommitCommand | ClearCommand | FinishCommand


def parse_message(message: str | bytes) -> ClientMessage:
    """Parse a client's message; bytes are audio.

    Raises:
        TooLargeError: the message is too large; the session must end.
        InvalidRequestError: the message is invalid.
    """
    if len(message) > (AUDIO_BYTES if isinstance(message, bytes) else TEXT_BYTES):
        raise TooLargeError(
            f"One message holds at most {AUDIO_BYTES >> 20} MiB of audio or {TEXT_BYTES >> 10} KiB of JSON: send smaller ones."
        )
    if isinstance(message, bytes):
        return FinishCommand() if message == END_MARKER.encode() else message
    return FinishCommand() if message.strip() == END_MARKER else _parse_command(_parse_object(message))


def _parse_object(message: str) -> dict[str, Any]:
    return parse_object(
        message,
        not_json="This text is not valid JSON ({error}). Text messages are JSON objects; audio goes into binary ones.",
        not_object='A text message is a JSON object, as in {"type": "commit"}.',
    )


def _parse_command(message: dict[str, Any]) -> ClientMessage:
    given = {name: value for name, value in message.items() if name != "type"}
    kind = message.get("type", "config" if given else None)
    if kind == "config":
        return ConfigMessage(given)
    if kind in FINISH_TYPES:
        return FinishCommand()
    if kind == "commit":
        return CommitCommand()
    if kind == "clear":
        return ClearCommand()
    shown = json.dumps(kind)[:100]
    raise InvalidRequestError(f"Unknown message type {shown}; the types are {CLIENT_TYPES}.", param="type")


def build_message(event: LiveEvent, build_error: ErrorBodyBuilder) -> dict[str, Any] | None:
    """Build the message for an event; None for `UtteranceCommitted`, which a final transcript follows."""
    if isinstance(event, UtteranceFailed | CommandRefused):
        which = {"utterance": event.utterance} if isinstance(event, UtteranceFailed) else {}
        return {"type": "error", **build_error(event.error), **which}
    builder = MESSAGE_BUILDERS.get(type(event))
    return builder(event) if builder else None


def _build_partial(event: PartialTranscript) -> dict[str, Any]:
    message = {
        "type": "partial",
        "utterance": event.utterance,
        "text": (event.stable + event.tentative).strip(),
        "stable": event.stable,
        "tentative": event.tentative,
        "start": round_time(event.start),
        "end": round_time(event.end),
        "is_final": False,
    }
    return message | ({"words": _describe_words(event.words)} if event.words else {})


def _build_final(event: FinalTranscript) -> dict[str, Any]:
    words = [word for segment in event.segments for word in segment.words]
    return {
        "type": "final",
        "utterance": event.utterance,
        "text": event.text.strip(),
        "start": round_time(event.start),
        "end": round_time(event.end),
        "language": event.language or None,
        "confidence": compute_confidence(event.segments),
        **({"speaker": event.speaker} if event.speaker else {}),
        **({"words": _describe_words(words)} if words else {}),
        "is_final": True,
    }


MESSAGE_BUILDERS: dict[type[LiveEvent], Callable[[Any], dict[str, Any]]] = {
    SpeechStarted: lambda event: {"type": "speech_started", "utterance": event.utterance, "start": round_time(event.at)},
    PartialTranscript: _build_partial,
    SpeechStopped: lambda event: {"type": "speech_stopped", "utterance": event.utterance, "end": round_time(event.at)},
    FinalTranscript: _build_final,
    UtteranceCleared: lambda event: {"type": "cleared", "utterance": event.utterance},
    SpeechIdle: lambda event: {"type": "idle", "at": round_time(event.at)},
    SessionPaused: lambda event: {"type": "rested", "after": round_time(event.after_s)},
    SessionEnded: lambda event: {
        "type": "done",
        "duration": round_time(event.duration),
        "language": event.language or None,
        **({"warnings": list(event.warnings)} if event.warnings else {}),
    },
}


def compute_confidence(segments: Iterable[Segment]) -> float | None:
    """Compute the mean token probability in 0..1, weighted by segment length; None if the engine reports none."""
    rated = [(segment.avg_logprob, max(segment.end - segment.start, 0.01)) for segment in segments if segment.avg_logprob < 0]
    if not rated:
        return None
    return round(math.exp(sum(logprob * length for logprob, length in rated) / sum(length for _, length in rated)), 3)


def _describe_words(words: Iterable[Word]) -> list[dict[str, Any]]:
    return [
        {
            "word": word.word,
            "start": round_time(word.start),
            "end": round_time(word.end),
            "probability": round(word.probability, 3),
        }
        for word in words
    ]
