"""The events of a live session: merges those of one process after another, and queues them for the client.

`SessionEventMerger` is pure.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from eardrum.errors import EardrumError
from eardrum.live import (
    CommandRefused,
    FinalTranscript,
    LiveEvent,
    PartialTranscript,
    SessionEnded,
    SpeechIdle,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.text import append_text, remove_known_text

ROUNDING_S = 0.001
"""Times are floats, and audio begins and ends with samples."""


class SessionEventMerger:
    """Knows what the client was told. A process that takes over tells some of it again, in numbers and times of its own."""

    def __init__(self) -> None:
        self.open_utterances: dict[int, UtteranceCommitted] = {}
        """Utterances that have had their end, but no text."""
        self.current_utterance = 0
        """The one in progress, if something was told of it; 0 is none."""
        self.final_count = 0
        self._since = 0.0
        self._until = 0.0
        self._stopped = 0
        self._last_number = 0
        self._stable: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        self._resumed: deque[int] = deque()
        self._replayed: deque[int] = deque()
        self._time_map = [(0.0, 0.0)]
        self._handlers: dict[type, Callable[[Any], LiveEvent | None]] = {
            SpeechStarted: self._on_speech_started,
            PartialTranscript: self._on_partial,
            SpeechStopped: self._on_speech_stopped,
            UtteranceCommitted: self._on_committed,
            FinalTranscript: self._on_final,
            UtteranceFailed: self._on_failed,
            UtteranceCleared: self._on_cleared,
            CommandRefused: self._on_refused,
            SpeechIdle: lambda event: replace(event, at=self._map_time(event.at)),
            SessionEnded: lambda event: replace(event, duration=self._map_time(event.duration, ending=True)),
        }

    def start_process(self, clock: list[tuple[float, float]]) -> None:
        """Another process tells from now on: first of the utterances that are open, then of the one in progress."""
        self._time_map = clock
        self._numbers = {}
        self._replayed = deque(self.open_utterances)
        self._resumed = deque([*self.open_utterances, *([self.current_utterance] if self.current_utterance else [])])

    def merge_event(self, event: LiveEvent) -> LiveEvent | None:
        """What the client is told; None if it knows."""
        return self._handlers[type(event)](event)

    def find_needed_start(self, cut: float) -> float:
        """The time from which on audio may have to be heard again, if the last end of an utterance was at `cut`."""
        return min([cut, *(utterance.start for utterance in self.open_utterances.values())])

    def fail_lost(self, before: float, cut: float, error: EardrumError, *, manual: bool) -> list[LiveEvent]:
        """The audio before a time cannot be heard again: utterances that it belonged to get no text.

        `cut` is the last end of an utterance. If ends are `manual`, all audio since then is one. An infinite time is all of it.
        """
        gone = [number for number, utterance in self.open_utterances.items() if utterance.start < before - ROUNDING_S]
        lost = [self._fail_utterance(number, error) for number in gone]
        since = cut if manual else self._since
        if (self.current_utterance or manual) and since < before - ROUNDING_S:
            self.current_utterance = self.current_utterance or self._last_number + 1
            self._last_number = max(self._last_number, self.current_utterance)
            end = before if before < math.inf else max(since, self._until)
            lost += [UtteranceCommitted(self.current_utterance, since, end), UtteranceFailed(self.current_utterance, error)]
            self._stable.pop(self.current_utterance, None)
            self.current_utterance = 0
        return lost

    def _map_number(self, its: int) -> int:
        if its not in self._numbers:
            self._numbers[its] = self._resumed.popleft() if self._resumed else self._last_number + 1
            self._last_number = max(self._last_number, self._numbers[its])
        return self._numbers[its]

    def _map_time(self, position: float, *, ending: bool = False) -> float:
        """A time of the process on the session's clock. Where two stretches meet, an end belongs to the first one."""
        begun = [(own, meant) for own, meant in self._time_map if own < position or (own <= position and not ending)]
        own, meant = begun[-1] if begun else self._time_map[0]
        self._until = max(self._until, meant + position - own)
        return meant + position - own

    def _begin_utterance(self, number: int, since: float) -> bool:
        """Whether this is the first that is told of the utterance."""
        if number == self.current_utterance:
            return False
        self.current_utterance, self._since = number, since
        return True

    def _on_speech_started(self, event: SpeechStarted) -> LiveEvent | None:
        number, at = self._map_number(event.utterance), self._map_time(event.at)
        return SpeechStarted(number, at) if number not in self.open_utterances and self._begin_utterance(number, at) else None

    def _on_partial(self, event: PartialTranscript) -> LiveEvent | None:
        number, start = self._map_number(event.utterance), self._map_time(event.start)
        if number in self.open_utterances or not event.stable.startswith(self._stable.get(number, "")):
            return None  # another process may hear other words, but what was told stays
        self._begin_utterance(number, start)
        self._stable[number] = event.stable
        words = tuple(replace(w, start=self._map_time(w.start), end=self._map_time(w.end, ending=True)) for w in event.words)
        return replace(event, utterance=number, start=start, end=self._map_time(event.end, ending=True), words=words)

    def _on_speech_stopped(self, event: SpeechStopped) -> LiveEvent | None:
        number = self._map_number(event.utterance)
        if number in self.open_utterances or number == self._stopped:
            return None
        self._stopped = number
        return SpeechStopped(number, self._map_time(event.at, ending=True))

    def _on_committed(self, event: UtteranceCommitted) -> LiveEvent | None:
        number = self._map_number(event.utterance)
        if self._replayed:
            self._replayed.popleft()
            return None
        self.open_utterances[number] = told = UtteranceCommitted(
            number, self._map_time(event.start), self._map_time(event.end, ending=True)
        )
        self.current_utterance = 0
        return told

    def _on_final(self, event: FinalTranscript) -> LiveEvent:
        number, start, end = (
            self._map_number(event.utterance),
            self._map_time(event.start),
            self._map_time(event.end, ending=True),
        )
        told = self.open_utterances.pop(number, None) or UtteranceCommitted(number, start, end)
        promised = self._stable.pop(number, "")
        text = append_text(promised, remove_known_text(promised, event.text))
        self._numbers.pop(event.utterance)
        self.final_count += 1
        segments = tuple(segment.map_times(self._map_time) for segment in event.segments)
        return replace(event, utterance=number, start=told.start, end=told.end, text=text, segments=segments)

    def _on_failed(self, event: UtteranceFailed) -> LiveEvent:
        number = self._map_number(event.utterance)
        self._numbers.pop(event.utterance)
        return self._fail_utterance(number, event.error)

    def _fail_utterance(self, number: int, error: EardrumError) -> LiveEvent:
        self.open_utterances.pop(number, None)
        self._stable.pop(number, None)
        return UtteranceFailed(number, error)

    def _on_cleared(self, event: UtteranceCleared) -> LiveEvent:
        number = self._map_number(event.utterance) if event.utterance else 0
        self._numbers.pop(event.utterance, None)
        self._stable.pop(number, None)
        self.current_utterance = 0
        return UtteranceCleared(number)

    def _on_refused(self, event: CommandRefused) -> LiveEvent:
        """A commit that was obeyed before, and now is not, leaves its utterance without a text."""
        if not self._replayed:
            return event
        return self._fail_utterance(self._replayed.popleft(), event.error)


