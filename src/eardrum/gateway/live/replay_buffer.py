"""Buffers the audio and commands of a session that another process may need again. Pure.

Positions are bytes of audio since the session began, times are seconds of it. `SessionHistory` joins the buffer with the
session's event merger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

from msgspec import Struct
from msgspec.structs import replace

from eardrum.errors import EardrumError
from eardrum.gateway.live.client_events import SessionEventMerger
from eardrum.live import (
    AudioEncoding,
    ClearCommand,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    FinishCommand,
    LiveCommand,
    LiveEvent,
    SessionSettings,
    UtteranceCleared,
    UtteranceCommitted,
)

SILENCE_KEPT_S = 60.0
"""Seconds of sent audio that are kept while no speech was reported in them."""

SPEECH_KEPT_S = 180.0
"""Seconds of sent audio that are kept while there is speech: a runner that is behind holds up to four long windows."""

MAX_KEPT_BYTES = 16 << 20
"""Maximum bytes of sent audio that are kept."""

CHUNK_BYTES = 1 << 16
"""Bytes of audio that are sent at a time."""

COMMAND_BYTES = 256
"""Bytes that a command counts in `ReplayBuffer.unsent_bytes`."""

COMMIT_ANSWER_S = 0.05
"""A commit is answered by the end of an utterance that is at most this long before it: a runner that resamples holds some
milliseconds back. An utterance that a pause ended shortly before is no answer."""


@dataclass(slots=True)
class BufferedCommand:
    """A command and its position in the audio."""

    position: int
    command: LiveCommand
    sent: bool = False


class SessionReplay(Struct, frozen=True):
    """The input of the process that continues a session."""

    settings: SessionSettings
    items: list[bytes | LiveCommand]
    """Audio and commands of committed utterances. The messages of `ReplayBuffer.take_next` follow."""
    time_map: list[tuple[float, float]]
    """Pairs of times: from the process's time on, the session's time is the second one."""


class ReplayBuffer:
    """Holds audio and commands, hands them out in order, and can be rewound to the end of the last utterance."""

    def __init__(self, settings: SessionSettings):
        self.settings = settings
        """The latest settings."""
        self.fed_bytes = 0
        self.sent_bytes = 0
        self.finished = False
        self.has_speech = False
        """Whether the sent audio holds speech that has no text yet."""
        self._first_settings = settings  # in force at the start of the kept audio
        self._audio = bytearray()
        self._begin = 0
        self._last_commit = 0
        self._commands: list[BufferedCommand] = []

    @property
    def is_container(self) -> bool:
        """Whether the audio is a container, which cannot be decoded from the middle."""
        return self.settings.format.encoding is AudioEncoding.CONTAINER

    @property
    def kept_since(self) -> float:
        """The start of the kept audio."""
        return self.to_seconds(self._begin)

    @property
    def last_commit(self) -> float:
        """The end of the last committed utterance."""
        return self.to_seconds(self._last_commit)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that were not sent to a process yet."""
        return self.fed_bytes - self.sent_bytes + COMMAND_BYTES * sum(not item.sent for item in self._commands)

    @property
    def has_pending(self) -> bool:
        """Whether a process is needed for the input so far. `FinishCommand` alone needs none."""
        asks = any(isinstance(item.command, CommitCommand | ClearCommand) for item in self._commands)
        return (
            self.sent_bytes < self.fed_bytes or asks or (self.settings.endpointing is None and self._last_commit < self.fed_bytes)
        )

    def to_seconds(self, position: int) -> float:
        """Return the time of a position; 0 if it is unknown."""
        if self.is_container:
            return 0.0
        return position / (self.settings.format.rate * self._frame_bytes)

    def feed(self, audio: bytes) -> None:
        """Add audio."""
        self._audio += audio
        self.fed_bytes += len(audio)

    def add_command(self, command: LiveCommand) -> None:
        """Add a command after the audio so far. The format may change only before the first audio."""
        if isinstance(command, ConfigureCommand):
            self.settings = command.settings
            if not self.fed_bytes:
                self._first_settings = command.settings
        self.finished = self.finished or isinstance(command, FinishCommand)
        self._commands.append(BufferedCommand(self.fed_bytes, command))
        if isinstance(command, ConfigureCommand):
            self._drop_unused_settings()

    def take_next(self) -> bytes | LiveCommand | None:
        """Return the next message for the process; None if everything was sent."""
        waiting = next((item for item in self._commands if not item.sent), None)
        until = waiting.position if waiting else self.fed_bytes
        if self.sent_bytes < until:
            return self._take_audio(min(until, self.sent_bytes + CHUNK_BYTES))
        if not waiting:
            return None
        waiting.sent = True
        return waiting.command

    def record_commit(self, end: float) -> None:
        """Record the end of an utterance."""
        self._last_commit = max(self._last_commit, self._to_position(end))
        before = self._to_position(end + COMMIT_ANSWER_S) + self._frame_bytes - 1  # it may have come in the middle of a sample
        self._pop_answered(CommitCommand, before=before)

    def record_clear(self) -> None:
        """Record that a `ClearCommand` was executed."""
        self._last_commit = max(self._last_commit, self._align(self._pop_answered(ClearCommand) or 0))

    def record_refusal(self) -> None:
        """Record that the runner refused a command: it must be a `CommitCommand`, since no other one waits for an answer."""
        self._pop_answered(CommitCommand)

    def drop_before(self, before: float | None = None) -> None:
        """Drop the audio before this time; without a time, all sent audio."""
        self._drop_audio(max(self._begin, self._align(self.sent_bytes) if before is None else self._to_position(before)))

    def copy_audio(self, start: float, end: float) -> bytes:
        """Return the audio between two times, as far as it is kept."""
        return bytes(self._audio[self._to_position(start) - self._begin : self._to_position(end) - self._begin])

    def rewind(self) -> None:
        """Return to the end of the last utterance: `take_next` hands out again what was sent since."""
        self.sent_bytes = self._last_commit = max(self._last_commit, self._begin)
        for item in self._commands:
            item.sent = item.position < self.sent_bytes

    def build_replay(self, committed: Iterable[UtteranceCommitted]) -> SessionReplay:
        """Build the input of another process after `rewind`: these committed utterances, which are kept completely."""
        items: list[bytes | LiveCommand] = []
        time_map: list[tuple[float, float]] = []
        replayed_bytes = 0
        for utterance in committed:
            begin, end = self._to_position(utterance.start), self._to_position(utterance.end)
            settings = replace(self._find_settings(begin), endpointing=None, partials=False)
            items += [ConfigureCommand(settings), bytes(self._audio[begin - self._begin : end - self._begin]), CommitCommand()]
            time_map.append((self.to_seconds(replayed_bytes), utterance.start))
            replayed_bytes += end - begin
        settings = self._find_settings(self.sent_bytes)
        if items:
            items.append(ConfigureCommand(settings))
        return SessionReplay(settings, items, [*time_map, (self.to_seconds(replayed_bytes), self.to_seconds(self.sent_bytes))])

    @property
    def _frame_bytes(self) -> int:
        return self.settings.format.frame_bytes

    @property
    def _max_kept(self) -> int:
        """Maximum bytes of sent audio to keep."""
        if self.is_container:
            return 0
        seconds = SPEECH_KEPT_S if self.has_speech or self.settings.endpointing is None else SILENCE_KEPT_S
        return min(
            int(seconds * self.settings.format.rate) * self._frame_bytes, MAX_KEPT_BYTES // self._frame_bytes * self._frame_bytes
        )

    def _to_position(self, seconds: float) -> int:
        """Return the position of a time within the kept and sent audio, at a sample boundary."""
        if self.is_container:
            return self.sent_bytes
        return max(self._begin, min(self._align(self.sent_bytes), round(seconds * self.settings.format.rate) * self._frame_bytes))

    def _align(self, position: int) -> int:
        return position // self._frame_bytes * self._frame_bytes

    def _take_audio(self, until: int) -> bytes:
        piece = bytes(self._audio[self.sent_bytes - self._begin : until - self._begin])
        self.sent_bytes = until
        if self.sent_bytes - self._begin > self._max_kept:
            self._drop_audio(self._align(self.sent_bytes - self._max_kept))
        return piece

    def _drop_audio(self, position: int) -> None:
        del self._audio[: position - self._begin]
        self._begin = position
        while self._commands and self._commands[0].sent and self._commands[0].position < position:
            command = self._commands.pop(0).command
            if isinstance(command, ConfigureCommand):
                self._first_settings = command.settings

    def _drop_unused_settings(self) -> None:
        """Drop changes of settings that others followed at once: a client may change them for hours and send no audio."""
        self._commands = [
            item
            for item, after in zip_longest(self._commands, self._commands[1:])
            if not (
                after
                and item.position == after.position
                and isinstance(item.command, ConfigureCommand)
                and isinstance(after.command, ConfigureCommand)
            )
        ]

    def _find_settings(self, position: int) -> SessionSettings:
        changes = [
            item.command.settings
            for item in self._commands
            if item.position <= position and isinstance(item.command, ConfigureCommand)
        ]
        return changes[-1] if changes else self._first_settings

    def _pop_answered(self, kind: type[LiveCommand], before: int | None = None) -> int | None:
        """Remove the oldest sent command of this kind, which was answered, and return its position."""
        for item in self._commands:
            if item.sent and isinstance(item.command, kind) and (before is None or item.position <= before):
                self._commands.remove(item)
                return item.position
        return None


