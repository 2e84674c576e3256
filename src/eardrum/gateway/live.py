"""A live session as the edges see it: it holds its model, and outlives the model's process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from eardrum.errors import UnsupportedFeatureError
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.session import LiveSession
from eardrum.gateway.upstreams.upstream import RunnerUpstream
from eardrum.live import Settings


@asynccontextmanager
async def live(service: Service, model: Model, settings: Settings) -> AsyncIterator[LiveSession]:
    """A session with a model, which is loaded first if need be. Leaving hangs up.

    Raises:
        UnsupportedFeatureError: the model cannot do what is asked.
        EardrumError: as `Service.hold`.
    """
    service.catalog.check(model, settings.request)
    async with service.hold(model) as lease:
        if not isinstance(lease.upstream, RunnerUpstream):
            raise UnsupportedFeatureError(f"{model.id} is served by another server, which takes whole recordings.", param="model")
        yield lease.upstream.live(settings)
