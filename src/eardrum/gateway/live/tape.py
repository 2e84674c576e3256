"""What was said to a session, as far as a process may have to hear it again. Pure.

Positions are bytes of audio since the session began, times are seconds of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from eardrum.live import Clear, Command, Commit, Committed, Configure, Encoding, Finish, Settings

QUIET_S = 60.0
"""So much is kept of the audio that a process was sent and has told nothing of."""

SPEECH_S = 180.0
"""So much while there is speech in it: a runner that is behind has up to four long windows waiting."""

KEPT_BYTES = 16 << 20
"""And no more than this in any case."""

PIECE = 1 << 16
"""Bytes of audio that go on at a time."""

COMMAND_BYTES = 256
"""What a command counts for in `Tape.ahead`."""

ANSWERED_S = 1.0
"""A commit is answered by the first end of an utterance that is not longer ago than this: silence may have been cut off."""

WIDTHS = {Encoding.PCM16: 2, Encoding.PCM32F: 4, Encoding.MULAW: 1, Encoding.ALAW: 1}


@dataclass(slots=True)
class Said:
    """A command, and where in the audio it was given."""

    at: int
    command: Command
    sent: bool = False


@dataclass(frozen=True, slots=True)
class Replay:
    """How another process takes the session up."""

    settings: Settings
    items: list[bytes | Command]
    """What it hears again of utterances that have had their end; then comes what `Tape.take` gives."""
    clock: list[tuple[float, float]]
    """From the first time on, of the process's own, the second one is meant: the session's."""


class Tape:
    """Takes what is said, gives it on piece by piece, and can be rewound to what is not done with."""

    def __init__(self, settings: Settings):
        self.settings = settings
        """Those given last."""
        self.fed = 0
        self.sent = 0
        self.finished = False
        self.speech = False
        """Whether in what was sent there is speech, as far as is known, that has no text yet."""
        self._first = settings  # in force where what is kept begins
        self._audio = bytearray()
        self._begin = 0
        self._cut = 0
        self._commands: list[Said] = []

    @property
    def whole(self) -> bool:
        """Whether the audio cannot be taken up in the middle: what a container holds depends on its beginning."""
        return self.settings.format.encoding is Encoding.CONTAINER

    @property
    def kept_from(self) -> float:
        """The time at which what is kept begins."""
        return self.seconds(self._begin)

    @property
    def cut(self) -> float:
        """The end of the last utterance that has had one."""
        return self.seconds(self._cut)

    @property
    def ahead(self) -> int:
        """Bytes that no process was sent."""
        return self.fed - self.sent + COMMAND_BYTES * sum(not said.sent for said in self._commands)

    @property
    def unheard(self) -> bool:
        """Whether there is something that only a process can answer. `Finish` alone is not."""
        asks = any(isinstance(said.command, Commit | Clear) for said in self._commands)
        return self.sent < self.fed or asks or (self.settings.endpointing is None and self._cut < self.fed)

    def seconds(self, position: int) -> float:
        """The time of a position; 0 where it cannot be known."""
        if self.whole:
            return 0.0
        return position / (self.settings.format.rate * self._frame)

    def feed(self, audio: bytes) -> None:
        """More audio."""
        self._audio += audio
        self.fed += len(audio)

    def say(self, command: Command) -> None:
        """A command, given after the audio so far. The format may change only before the first."""
        if isinstance(command, Configure):
            self.settings = command.settings
            if not self.fed:
                self._first = command.settings
        self.finished = self.finished or isinstance(command, Finish)
        self._commands.append(Said(self.fed, command))

    def take(self) -> bytes | Command | None:
        """What the process is sent next; None if it has had everything."""
        waiting = next((said for said in self._commands if not said.sent), None)
        until = waiting.at if waiting else self.fed
        if self.sent < until:
            return self._piece(min(until, self.sent + PIECE))
        if not waiting:
            return None
        waiting.sent = True
        return waiting.command

    def committed(self, end: float) -> None:
        """An utterance has had its end there."""
        self._cut = max(self._cut, self._position(end))
        self._answered(Commit, before=self._position(end + ANSWERED_S))

    def cleared(self) -> None:
        """`Clear` was obeyed."""
        self._cut = max(self._cut, self._aligned(self._answered(Clear) or 0))

    def refused(self) -> None:
        """The runner refused a command; which one is not said, but only `Commit` waits for an answer."""
        self._answered(Commit)

    def forget(self, before: float | None = None) -> None:
        """What was before this time is done with; without a time, all that was sent."""
        self._begin_at(max(self._begin, self._aligned(self.sent) if before is None else self._position(before)))

    def rewind(self) -> None:
        """What was sent since the last end of an utterance was sent in vain: `take` gives it once more."""
        self.sent = self._cut = max(self._cut, self._begin)
        for said in self._commands:
            said.sent = said.at < self.sent

    def replay(self, committed: Iterable[Committed]) -> Replay:
        """How another process begins, after `rewind`: with these utterances, which have had their ends and are kept whole."""
        items: list[bytes | Command] = []
        clock: list[tuple[float, float]] = []
        heard = 0
        for utterance in committed:
            begin, end = self._position(utterance.start), self._position(utterance.end)
            settings = replace(self._settings_at(begin), endpointing=None, partials=False)
            items += [Configure(settings), bytes(self._audio[begin - self._begin : end - self._begin]), Commit()]
            clock.append((self.seconds(heard), utterance.start))
            heard += end - begin
        settings = self._settings_at(self.sent)
        if items:
            items.append(Configure(settings))
        return Replay(settings, items, [*clock, (self.seconds(heard), self.seconds(self.sent))])

    @property
    def _frame(self) -> int:
        return 1 if self.whole else WIDTHS[self.settings.format.encoding] * self.settings.format.channels

    @property
    def _kept(self) -> int:
        """Bytes of what was sent that may be kept."""
        if self.whole:
            return 0
        seconds = SPEECH_S if self.speech or self.settings.endpointing is None else QUIET_S
        return min(int(seconds * self.settings.format.rate) * self._frame, KEPT_BYTES // self._frame * self._frame)

    def _position(self, seconds: float) -> int:
        """Where this time is, as far as audio was kept and sent; between two samples, however odd the pieces are."""
        if self.whole:
            return self.sent
        return max(self._begin, min(self._aligned(self.sent), round(seconds * self.settings.format.rate) * self._frame))

    def _aligned(self, position: int) -> int:
        return position // self._frame * self._frame

    def _piece(self, until: int) -> bytes:
        piece = bytes(self._audio[self.sent - self._begin : until - self._begin])
        self.sent = until
        if self.sent - self._begin > self._kept:
            self._begin_at(self._aligned(self.sent - self._kept))
        return piece

    def _begin_at(self, position: int) -> None:
        del self._audio[: position - self._begin]
        self._begin = position
        while self._commands and self._commands[0].sent and self._commands[0].at < position:
            command = self._commands.pop(0).command
            if isinstance(command, Configure):
                self._first = command.settings

    def _settings_at(self, position: int) -> Settings:
        told = [said.command.settings for said in self._commands if said.at <= position and isinstance(said.command, Configure)]
        return told[-1] if told else self._first

    def _answered(self, kind: type[Command], before: int | None = None) -> int | None:
        """The oldest command of this kind has had its answer; gives its position."""
        for said in self._commands:
            if said.sent and isinstance(said.command, kind) and (before is None or said.at <= before):
                self._commands.remove(said)
                return said.at
        return None
