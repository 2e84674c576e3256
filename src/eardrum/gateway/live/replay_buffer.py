"""Buffers a session's audio and commands as far as another process may have to hear them again. Pure.

Positions are bytes of audio since the session began, times are seconds of it. `SessionHistory` joins the buffer with the
session's event merger.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

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
"""So much is kept of the audio that a process was sent and has told nothing of."""

SPEECH_KEPT_S = 180.0
"""So much while there is speech in it: a runner that is behind has up to four long windows waiting."""

MAX_KEPT_BYTES = 16 << 20
"""And no more than this in any case."""

CHUNK_BYTES = 1 << 16
"""Bytes of audio that go on at a time."""

COMMAND_BYTES = 256
"""What a command counts for in `Tape.ahead`."""

COMMIT_ANSWER_S = 1.0
"""A commit is answered by the first end of an utterance that is not longer ago than this: silence may have been cut off."""

SAMPLE_WIDTHS = {AudioEncoding.PCM16: 2, AudioEncoding.PCM32F: 4, AudioEncoding.MULAW: 1, AudioEncoding.ALAW: 1}


@dataclass(slots=True)
class BufferedCommand:
    """A command, and where in the audio it was given."""

    position: int
    command: LiveCommand
    sent: bool = False


@dataclass(frozen=True, slots=True)
class SessionReplay:
    """How another process takes the session up."""

    settings: SessionSettings
    items: list[bytes | LiveCommand]
    """What it hears again of utterances that have had their end; then comes what `Tape.take` gives."""
    time_map: list[tuple[float, float]]
    """From the first time on, of the process's own, the second one is meant: the session's."""


class ReplayBuffer:
    """Takes what is said, gives it on piece by piece, and can be rewound to what is not done with."""

    def __init__(self, settings: SessionSettings):
        self.settings = settings
        """Those given last."""
        self.fed_bytes = 0
        self.sent_bytes = 0
        self.finished = False
        self.has_speech = False
        """Whether in what was sent there is speech, as far as is known, that has no text yet."""
        self._first_settings = settings  # in force where what is kept begins
        self._audio = bytearray()
        self._begin = 0
        self._last_commit = 0
        self._commands: list[BufferedCommand] = []

    @property
    def is_container(self) -> bool:
        """Whether the audio cannot be taken up in the middle: what a container holds depends on its beginning."""
        return self.settings.format.encoding is AudioEncoding.CONTAINER

    @property
    def kept_since(self) -> float:
        """The time at which what is kept begins."""
        return self.to_seconds(self._begin)

    @property
    def last_commit(self) -> float:
        """The end of the last utterance that has had one."""
        return self.to_seconds(self._last_commit)

    @property
    def unsent_bytes(self) -> int:
        """Bytes that no process was sent."""
        return self.fed_bytes - self.sent_bytes + COMMAND_BYTES * sum(not said.sent for said in self._commands)

    @property
    def has_pending(self) -> bool:
        """Whether there is something that only a process can answer. `Finish` alone is not."""
        asks = any(isinstance(said.command, CommitCommand | ClearCommand) for said in self._commands)
        return (
            self.sent_bytes < self.fed_bytes or asks or (self.settings.endpointing is None and self._last_commit < self.fed_bytes)
        )

    def to_seconds(self, position: int) -> float:
        """The time of a position; 0 where it cannot be known."""
        if self.is_container:
            return 0.0
        return position / (self.settings.format.rate * self._frame_bytes)

    def feed(self, audio: bytes) -> None:
        """More audio."""
        self._audio += audio
        self.fed_bytes += len(audio)

    def add_command(self, command: LiveCommand) -> None:
        """A command, given after the audio so far. The format may change only before the first."""
        if isinstance(command, ConfigureCommand):
            self.settings = command.settings
            if not self.fed_bytes:
                self._first_settings = command.settings
        self.finished = self.finished or isinstance(command, FinishCommand)
        self._commands.append(BufferedCommand(self.fed_bytes, command))

    def take_next(self) -> bytes | LiveCommand | None:
        """What the process is sent next; None if it has had everything."""
        waiting = next((said for said in self._commands if not said.sent), None)
        until = waiting.position if waiting else self.fed_bytes
        if self.sent_bytes < until:
            return self._take_audio(min(until, self.sent_bytes + CHUNK_BYTES))
        if not waiting:
            return None
        waiting.sent = True
        return waiting.command

    def record_commit(self, end: float) -> None:
        """An utterance has had its end there."""
        self._last_commit = max(self._last_commit, self._to_position(end))
        self._pop_answered(CommitCommand, before=self._to_position(end + COMMIT_ANSWER_S))

    def record_clear(self) -> None:
        """`Clear` was obeyed."""
        self._last_commit = max(self._last_commit, self._align(self._pop_answered(ClearCommand) or 0))

    def record_refusal(self) -> None:
        """The runner refused a command; which one is not said, but only `Commit` waits for an answer."""
        self._pop_answered(CommitCommand)

    def drop_before(self, before: float | None = None) -> None:
        """What was before this time is done with; without a time, all that was sent."""
        self._drop_audio(max(self._begin, self._align(self.sent_bytes) if before is None else self._to_position(before)))

    def rewind(self) -> None:
        """What was sent since the last end of an utterance was sent in vain: `take` gives it once more."""
        self.sent_bytes = self._last_commit = max(self._last_commit, self._begin)
        for said in self._commands:
            said.sent = said.position < self.sent_bytes

    def build_replay(self, committed: Iterable[UtteranceCommitted]) -> SessionReplay:
        """How another process begins, after `rewind`: with these utterances, which have had their ends and are kept whole."""
        items: list[bytes | LiveCommand] = []
        clock: list[tuple[float, float]] = []
        heard = 0
        for utterance in committed:
            begin, end = self._to_position(utterance.start), self._to_position(utterance.end)
            settings = replace(self._find_settings(begin), endpointing=None, partials=False)
            items += [ConfigureCommand(settings), bytes(self._audio[begin - self._begin : end - self._begin]), CommitCommand()]
            clock.append((self.to_seconds(heard), utterance.start))
            heard += end - begin
        settings = self._find_settings(self.sent_bytes)
        if items:
            items.append(ConfigureCommand(settings))
        return SessionReplay(settings, items, [*clock, (self.to_seconds(heard), self.to_seconds(self.sent_bytes))])

    @property
    def _frame_bytes(self) -> int:
        return 1 if self.is_container else SAMPLE_WIDTHS[self.settings.format.encoding] * self.settings.format.channels

    @property
    def _max_kept(self) -> int:
        """Bytes of what was sent that may be kept."""
        if self.is_container:
            return 0
        seconds = SPEECH_KEPT_S if self.has_speech or self.settings.endpointing is None else SILENCE_KEPT_S
        return min(
            int(seconds * self.settings.format.rate) * self._frame_bytes, MAX_KEPT_BYTES // self._frame_bytes * self._frame_bytes
        )

    def _to_position(self, seconds: float) -> int:
        """Where this time is, as far as audio was kept and sent; between two samples, however odd the pieces are."""
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

    def _find_settings(self, position: int) -> SessionSettings:
        told = [
            said.command.settings
            for said in self._commands
            if said.position <= position and isinstance(said.command, ConfigureCommand)
        ]
        return told[-1] if told else self._first_settings

    def _pop_answered(self, kind: type[LiveCommand], before: int | None = None) -> int | None:
        """The oldest command of this kind has had its answer; gives its position."""
        for said in self._commands:
            if said.sent and isinstance(said.command, kind) and (before is None or said.position <= before):
                self._commands.remove(said)
                return said.position
        return None


class SessionHistory:
    """The tape and the telling of one session, which belong together."""

    def __init__(self, settings: SessionSettings):
        self.buffer = ReplayBuffer(settings)
        self.merger = SessionEventMerger()

    @property
    def has_pending(self) -> bool:
        """Whether a process is needed for what was said so far."""
        return self.buffer.has_pending or self._has_speech

    @property
    def is_unresumable(self) -> bool:
        """Whether no other process could take the session up."""
        return self.buffer.is_container and self.buffer.sent_bytes > 0

    def start_replay(self) -> SessionReplay:
        """Another process begins like this."""
        replay = self.buffer.build_replay(self.merger.open_utterances.values())
        self.merger.start_process(replay.time_map)
        return replay

    def handle_event(self, event: LiveEvent) -> LiveEvent | None:
        """What the client is told of a process's event, if it does not know; what is done with is forgotten."""
        told = self.merger.merge_event(event)
        match told:
            case UtteranceCommitted(end=end):
                self.buffer.record_commit(end)
            case UtteranceCleared():
                self.buffer.record_clear()
            case CommandRefused():
                self.buffer.record_refusal()
        self.buffer.drop_before(self.merger.find_needed_start(self.buffer.last_commit))
        self.buffer.has_speech = self._has_speech
        return told

    def handle_crash(self, error: EardrumError) -> list[LiveEvent]:
        """The process is gone. What the client is told of utterances that cannot be heard again; the others can."""
        kept_from = math.inf if self.is_unresumable else self.buffer.kept_since
        manual = self.buffer.settings.endpointing is None
        lost = self.merger.fail_lost(kept_from, self.buffer.last_commit, error, manual=manual)
        self.buffer.rewind()
        return lost

    def drop_silence(self) -> None:
        """Nothing was said for long: what nothing was told of is no speech."""
        if not self.has_pending:
            self.buffer.drop_before()

    @property
    def _has_speech(self) -> bool:
        return bool(self.merger.open_utterances or self.merger.current_utterance)
