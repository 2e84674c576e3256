"""What every edge calls: find a model, check that it can, transcribe."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from eardrum.config import Settings
from eardrum.errors import ConfigError, RunnerCrashedError
from eardrum.gateway.catalog import Catalog, Model
from eardrum.gateway.scheduler import State
from eardrum.gateway.spool import Source, Spool
from eardrum.gateway.supervisor import Supervisor
from eardrum.types import Event, Request, Segment, Summary

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""A request whose runner dies is repeated once: the crash may have been another request's doing."""


@dataclass(slots=True)
class Transcript:
    """The whole answer to a request."""

    segments: list[Segment] = field(default_factory=list)
    summary: Summary = field(default_factory=lambda: Summary(language="", duration=0.0))

    def add(self, event: Event) -> None:
        """Take in the next event."""
        if isinstance(event, Segment):
            self.segments.append(event)
        elif isinstance(event, Summary):
            self.summary = event


class Service:
    """The gateway behind its edges."""

    def __init__(self, settings: Settings):
        if settings.spool_dir and not os.access(settings.spool_dir, os.W_OK):
            raise ConfigError(f"spool_dir {settings.spool_dir} is not a folder that can be written to.")
        self.settings = settings
        self.catalog = Catalog(settings)
        self._supervisor = Supervisor(
            start_seconds=settings.start_seconds,
            max_audio_s=settings.limits.audio_seconds,
            loaded=self.catalog.refine,
        )

    def spool(self) -> Spool:
        """Room for one upload."""
        return Spool(self.settings.spool_dir)

    def state(self, model: Model) -> State:
        """The model's state."""
        return self._supervisor.state(model)

    def load(self, model: Model) -> int:
        """Requests the model holds now."""
        return self._supervisor.load(model)

    def prepared(self, model: Model, request: Request) -> Request:
        """The request with the server's defaults, checked against what the model can do.

        Raises:
            UnsupportedFeatureError: the model cannot do what is asked.
        """
        self.catalog.check(model, request)
        return replace(request, language=request.language or self.settings.default_language or None)

    async def stream(self, model: Model, request: Request, audio: Source) -> AsyncGenerator[Event, None]:
        """Events as they come, also while the audio is still coming in. Closing the iterator cancels the work.

        A runner that dies before the first segment is out is replaced without a word.

        Raises:
            EardrumError: anything that went wrong, worded for the client.
        """
        for attempt in range(1, ATTEMPTS + 1):
            told = False
            try:
                async with aclosing(self._attempt(model, request, audio)) as events:
                    async for event in events:
                        told = told or isinstance(event, Segment)
                        yield event
                return
            except RunnerCrashedError as error:
                if told or attempt == ATTEMPTS:
                    raise
                log.warning("%s Trying once more.", error.message)

    async def transcribe(self, model: Model, request: Request, audio: Source) -> Transcript:
        """The whole transcript. Nothing is out before the end, so a crash at any time is made good once.

        Raises:
            EardrumError: anything that went wrong, worded for the client.
        """
        for attempt in range(1, ATTEMPTS + 1):
            transcript = Transcript()
            try:
                async with aclosing(self._attempt(model, request, audio)) as events:
                    async for event in events:
                        transcript.add(event)
                return transcript
            except RunnerCrashedError as error:
                if attempt == ATTEMPTS:
                    raise
                log.warning("%s Trying once more.", error.message)
        raise AssertionError("unreachable")

    async def shutdown(self) -> None:
        """Stop every model."""
        await self._supervisor.shutdown()

    async def _attempt(self, model: Model, request: Request, audio: Source) -> AsyncGenerator[Event, None]:
        request = self.prepared(model, request)
        async with (
            self._supervisor.lease(model) as upstream,
            aclosing(upstream.transcribe(request, audio.read())) as events,
        ):
            async for event in events:
                yield event
