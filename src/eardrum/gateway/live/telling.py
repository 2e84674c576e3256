"""Makes the events of one process after another into those of one session. Pure."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from eardrum.errors import EardrumError
from eardrum.live import (
    Cleared,
    Committed,
    Ended,
    Failed,
    Final,
    Idle,
    LiveEvent,
    Partial,
    Refused,
    SpeechStarted,
    SpeechStopped,
)
from eardrum.text import behind, glued

ROUNDING_S = 0.001
"""Times are floats, and audio begins and ends with samples."""


class Telling:
    """Knows what the client was told. A process that takes over tells some of it again, in numbers and times of its own."""

    def __init__(self) -> None:
        self.open: dict[int, Committed] = {}
        """Utterances that have had their end, but no text."""
        self.current = 0
        """The one in progress, if something was told of it; 0 is none."""
        self.finals = 0
        self._since = 0.0
        self._until = 0.0
        self._stopped = 0
        self._last = 0
        self._stable: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        self._taken_up: deque[int] = deque()
        self._again: deque[int] = deque()
        self._clock = [(0.0, 0.0)]
        self._on: dict[type, Callable[[Any], LiveEvent | None]] = {
            SpeechStarted: self._speech_started,
            Partial: self._partial,
            SpeechStopped: self._speech_stopped,
            Committed: self._committed,
            Final: self._final,
            Failed: self._failed,
            Cleared: self._cleared,
            Refused: self._refused,
            Idle: lambda event: replace(event, at=self._time(event.at)),
            Ended: lambda event: replace(event, duration=self._time(event.duration, ending=True)),
        }

    def begin(self, clock: list[tuple[float, float]]) -> None:
        """Another process tells from now on: first of the utterances that are open, then of the one in progress."""
        self._clock = clock
        self._numbers = {}
        self._again = deque(self.open)
        self._taken_up = deque([*self.open, *([self.current] if self.current else [])])

    def hear(self, event: LiveEvent) -> LiveEvent | None:
        """What the client is told; None if it knows."""
        return self._on[type(event)](event)

    def needed(self, cut: float) -> float:
        """The time from which on audio may have to be heard again, if the last end of an utterance was at `cut`."""
        return min([cut, *(utterance.start for utterance in self.open.values())])

    def lose(self, before: float, cut: float, error: EardrumError, *, manual: bool) -> list[LiveEvent]:
        """The audio before a time cannot be heard again: utterances that it belonged to get no text.

        `cut` is the last end of an utterance. If ends are `manual`, all audio since then is one. An infinite time is all of it.
        """
        gone = [number for number, utterance in self.open.items() if utterance.start < before - ROUNDING_S]
        lost = [self._without_text(number, error) for number in gone]
        since = cut if manual else self._since
        if (self.current or manual) and since < before - ROUNDING_S:
            self.current = self.current or self._last + 1
            self._last = max(self._last, self.current)
            end = before if before < math.inf else max(since, self._until)
            lost += [Committed(self.current, since, end), Failed(self.current, error)]
            self._stable.pop(self.current, None)
            self.current = 0
        return lost

    def _number(self, its: int) -> int:
        if its not in self._numbers:
            self._numbers[its] = self._taken_up.popleft() if self._taken_up else self._last + 1
            self._last = max(self._last, self._numbers[its])
        return self._numbers[its]

    def _time(self, position: float, *, ending: bool = False) -> float:
        """A time of the process on the session's clock. Where two stretches meet, an end belongs to the first one."""
        begun = [(own, meant) for own, meant in self._clock if own < position or (own <= position and not ending)]
        own, meant = begun[-1] if begun else self._clock[0]
        self._until = max(self._until, meant + position - own)
        return meant + position - own

    def _begun(self, number: int, since: float) -> bool:
        """Whether this is the first that is told of the utterance."""
        if number == self.current:
            return False
        self.current, self._since = number, since
        return True

    def _speech_started(self, event: SpeechStarted) -> LiveEvent | None:
        number, at = self._number(event.utterance), self._time(event.at)
        return SpeechStarted(number, at) if number not in self.open and self._begun(number, at) else None

    def _partial(self, event: Partial) -> LiveEvent | None:
        number, start = self._number(event.utterance), self._time(event.start)
        if number in self.open or not event.stable.startswith(self._stable.get(number, "")):
            return None  # another process may hear other words, but what was told stays
        self._begun(number, start)
        self._stable[number] = event.stable
        words = tuple(replace(w, start=self._time(w.start), end=self._time(w.end, ending=True)) for w in event.words)
        return replace(event, utterance=number, start=start, end=self._time(event.end, ending=True), words=words)

    def _speech_stopped(self, event: SpeechStopped) -> LiveEvent | None:
        number = self._number(event.utterance)
        if number in self.open or number == self._stopped:
            return None
        self._stopped = number
        return SpeechStopped(number, self._time(event.at, ending=True))

    def _committed(self, event: Committed) -> LiveEvent | None:
        number = self._number(event.utterance)
        if self._again:
            self._again.popleft()
            return None
        self.open[number] = told = Committed(number, self._time(event.start), self._time(event.end, ending=True))
        self.current = 0
        return told

    def _final(self, event: Final) -> LiveEvent:
        number, start, end = self._number(event.utterance), self._time(event.start), self._time(event.end, ending=True)
        told = self.open.pop(number, None) or Committed(number, start, end)
        promised = self._stable.pop(number, "")
        text = glued(promised, behind(promised, event.text))
        self._numbers.pop(event.utterance)
        self.finals += 1
        segments = tuple(segment.on(self._time) for segment in event.segments)
        return replace(event, utterance=number, start=told.start, end=told.end, text=text, segments=segments)

    def _failed(self, event: Failed) -> LiveEvent:
        number = self._number(event.utterance)
        self._numbers.pop(event.utterance)
        return self._without_text(number, event.error)

    def _without_text(self, number: int, error: EardrumError) -> LiveEvent:
        self.open.pop(number, None)
        self._stable.pop(number, None)
        return Failed(number, error)

    def _cleared(self, event: Cleared) -> LiveEvent:
        number = self._number(event.utterance) if event.utterance else 0
        self._numbers.pop(event.utterance, None)
        self._stable.pop(number, None)
        self.current = 0
        return Cleared(number)

    def _refused(self, event: Refused) -> LiveEvent:
        """A commit that was obeyed before, and now is not, leaves its utterance without a text."""
        if not self._again:
            return event
        return self._without_text(self._again.popleft(), event.error)
