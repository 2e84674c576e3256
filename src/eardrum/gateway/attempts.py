"""A recording is served by the first of several models that does not fail."""

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
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import Model
from eardrum.gateway.spool import Source as Audio
from eardrum.gateway.spool import Spool
from eardrum.gateway.trials import Suspicion
from eardrum.gateway.upstreams.foreign import ForeignUpstream
from eardrum.gateway.upstreams.upstream import RunnerUpstream
from eardrum.types import Delta, Event, Request, Segment, Summary

log = logging.getLogger(__name__)


class Restart:
    """All that was heard so far is void: it begins anew."""


class Attempts:
    """Knows whom to ask next. What it needs of the house is passed in."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        fetched: Callable[[Model], Awaitable[Model]],
        prepared: Callable[[Model, Request], Request],
        lease: Callable[[Model, Suspicion], AbstractAsyncContextManager[RunnerUpstream | ForeignUpstream]],
    ):
        self._catalog = catalog
        self._fetched = fetched
        self._prepared = prepared
        self._lease = lease

    async def events(
        self, model: Model, request: Request, audio: Audio, *, restartable: bool
    ) -> AsyncGenerator[Event | Restart, None]:
        """The events of the first of the model and its fallbacks that does not fail.

        A process that dies is replaced without a word, until it is known to die of this very request (`trials`). After
        a segment is out, only a restartable reader can be served
        again from the start.
        """
        left, suspicion = candidates(self._catalog, model, request), Suspicion()
        while True:
            candidate, told = left[0], False
            try:
                async with aclosing(self._attempt(candidate, request, audio, suspicion)) as events:
                    async for event in events:
                        told = told or isinstance(event, Segment | Delta)
                        yield replace(event, model=candidate.id) if isinstance(event, Summary) else event
                return
            except EardrumError as error:
                if not isinstance(error, RunnerCrashedError) or suspicion.convicted:
                    left, suspicion = left[1:], Suspicion()
                if not left or (told and not restartable) or not may_go_better(error):
                    raise
                log.warning("%s Trying %s.", error.sentence, "once more" if left[0] is candidate else left[0].id)
            if told:
                yield Restart()

    async def _attempt(self, model: Model, request: Request, audio: Audio, suspicion: Suspicion) -> AsyncGenerator[Event, None]:
        model = await self._fetched(model)
        request = self._prepared(model, request)
        if isinstance(audio, Spool):
            await audio.begun()
        async with (
            self._lease(model, suspicion) as upstream,
            aclosing(upstream.transcribe(request, audio)) as events,
        ):
            async for event in events:
                yield event


def candidates(catalog: Catalog, model: Model, request: Request) -> list[Model]:
    """The model, and those of its fallbacks that can do what is asked, in the order in which they are.

    Raises:
        UnsupportedFeatureError: the model itself cannot.
    """
    catalog.check(model, request)
    found = [model]
    for name in model.fallback:
        with suppress(UnsupportedFeatureError, ModelNotFoundError):
            other = catalog.find(name)
            catalog.check(other, request)
            if other.id not in [candidate.id for candidate in found]:
                found.append(other)
    return found


def stand_ins(catalog: Catalog, model: Model) -> list[tuple[str, Model]]:
    """The fallbacks of a model, each with the name by which the config calls it; those that are not here are passed over."""
    found: list[tuple[str, Model]] = []
    for name in model.fallback:
        with suppress(ModelNotFoundError):
            other = catalog.find(name)
            if other.id not in (model.id, *(known.id for _, known in found)):
                found.append((name, other))
    return found


def may_go_better(error: EardrumError) -> bool:
    """Whether another try, or another model, has a chance."""
    if isinstance(error, ModelNotFoundError | BusyError):
        return True
    return error.status >= 500 and not isinstance(error, ShuttingDownError | StorageFullError)
