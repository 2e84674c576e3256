"""Encodes a live session between gateway and runner: framed messages to the runner, and a line of JSON for each event back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from eardrum.errors import InvalidRequestError, error_from_json
from eardrum.live import (
    ClearCommand,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    FinalTranscript,
    FinishCommand,
    LiveCommand,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SessionPaused,
    SessionSettings,
    SpeechIdle,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)

EVENT_TYPES: dict[str, Any] = {
    "speech_started": SpeechStarted,
    "partial": PartialTranscript,
    "speech_stopped": SpeechStopped,
    "committed": UtteranceCommitted,
    "final": FinalTranscript,
    "failed": UtteranceFailed,
    "cleared": UtteranceCleared,
    "refused": CommandRefused,
    "idle": SpeechIdle,
    "ended": SessionEnded,
    "rested": SessionPaused,
}
EVENT_NAMES = {kind: name for name, kind in EVENT_TYPES.items()}
COMMAND_TYPES: dict[str, Any] = {
    "configure": ConfigureCommand,
    "commit": CommitCommand,
    "clear": ClearCommand,
    "finish": FinishCommand,
}
COMMAND_NAMES = {kind: name for name, kind in COMMAND_TYPES.items()}


def encode_event(event: LiveEvent) -> bytes:
    """Encode an event: a line of JSON with one key."""
    return json.dumps({EVENT_NAMES[type(event)]: event.to_json()}).encode() + b"\n"


def decode_event(line: bytes | str) -> LiveEvent:
    """The event of a line.

    Raises:
        EardrumError: the line is `{"error": ...}`: the session is over.
    """
    ((kind, data),) = json.loads(line).items()
    if kind == "error":
        raise error_from_json(data)
    event: LiveEvent = EVENT_TYPES[kind].from_json(data)
    return event


MESSAGE_HEADER = struct.Struct(">cI")
"""Before each message to the runner: what it is, and its length in bytes."""
AUDIO_KIND, COMMAND_KIND = b"a", b"c"
MAX_MESSAGE_BYTES = 16 << 20
"""Bytes of a message; more is taken for a broken stream."""


def encode_audio(audio: bytes) -> bytes:
    """Encode audio as a framed message."""
    return MESSAGE_HEADER.pack(AUDIO_KIND, len(audio)) + audio


def encode_command(command: LiveCommand) -> bytes:
    """Encode a command as a framed message."""
    body = json.dumps({COMMAND_NAMES[type(command)]: command.to_json()}).encode()
    return MESSAGE_HEADER.pack(COMMAND_KIND, len(body)) + body


class MessageDecoder:
    """Takes bytes as they come and gives the messages in them: audio as bytes, or a command."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | LiveCommand]:
        """The messages that `data` completes.

        Raises:
            InvalidRequestError: this is not a stream of messages.
        """
        self._buffer += data
        while len(self._buffer) >= MESSAGE_HEADER.size:
            kind, size = MESSAGE_HEADER.unpack_from(self._buffer)
            if kind not in (AUDIO_KIND, COMMAND_KIND) or size > MAX_MESSAGE_BYTES:
                raise InvalidRequestError("What came is not a message of a live session.")
            if len(self._buffer) < MESSAGE_HEADER.size + size:
                return
            body = bytes(self._buffer[MESSAGE_HEADER.size : MESSAGE_HEADER.size + size])
            del self._buffer[: MESSAGE_HEADER.size + size]
            yield body if kind == AUDIO_KIND else _decode_command(body)


def _decode_command(body: bytes) -> LiveCommand:
    try:
        ((name, data),) = json.loads(body).items()
        if name == "configure":
            return ConfigureCommand(SessionSettings.from_json(data["settings"]))
        command: LiveCommand = COMMAND_TYPES[name]()
        return command
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequestError(f"What came is not a command of a live session: {error}") from error
