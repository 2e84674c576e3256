"""Sends requests to the replicas of a model, and moves them on when a replica is lost: no segment is lost or repeated."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from msgspec.structs import replace

from eardrum.errors import EardrumError, RunnerCrashedError, RunnerUnavailableError
from eardrum.gateway.spool import AudioSource
from eardrum.gateway.upstreams import Upstream
from eardrum.gateway.upstreams.replicas import Replica, ReplicaSet
from eardrum.live import LiveCommand, LiveEvent, SessionSettings
from eardrum.speech import SpeechEvent, SpeechRequest
from eardrum.transcription import (
    AudioOpened,
    DroppedText,
    Segment,
    TranscriptionEvent,
    TranscriptionRequest,
    TranscriptionSummary,
    WindowCheckpoint,
)

log = logging.getLogger(__name__)

MAX_FAILURES = 3
"""Replicas that may fail under a request without finishing a window of it in between: it may be what ends them."""

MAX_REFUSALS = 10
"""Replicas that may refuse a request although they answer when asked for their health, as behind a wrong proxy."""


class ResumableTranscription:
    """The events of a recording that several replicas transcribe, one after the other: each event once, in order. Pure."""

    def __init__(self, request: TranscriptionRequest):
        self._request = request
        self._resume = request.resume
        self._segments: list[Segment] = []
        """Those of a window whose checkpoint has not come."""
        self._dropped: list[DroppedText] = []
        self._dropped_before: list[DroppedText] = []
        """Dropped text of windows that an earlier replica finished."""
        self._is_opened = False

    @property
    def windows(self) -> int:
        """Windows that are finished."""
        return self._resume.windows if self._resume else 0

    def build_request(self) -> TranscriptionRequest:
        """Build the request for the next replica, which continues behind the last finished window."""
        self._segments = []
        self._dropped_before = list(self._dropped)
        return replace(self._request, checkpoints=True, resume=self._resume)

    def add_event(self, event: TranscriptionEvent) -> list[TranscriptionEvent]:
        """Take an event of a replica; return the events for the client: segments come once their window is finished."""
        if isinstance(event, Segment):
            self._segments.append(event)
            return []
        if isinstance(event, AudioOpened):
            first, self._is_opened = not self._is_opened, True
            return [event] if first else []
        events: list[TranscriptionEvent] = [*self._segments]
        self._segments = []
        if isinstance(event, WindowCheckpoint):
            self._resume = replace(event, dropped=())
            self._dropped += event.dropped
            return [*events, event] if self._request.checkpoints else events
        if isinstance(event, TranscriptionSummary):
            event = replace(event, dropped=[*self._dropped_before, *event.dropped])
        return [*events, event]


class ReplicatedUpstream(Upstream):
    """The way to a model with replicas: each request goes to one of them, and on to another one if that is lost."""

    def __init__(self, replicas: ReplicaSet):
        self._replicas = replicas

    async def transcribe(self, request: TranscriptionRequest, audio: AudioSource) -> AsyncGenerator[TranscriptionEvent, None]:
        """Transcribe with one replica after another, until one reaches the end. See `Upstream.transcribe`.

        Raises:
            NoReplicaError: none takes work.
        """
        progress, attempts = ResumableTranscription(request), AttemptCounter()
        while True:
            async with self._replicas.take_replica() as replica:
                windows = progress.windows
                try:
                    exchange = replica.upstream.transcribe(progress.build_request(), audio)
                    async with aclosing(replica.follow(exchange)) as events:
                        async for event in events:
                            for own in progress.add_event(event):
                                yield own
                    return
                except RunnerCrashedError as error:
                    self._record_failure(replica, error)
                    attempts.count_failure(error, has_progress=progress.windows > windows)
                    self._log_move(error)

    async def stream_live(
        self, settings: SessionSettings, messages: AsyncIterator[bytes | LiveCommand]
    ) -> AsyncGenerator[LiveEvent, None]:
        """Run a live session with one replica. The session itself moves on, as after the end of any process."""
        async with self._replicas.take_replica() as replica:
            try:
                exchange = replica.upstream.stream_live(settings, messages)
                async with aclosing(replica.follow(exchange, movable=True)) as events:
                    async for event in events:
                        yield event
            except RunnerCrashedError as error:
                self._record_failure(replica, error)
                raise

    async def speak(self, request: SpeechRequest, text: str | AsyncIterator[str]) -> AsyncGenerator[SpeechEvent, None]:
        """Speak with one replica, or the next one if it is lost before the first audio and the text can be sent again."""
        attempts, has_begun = AttemptCounter(), False
        while True:
            async with self._replicas.take_replica() as replica:
                try:
                    async with aclosing(replica.follow(replica.upstream.speak(request, text))) as events:
                        async for event in events:
                            has_begun = True
                            yield event
                    return
                except RunnerCrashedError as error:
                    self._record_failure(replica, error)
                    if has_begun or not isinstance(text, str):
                        raise
                    attempts.count_failure(error, has_progress=False)
                    self._log_move(error)

    async def close(self) -> None:
        """Close all connections."""
        await self._replicas.close()

    def _record_failure(self, replica: Replica, error: RunnerCrashedError) -> None:
        """Record that a replica did not finish a request.

        Raises:
            RunnerCrashedError: the error itself, if the model was unloaded.
        """
        if self._replicas.is_closed:
            raise error
        replica.record_failure(error)

    def _log_move(self, error: EardrumError) -> None:
        log.warning("%s %s continues with another replica.", error.sentence, self._replicas.rules.model)


class AttemptCounter:
    """Counts the replicas that failed under a request, until it must not be tried again."""

    def __init__(self) -> None:
        self._failures = 0
        self._refusals = 0

    def count_failure(self, error: RunnerCrashedError, *, has_progress: bool) -> None:
        """Count a failure.

        Raises:
            RunnerCrashedError: the error itself, if it was one too many.
        """
        if isinstance(error, RunnerUnavailableError):
            self._refusals += 1
        else:
            self._failures = 1 if has_progress else self._failures + 1
        if self._failures >= MAX_FAILURES or self._refusals >= MAX_REFUSALS:
            raise error
