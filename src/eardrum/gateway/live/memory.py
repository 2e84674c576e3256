"""What a session remembers: what was said to it, and what it has told. Pure."""

from __future__ import annotations

import math

from eardrum.errors import EardrumError
from eardrum.gateway.live.tape import Replay, Tape
from eardrum.gateway.live.telling import Telling
from eardrum.live import Cleared, Committed, LiveEvent, Refused, Settings


class Memory:
    """The tape and the telling of one session, which belong together."""

    def __init__(self, settings: Settings):
        self.tape = Tape(settings)
        self.telling = Telling()

    @property
    def unheard(self) -> bool:
        """Whether a process is needed for what was said so far."""
        return self.tape.unheard or self._speech

    @property
    def torn(self) -> bool:
        """Whether no other process could take the session up."""
        return self.tape.whole and self.tape.sent > 0

    def begin(self) -> Replay:
        """Another process begins like this."""
        replay = self.tape.replay(self.telling.open.values())
        self.telling.begin(replay.clock)
        return replay

    def hear(self, event: LiveEvent) -> LiveEvent | None:
        """What the client is told of a process's event, if it does not know; what is done with is forgotten."""
        told = self.telling.hear(event)
        match told:
            case Committed(end=end):
                self.tape.committed(end)
            case Cleared():
                self.tape.cleared()
            case Refused():
                self.tape.refused()
        self.tape.forget(self.telling.needed(self.tape.cut))
        self.tape.speech = self._speech
        return told

    def lose(self, error: EardrumError) -> list[LiveEvent]:
        """The process is gone. What the client is told of utterances that cannot be heard again; the others can."""
        kept_from = math.inf if self.torn else self.tape.kept_from
        manual = self.tape.settings.endpointing is None
        lost = self.telling.lose(kept_from, self.tape.cut, error, manual=manual)
        self.tape.rewind()
        return lost

    def rest(self) -> None:
        """Nothing was said for long: what nothing was told of is no speech."""
        if not self.unheard:
            self.tape.forget()

    @property
    def _speech(self) -> bool:
        return bool(self.telling.open or self.telling.current)
