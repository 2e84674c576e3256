"""`/api/pull`, `/api/delete` and `/api/copy`."""

from __future__ import annotations

import hashlib
import logging
from contextlib import aclosing, suppress
from typing import Any

from eardrum.api.ollama.exchange import Reply
from eardrum.api.ollama.fields import named, streams, text
from eardrum.api.ollama.names import Names, bare
from eardrum.errors import EardrumError, InvalidRequestError, ModelNotFoundError, ShuttingDownError
from eardrum.gateway.inventory import Model
from eardrum.gateway.names import Match
from eardrum.gateway.service import Service

log = logging.getLogger(__name__)

FETCHED = ("verifying sha256 digest", "writing manifest", "success")
"""What is said once everything has come. It was checked and put in place before that."""


class Storage:
    """The endpoints."""

    def __init__(self, service: Service, names: Names):
        self._service = service
        self._names = names

    async def pull(self, wish: dict[str, Any], reply: Reply) -> None:
        """Fetch a model from the hub, by any name that `eardrum pull` takes. The bytes of all its files are one layer.

        One that is here is brought up to date, if it came from the hub and that can be asked. Clients pull whatever they are told
        to use, so to find nothing to do is a success.
        """
        lines, here = streams(wish), self._here(named(wish))
        match = _match(here) if here else await self._service.library.choose(bare(named(wish)))
        if lines:
            await reply.line({"status": "pulling manifest"})
        if match:
            try:
                await self._fetch(match, reply, lines=lines)
            except EardrumError as error:
                if not here or here.absent or isinstance(error, ShuttingDownError):
                    raise
                log.warning("%s is here and could not be brought up to date: %s", here.id, error.message)
                if lines:
                    await reply.line({"status": f"not updated, what is here stays: {error.message}"})
        if not lines:
            await reply.whole({"status": "success"})
            return
        for status in FETCHED:
            await reply.line({"status": status}, last=status == FETCHED[-1])

    async def _fetch(self, match: Match, reply: Reply, *, lines: bool) -> None:
        layer = hashlib.sha256(match.repository.encode()).hexdigest()
        async with aclosing(self._service.library.pull(match)) as steps:
            async for step in steps:
                if lines:
                    digest = {"status": f"pulling {layer[:12]}", "digest": f"sha256:{layer}"}
                    await reply.line(digest | {"total": step.total, "completed": step.completed})

    def _here(self, name: str) -> Model | None:
        """The model of this name, if there is one; its files may be missing."""
        with suppress(ModelNotFoundError):
            return self._names.find(name)
        return None

    async def delete(self, wish: dict[str, Any], reply: Reply) -> None:
        """Forget a copy, or delete the files of a model that was fetched."""
        name = named(wish)
        if not self._names.forget(name):
            await self._service.remove(self._names.find(name))
        await reply.whole(None)

    async def copy(self, wish: dict[str, Any], reply: Reply) -> None:
        """Another name for a model, until the server ends."""
        source, destination = text(wish, "source").strip(), text(wish, "destination").strip()
        if not source or not destination:
            raise InvalidRequestError("source and destination are required", param="destination")
        self._names.copy(source, destination)
        await reply.whole(None)


def _match(model: Model) -> Match | None:
    """Where a model came from, or is to come from; None if that is not the hub."""
    return Match(model.card, model.repository) if model.repository and not model.foreign else None
