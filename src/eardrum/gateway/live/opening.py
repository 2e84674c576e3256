"""Opens live sessions: for which models, and how many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from eardrum.errors import UnsupportedFeatureError
from eardrum.gateway.attempts import candidates
from eardrum.gateway.inventory import Model
from eardrum.gateway.live.session import Session
from eardrum.gateway.service import Service
from eardrum.live import Settings
from eardrum.types import Request


def named(service: Service, name: str, request: Request | None = None) -> Model:
    """The model that a client gets who asks for a live session with `name`.

    Without a name it is the default model, or another one if that does not know the language of the request.

    Raises:
        ModelNotFoundError: there is none.
        UnsupportedFeatureError: it cannot have live sessions.
    """
    model = service.find_for_live(name, request)
    _check(service, model)
    return model


@asynccontextmanager
async def live(service: Service, model: Model, settings: Settings) -> AsyncIterator[Session]:
    """A session with a model. It is open at once: what is said while the model is loaded waits.

    The session rests while nothing is said (`Rested`), and goes on with another process if the one that hears it dies or was
    unloaded meanwhile. When the server goes down it ends by itself: the last texts come, then `events` raises
    `ShuttingDownError`. The server waits for the edge to tell them and to leave the block. Leaving hangs up.

    Raises:
        UnsupportedFeatureError: the model cannot do what is asked.
        BusyError: it has as many sessions as it may.
        ShuttingDownError: the server goes down.
    """
    _check(service, model)
    settings = replace(settings, request=service.prepared(model, settings.request))
    others = candidates(service.catalog, model, settings.request)[1:]
    session = Session(service, [model, *(other for other in others if not other.foreign)], settings)
    async with service.sessions.one_more(model.id, service.settings.live.sessions, session.stop):
        living = session.begin()
        try:
            yield session
        finally:
            living.cancel()
            await asyncio.wait([living])


def _check(service: Service, model: Model) -> None:
    if not model.foreign:
        return
    if model.hears:
        message = (
            f"{model.id} is served by another server, which takes whole recordings. For live sessions with it, name it under "
            "`models:` with `engine: openai_api` and its address as `url` in `options:`."
        )
    else:
        able = ", ".join(other.id for other in service.catalog if not other.foreign)
        message = f"{model.id} is not a model for speech. Models for live sessions: {able}."
    raise UnsupportedFeatureError(message, param="model")
