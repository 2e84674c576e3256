"""The events of a live session: merges those of one process after another, and queues them for the client.

`SessionEventMerger` is pure.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

from msgspec.structs import replace

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
from eardrum.transcription import TimeMapping

ROUNDING_S = 0.001
"""Tolerance for times, which are floats, while audio begins and ends with samples."""

LEAST_UTTERANCE_S = 0.09
"""No utterance is shorter."""


class SessionEventMerger:
    """Merges the events of one process after another. A later process repeats events, with its own numbers and times."""

    def __init__(self) -> None:
        self.open_utterances: dict[int, UtteranceCommitted] = {}
        """Committed utterances without a text yet."""
        self.current_utterance = 0
        """The utterance in progress, if the client has an event of it; 0 is none."""
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

    def start_process(self, time_map: list[tuple[float, float]]) -> None:
        """Expect the events of another process: first those of the open utterances, then those of the one in progress."""
        self._time_map = time_map
        self._numbers = {}
        self._replayed = deque(self.open_utterances)
        self._resumed = deque([*self.open_utterances, *([self.current_utterance] if self.current_utterance else [])])

    def merge_event(self, event: LiveEvent) -> LiveEvent | None:
        """Return the client's event; None if the client has it already."""
        return self._handlers[type(event)](event)

    def find_needed_start(self, last_commit: float) -> float:
        """Return the start of the audio that a replay needs, if the last utterance ended at `last_commit`."""
        return min([last_commit, *(utterance.start for utterance in self.open_utterances.values())])

    def fail_lost(self, before: float, last_commit: float, error: EardrumError, *, manual: bool) -> list[LiveEvent]:
        """Fail the utterances whose audio begins before a time, because that audio is gone. Infinity means all audio.

        `last_commit` is the end of the last utterance. With `manual` commits, all audio since then is one utterance.
        """
        gone = [number for number, utterance in self.open_utterances.items() if utterance.start < before - ROUNDING_S]
        lost = [self._fail_utterance(number, error) for number in gone]
        since = last_commit if manual else self._since
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
        """Convert a process's time to the session's time. Where two stretches meet, an end belongs to the first one."""
        begun = [(own, meant) for own, meant in self._time_map if own < position or (own <= position and not ending)]
        own, meant = begun[-1] if begun else self._time_map[0]
        self._until = max(self._until, meant + position - own)
        return meant + position - own

    def _get_clock(self, start: float, end: float) -> TimeMapping:
        """Return the conversion for all times of an utterance: that of its middle, as no utterance is in two stretches.

        Its own times would not tell: its first window may begin up to a frame before the stretch does, where the last one of the
        utterance before it ended in the middle of that frame.
        """
        middle = (start + end) / 2
        own, meant = next((pair for pair in reversed(self._time_map) if pair[0] <= middle), self._time_map[0])
        self._until = max(self._until, meant + end - own)
        return lambda position, *, ending=False: meant + position - own

    def _begin_utterance(self, number: int, since: float) -> bool:
        """Start an utterance. Return whether the client has no event of it yet."""
        if number == self.current_utterance:
            return False
        self.current_utterance, self._since = number, since
        return True

    def _on_speech_started(self, event: SpeechStarted) -> LiveEvent | None:
        number, at = self._map_number(event.utterance), self._get_clock(event.at, event.at + LEAST_UTTERANCE_S)(event.at)
        return SpeechStarted(number, at) if number not in self.open_utterances and self._begin_utterance(number, at) else None

    def _on_partial(self, event: PartialTranscript) -> LiveEvent | None:
        number, clock = self._map_number(event.utterance), self._get_clock(event.start, event.end)
        start = clock(event.start)
        if number in self.open_utterances or not event.stable.startswith(self._stable.get(number, "")):
            return None  # another process may find other words, but stable text stays
        self._begin_utterance(number, start)
        self._stable[number] = event.stable
        words = tuple(replace(word, start=clock(word.start), end=clock(word.end)) for word in event.words)
        return replace(event, utterance=number, start=start, end=clock(event.end), words=words)

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
        clock = self._get_clock(event.start, event.end)
        self.open_utterances[number] = told = UtteranceCommitted(number, clock(event.start), clock(event.end))
        self.current_utterance = 0
        return told

    def _on_final(self, event: FinalTranscript) -> LiveEvent:
        number, clock = self._map_number(event.utterance), self._get_clock(event.start, event.end)
        told = self.open_utterances.pop(number, None) or UtteranceCommitted(number, clock(event.start), clock(event.end))
        promised = self._stable.pop(number, "")
        text = append_text(promised, remove_known_text(promised, event.text))
        self._numbers.pop(event.utterance)
        self.final_count += 1
        segments = tuple(segment.map_times(clock) for segment in event.segments)
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
        number = self._map_number(event.utterance) if event.utterance else self.current_utterance
        self._resumed.clear()  # another process may not have noticed the utterance: the next one is a new one
        self._numbers.pop(event.utterance, None)
        self._stable.pop(number, None)
        self.current_utterance = 0
        return UtteranceCleared(number)

    def _on_refused(self, event: CommandRefused) -> LiveEvent:
        """Fail the utterance of a commit that the previous process executed and this one refuses."""
        if not self._replayed:
            return event
        number = self._replayed.popleft()
        if number in self._resumed:
            self._resumed.remove(number)  # this process has no utterance for it: its next one is that behind it
        return self._fail_utterance(number, event.error)


MAX_WAITING_EVENTS = 256
"""Events that may wait for the client; then the process is not read."""


class SessionEventQueue:
    """Holds events until the client takes them. A partial transcript replaces the waiting one before it."""

    def __init__(self) -> None:
        self._events: deque[LiveEvent] = deque()
        self._error: BaseException | None = None
        self._available = asyncio.Event()
        self._room = asyncio.Event()
        self.closed = False

    def put_event(self, event: LiveEvent) -> None:
        """Add an event; none follows `SessionEnded`."""
        if self.closed:
            return
        if isinstance(event, PartialTranscript) and self._events and _is_superseded(self._events[-1], event):
            self._events[-1] = event
        else:
            self._events.append(event)
        self.closed = isinstance(event, SessionEnded)
        self._available.set()

    async def wait_for_room(self) -> None:
        """Wait while too many events are queued."""
        while len(self._events) >= MAX_WAITING_EVENTS:
            self._room.clear()
            await self._room.wait()

    def close(self, error: BaseException) -> None:
        """End the queue with this error."""
        if not self.closed:
            self.closed, self._error = True, error
            self._available.set()

    async def stream_events(self) -> AsyncGenerator[LiveEvent, None]:
        """Yield the events, up to `SessionEnded`.

        Raises:
            BaseException: the error that ended the queue.
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
