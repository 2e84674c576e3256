"""Transcribes with the first of a model and its fallbacks that does not fail.

A process that dies is replaced silently, until it is known to die of this very request (`CrashSuspicion`). After a segment
has been sent, only a reader that can start over is served again from the start.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import replace

from eardrum.errors import (
    BusyError,
    EardrumError,
    ModelNotFoundError,
    RunnerCrashedError,
    ShuttingDownError,
    StorageFullError,
    UnsupportedFeatureError,
)
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes.lease import CrashSuspicion
from eardrum.gateway.spool import AudioSource as Audio
from eardrum.gateway.spool import Spool
from eardrum.gateway.upstreams import Upstream
from eardrum.transcription import Segment, TextDelta, TranscriptionEvent, TranscriptionRequest, TranscriptionSummary

log = logging.getLogger(__name__)


class TranscriptRestart:
    """All that was heard so far is void: it begins anew."""


class FallbackTranscriber:
    """Knows whom to ask next. What it needs of the house is passed in."""

    def __init__(
        self,
        catalog: ModelCatalog,
        *,
        fetched: Callable[[Model], Awaitable[Model]],
        prepared: Callable[[Model, TranscriptionRequest], TranscriptionRequest],
        lease: Callable[[Model, CrashSuspicion], AbstractAsyncContextManager[Upstream]],
    ):
        self._catalog = catalog
        self._ensure_fetched = fetched
        self._prepare_request = prepared
        self._lease_model = lease

    async def stream_events(
        self, model: Model, request: TranscriptionRequest, audio: Audio, *, restartable: bool
    ) -> AsyncGenerator[TranscriptionEvent | TranscriptRestart, None]:
        """The events of the first of the model and its fallbacks that does not fail.

        A process that dies is replaced without a word, until it is known to die of this very request (`trials`). After
        a segment is out, only a restartable reader can be served
        again from the start.
        """
        left, suspicion = find_candidates(self._catalog, model, request), CrashSuspicion()
        while True:
            candidate, told = left[0], False
            try:
                async with aclosing(self._transcribe_once(candidate, request, audio, suspicion)) as events:
                    async for event in events:
                        told = told or isinstance(event, Segment | TextDelta)
                        yield replace(event, model=candidate.id) if isinstance(event, TranscriptionSummary) else event
                return
            except EardrumError as error:
                if not isinstance(error, RunnerCrashedError) or suspicion.is_proven:
                    left, suspicion = left[1:], CrashSuspicion()
                if not left or (told and not restartable) or not is_retryable(error):
                    raise
                following = "once more" if left[0] is candidate else f"fallback model {left[0].id}"
                log.warning("%s Trying %s.", error.sentence, following)
            if told:
                yield TranscriptRestart()

    async def _transcribe_once(
        self, model: Model, request: TranscriptionRequest, audio: Audio, suspicion: CrashSuspicion
    ) -> AsyncGenerator[TranscriptionEvent, None]:
        model = await self._ensure_fetched(model)
        request = self._prepare_request(model, request)
        if isinstance(audio, Spool):
            await audio.wait_for_start()
        async with (
            self._lease_model(model, suspicion) as upstream,
            aclosing(upstream.transcribe(request, audio)) as events,
        ):
            async for event in events:
                yield event


def find_candidates(catalog: ModelCatalog, model: Model, request: TranscriptionRequest) -> list[Model]:
    """The model, and those of its fallbacks that can do what is asked, in the order in which they are.

    Raises:
        UnsupportedFeatureError: the model itself cannot.
    """
    catalog.check_request(model, request)
    found = [model]
    for name in model.fallback:
        with suppress(UnsupportedFeatureError, ModelNotFoundError):
            other = catalog.find_model(name)
            catalog.check_request(other, request)
            if other.id not in [candidate.id for candidate in found]:
                found.append(other)
    return found


def list_fallbacks(catalog: ModelCatalog, model: Model) -> list[tuple[str, Model]]:
    """The fallbacks of a model, each with the name by which the config calls it; those that are not here are passed over."""
    found: list[tuple[str, Model]] = []
    for name in model.fallback:
        with suppress(ModelNotFoundError):
            other = catalog.find_model(name)
            if other.id not in (model.id, *(known.id for _, known in found)):
                found.append((name, other))
    return found


def is_retryable(error: EardrumError) -> bool:
    """Whether another try, or another model, has a chance."""
    if isinstance(error, ModelNotFoundError | BusyError):
        return True
    return error.status >= 500 and not isinstance(error, ShuttingDownError | StorageFullError)
