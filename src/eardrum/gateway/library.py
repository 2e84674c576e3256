"""The files of models: what the hub has, what is here, and what goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar

from eardrum.errors import InvalidRequestError, ModelNotFoundError, PullError, StorageFullError
from eardrum.gateway import choice
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import Model
from eardrum.gateway.names import Match
from eardrum.gateway.pull import Progress, Puller

log = logging.getLogger(__name__)

MAY_FETCH: ContextVar[bool] = ContextVar("MAY_FETCH", default=True)
"""Whether what is done just now is for somebody who may have models fetched. It holds for a task and those that it begins."""


class Library:
    """Brings files into the store and takes them out; the catalog then looks again."""

    def __init__(self, catalog: Catalog):
        self._catalog = catalog
        self._puller = Puller(catalog.inventory.store.folder)

    async def choose(self, name: str) -> Match:
        """What `pull` would fetch for a name.

        Raises:
            ModelNotFoundError: nobody knows the name.
            PullError: the hub cannot be asked, or no engine recognises what it has.
        """
        return await choice.choose(name, self._catalog.inventory, self._puller)

    async def pull(self, match: Match) -> AsyncGenerator[Progress, None]:
        """Fetch a model, or bring the one that is here up to date.

        Raises:
            PullError: it cannot be had.
            StorageFullError: the disk has no room.
        """
        async with aclosing(self._puller.pull(match.repository, match.card.downloads)) as steps:
            async for progress in steps:
                yield progress
        self._catalog.scan()

    async def fetched(self, model: Model, *, may_pull: bool) -> Model:
        """The model with its files, which are fetched if they are missing and may be.

        Raises:
            ModelNotFoundError: it is not here, and may not be fetched.
            PullError: it cannot be had.
        """
        if not model.absent:
            return model
        if not may_pull or not MAY_FETCH.get():
            raise ModelNotFoundError(self._catalog.how_to_fetch(model))
        log.info("%s is not on this machine: fetching %s.", model.id, model.repository)
        try:
            async with aclosing(self.pull(Match(model.card, model.repository))) as steps:
                async for _ in steps:
                    pass
        except StorageFullError as error:  # not of the upload's disk: another model may still serve this request
            raise PullError(error.message) from error
        fetched = self._catalog.find(model.id)
        if fetched.absent:
            raise PullError(f"{model.repository} was fetched, but its files are not a model of the engine {model.engine}.")
        return fetched

    def check_removable(self, model: Model) -> None:
        """See that the model's files are the store's, and that requests that name no model do not need just this one.

        Raises:
            InvalidRequestError: it may not be deleted.
        """
        if model.origin != "disk":
            where = {"config": "the config: take it out there", "embedded": "the package"}.get(model.origin, "elsewhere")
            raise InvalidRequestError(f"{model.id} cannot be deleted here: it came from {where}.", param="model")
        if model.id == self._catalog.default.id and not self._catalog.can_do_without_default:
            raise InvalidRequestError(f"{model.id} is the default model: set default_model to another one first.", param="model")

    async def remove(self, model: Model) -> None:
        """Delete the files of a model that no process uses.

        Raises:
            ConfigError: the rights to do so are missing.
        """
        await asyncio.to_thread(self._catalog.inventory.store.remove, model.id)
        self._catalog.scan()

    async def shutdown(self) -> None:
        """Stop every download."""
        await self._puller.shutdown()
