"""`/api/pull`, `/api/delete` and `/api/copy`."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from typing import Any

from eardrum.api.ollama.exchange import Reply
from eardrum.api.ollama.fields import named, streams, text
from eardrum.api.ollama.names import Names, bare
from eardrum.errors import InvalidRequestError
from eardrum.gateway.service import Service

FETCHED = ("verifying sha256 digest", "writing manifest", "success")
"""What is said once everything has come. It was checked and put in place before that."""


class Storage:
    """The endpoints."""

    def __init__(self, service: Service, names: Names):
        self._service = service
        self._names = names

    async def pull(self, wish: dict[str, Any], reply: Reply) -> None:
        """Fetch a model from the hub, by any name that `eardrum pull` takes. The bytes of all its files are one layer."""
        lines = streams(wish)
        match = await self._service.library.choose(bare(named(wish)))
        layer = hashlib.sha256(match.repository.encode()).hexdigest()
        if lines:
            await reply.line({"status": "pulling manifest"})
        async with aclosing(self._service.library.pull(match)) as steps:
            async for step in steps:
                if lines:
                    digest = {"status": f"pulling {layer[:12]}", "digest": f"sha256:{layer}"}
                    await reply.line(digest | {"total": step.total, "completed": step.completed})
        if not lines:
            await reply.whole({"status": "success"})
            return
        for status in FETCHED:
            await reply.line({"status": status}, last=status == FETCHED[-1])

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