MAX_WAITING_EVENTS = 256
"""Events that wait for an edge; then the process is not read from."""


class SessionEventQueue:
    """Holds them until the edge takes them. A partial takes the place of the one before it if that was not taken."""

    def __init__(self) -> None:
        self._events: deque[LiveEvent] = deque()
        self._error: BaseException | None = None
        self._available = asyncio.Event()
        self._room = asyncio.Event()
        self.closed = False

    def put_event(self, event: LiveEvent) -> None:
        """One more; none follows `Ended`."""
        if self.closed:
            return
        if isinstance(event, PartialTranscript) and self._events and _is_superseded(self._events[-1], event):
            self._events[-1] = event
        else:
            self._events.append(event)
        self.closed = isinstance(event, SessionEnded)
        self._available.set()

    async def wait_for_room(self) -> None:
        """Wait while too many wait."""
        while len(self._events) >= MAX_WAITING_EVENTS:
            self._room.clear()
            await self._room.wait()

    def close(self, error: BaseException) -> None:
        """No more comes, for this reason."""
        if not self.closed:
            self.closed, self._error = True, error
            self._available.set()

    async def stream_events(self) -> AsyncGenerator[LiveEvent, None]:
        """All of them, up to `Ended`.

        Raises:
            BaseException: what they ended with instead.
        """
        while True:
            while self._events:
                event = self._events.popleft()
                self._room.set()
                yield event
                if isinstance(event, SessionEnded):
                    return
            if self._error:
                raise self._error
            self._available.clear()
            await self._available.wait()


def _is_superseded(old: LiveEvent, new: PartialTranscript) -> bool:
    return isinstance(old, PartialTranscript) and old.utterance == new.utterance