class SessionHistory:
    """Joins the replay buffer and the event merger of one session."""

    def __init__(self, settings: SessionSettings):
        self.buffer = ReplayBuffer(settings)
        self.merger = SessionEventMerger()

    @property
    def has_pending(self) -> bool:
        """Whether a process is needed for the input so far."""
        return self.buffer.has_pending or self._has_speech

    @property
    def is_unresumable(self) -> bool:
        """Whether no other process can continue the session."""
        return self.buffer.is_container and self.buffer.sent_bytes > 0

    def start_replay(self) -> SessionReplay:
        """Start another process: return its input."""
        replay = self.buffer.build_replay(self.merger.open_utterances.values())
        self.merger.start_process(replay.time_map)
        return replay

    def handle_event(self, event: LiveEvent) -> LiveEvent | None:
        """Return the client's event for a process's event, or None if the client has it. Drops audio that is no longer needed."""
        update = self.merger.merge_event(event)
        match update:
            case UtteranceCommitted(end=end):
                self.buffer.record_commit(end)
            case UtteranceCleared():
                self.buffer.record_clear()
            case CommandRefused():
                self.buffer.record_refusal()
        self.buffer.drop_before(self.merger.find_needed_start(self.buffer.last_commit))
        self.buffer.has_speech = self._has_speech
        return update

    def handle_crash(self, error: EardrumError) -> list[LiveEvent]:
        """Handle the end of the process: return the failures of utterances whose audio is gone. The others are replayed."""
        kept_from = math.inf if self.is_unresumable else self.buffer.kept_since
        manual = self.buffer.settings.endpointing is None
        lost = self.merger.fail_lost(kept_from, self.buffer.last_commit, error, manual=manual)
        self.buffer.rewind()
        return lost

    def drop_silence(self) -> None:
        """Drop sent audio after a long time without speech."""
        if not self.has_pending:
            self.buffer.drop_before()

    @property
    def _has_speech(self) -> bool:
        return bool(self.merger.open_utterances or self.merger.current_utterance)
