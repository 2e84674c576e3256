"""How live sessions cross the wall: messages to the runner, and a line of JSON for each event that comes back."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from eardrum.errors import InvalidRequestError, error_from_json
from eardrum.live import (
    Clear,
    Cleared,
    Command,
    Commit,
    Committed,
    Configure,
    Ended,
    Failed,
    Final,
    Finish,
    Idle,
    LiveEvent,
    Partial,
    Refused,
    Rested,
    Settings,
    SpeechStarted,
    SpeechStopped,
)

EVENTS: dict[str, Any] = {
    "speech_started": SpeechStarted,
    "partial": Partial,
    "speech_stopped": SpeechStopped,
    "committed": Committed,
    "final": Final,
    "failed": Failed,
    "cleared": Cleared,
    "refused": Refused,
    "idle": Idle,
    "ended": Ended,
    "rested": Rested,
}
NAMES = {kind: name for name, kind in EVENTS.items()}
COMMANDS: dict[str, Any] = {"configure": Configure, "commit": Commit, "clear": Clear, "finish": Finish}
COMMAND_NAMES = {kind: name for name, kind in COMMANDS.items()}


def event_line(event: LiveEvent) -> bytes:
    """The event as it crosses the wall: a line of JSON with one key."""
    return json.dumps({NAMES[type(event)]: event.to_json()}).encode() + b"\n"


def event_from(line: bytes | str) -> LiveEvent:
    """The event of a line.

    Raises:
        EardrumError: the line is `{"error": ...}`: the session is over.
    """
    ((kind, data),) = json.loads(line).items()
    if kind == "error":
        raise error_from_json(data)
    event: LiveEvent = EVENTS[kind].from_json(data)
    return event


HEAD = struct.Struct(">cI")
"""Before each message to the runner: what it is, and its length in bytes."""
AUDIO, COMMAND = b"a", b"c"
LARGEST = 16 << 20
"""Bytes of a message; more is taken for a broken stream."""


def audio_message(audio: bytes) -> bytes:
    """Audio as it crosses the wall."""
    return HEAD.pack(AUDIO, len(audio)) + audio


def command_message(command: Command) -> bytes:
    """A command as it crosses the wall."""
    body = json.dumps({COMMAND_NAMES[type(command)]: command.to_json()}).encode()
    return HEAD.pack(COMMAND, len(body)) + body


class Messages:
    """Takes bytes as they come and gives the messages in them: audio as bytes, or a command."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | Command]:
        """The messages that `data` completes.

        Raises:
            InvalidRequestError: this is not a stream of messages.
        """
        self._held += data
        while len(self._held) >= HEAD.size:
            kind, size = HEAD.unpack_from(self._held)
            if kind not in (AUDIO, COMMAND) or size > LARGEST:
                raise InvalidRequestError("What came is not a message of a live session.")
            if len(self._held) < HEAD.size + size:
                return
            body = bytes(self._held[HEAD.size : HEAD.size + size])
            del self._held[: HEAD.size + size]
            yield body if kind == AUDIO else _command(body)


def _command(body: bytes) -> Command:
    try:
        ((name, data),) = json.loads(body).items()
        if name == "configure":
            return Configure(Settings.from_json(data["settings"]))
        command: Command = COMMANDS[name]()
        return command
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequestError(f"What came is not a command of a live session: {error}") from error
