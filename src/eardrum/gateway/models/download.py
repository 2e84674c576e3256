"""Downloads models from the Hugging Face hub and deletes them.

The config decides first what a name means, then what engines declare, last the repository's files. There is one download per
model, however many requests wait for it. The program that talks to the hub is a process of its own (`eardrum.hub`): its
libraries are heavy.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eardrum.concurrency import cancel_and_wait
from eardrum.engines import registry
from eardrum.engines.registry import EngineCard
from eardrum.errors import (
    BusyError,
    InvalidRequestError,
    ModelNotFoundError,
    PullError,
    ShuttingDownError,
    StorageFullError,
    error_from_json,
)
from eardrum.gateway.models import names
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import EMBEDDED_ID, Model, ModelInventory, detect_engine
from eardrum.gateway.models.names import ModelMatch

log = logging.getLogger(__name__)

MAY_FETCH: ContextVar[bool] = ContextVar("MAY_FETCH", default=True)
"""Whether what is done just now is for somebody who may have models fetched. It holds for a task and those that it begins."""


class ModelLibrary:
    """Brings files into the store and takes them out; the catalog then looks again."""

    def __init__(self, catalog: ModelCatalog):
        self._catalog = catalog
        self._downloader = ModelDownloader(catalog.inventory.store.folder)

    async def choose_match(self, name: str) -> ModelMatch:
        """What `pull` would fetch for a name.

        Raises:
            ModelNotFoundError: nobody knows the name.
            PullError: the hub cannot be asked, or no engine recognises what it has.
        """
        return await choose_download(name, self._catalog.inventory, self._downloader)

    async def pull_model(self, match: ModelMatch) -> AsyncGenerator[PullProgress, None]:
        """Fetch a model, or bring the one that is here up to date.

        Raises:
            PullError: it cannot be had.
            StorageFullError: the disk has no room.
        """
        async with aclosing(self._downloader.download_model(match.repository, match.card.downloads)) as steps:
            async for progress in steps:
                yield progress
        self._catalog.scan()

    async def fetch_missing(self, model: Model, *, may_pull: bool) -> Model:
        """The model with its files, which are fetched if they are missing and may be.

        Raises:
            ModelNotFoundError: it is not here, and may not be fetched.
            PullError: it cannot be had.
        """
        if not may_pull or not MAY_FETCH.get():
            raise ModelNotFoundError(self._catalog.explain_download(model))
        log.info("%s is not on this machine: fetching %s.", model.id, model.repository)
        try:
            async with aclosing(self.pull_model(ModelMatch(model.card, model.repository))) as steps:
                async for _ in steps:
                    pass
        except StorageFullError as error:  # not of the upload's disk: another model may still serve this request
            raise PullError(error.message) from error
        fetched = self._catalog.find_model(model.id)
        if fetched.needs_download:
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

    async def remove_model(self, model: Model) -> None:
        """Delete the files of a model that no process uses.

        Raises:
            ConfigError: the rights to do so are missing.
        """
        await asyncio.to_thread(self._catalog.inventory.store.remove_model, model.id)
        self._catalog.scan()

    async def shutdown(self) -> None:
        """Stop every download."""
        await self._downloader.shutdown()


async def choose_download(name: str, inventory: ModelInventory, puller: ModelDownloader, engine: str = "") -> ModelMatch:
    """The engine and the repository for a name. Of an id that no engine knows, the hub is asked which files it has.

    Raises:
        ModelNotFoundError: nobody knows the name, or it could mean several things.
        InvalidRequestError: there is nothing to fetch, or no engine recognises the files.
        PullError: the hub cannot be asked.
    """
    if not engine and (model := inventory.find_configured(name)):
        if not model.repository:
            where = f"runs what is at {model.source}" if model.source else "calls another server"
            raise InvalidRequestError(f"There is nothing to fetch for {model.id}: it {where}.")
        return ModelMatch(model.card, model.repository)
    if name == EMBEDDED_ID and not engine:
        raise InvalidRequestError(f"There is nothing to fetch for {name}: it came with the package.")
    try:
        return names.choose_match(name, engine)
    except ModelNotFoundError:
        if names.find_matches(name, engine) or not names.is_hub_id(name):
            raise
    listing = await puller.list_repository(name)
    return ModelMatch(await asyncio.to_thread(_detect_card, name, listing), name)


def _detect_card(repository: str, listing: RepositoryListing) -> EngineCard:
    """The engine that will recognise these files once they are here."""
    with TemporaryDirectory(prefix="eardrum-") as folder:
        for name in listing.files:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if (config := Path(folder, "config.json")).exists():
            config.write_text(json.dumps(listing.config), encoding="utf-8")
        if engine := detect_engine(Path(folder)):
            return registry.find_card(engine)
    raise InvalidRequestError(
        f"No engine recognises the files of {repository}. `eardrum engines` lists which files each looks for."
    )


HUB_MODULE = "eardrum.hub"
"""The program that speaks with the hub. Started, never imported: its libraries are heavy."""

MAX_DOWNLOADS = 4
"""Downloads at a time, and as many looks at what the hub has: each is a process. Others wait for their turn."""

MAX_WAITING = 100
"""Of either, those that wait included."""

RETRY_AFTER_S = 30.0

MAX_LINE_BYTES = 64 << 20
"""Longest line that the program says: the names of all files of a repository, and its config.json."""


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a download is, in bytes of all files."""

    completed: int
    total: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class RepositoryListing:
    """What a repository holds: names of files, and the content of its config.json."""

    files: tuple[str, ...]
    config: dict[str, Any]


class ModelDownloader:
    """Fetches models into one folder. A download goes on while anybody waits for it; cut off, it can be continued."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._downloads: dict[tuple[str, tuple[str, ...]], ModelDownload] = {}
        self._download_slots, self._listing_slots = asyncio.Semaphore(MAX_DOWNLOADS), asyncio.Semaphore(MAX_DOWNLOADS)
        self._listings = 0
        self._shutting_down = False

    async def download_model(self, repository: str, patterns: Sequence[str]) -> AsyncGenerator[PullProgress, None]:
        """Progress until everything is there.

        Raises:
            PullError: why it cannot be had.
            BusyError: too many others wait.
            ShuttingDownError: the server goes down.
            StorageFullError: the disk has no room.
        """
        if self._shutting_down:
            raise _make_shutdown_error(repository)
        key = repository, tuple(patterns)
        download = self._downloads.get(key)
        if not download:
            _check_queue(len(self._downloads))
            download = self._downloads[key] = ModelDownload(repository, patterns, self._folder, self._download_slots)
        download.followers += 1
        try:
            async for progress in download.follow_progress():
                yield progress
        finally:
            download.followers -= 1
            if not download.followers and self._downloads.get(key) is download:
                del self._downloads[key]
                await download.stop()

    async def list_repository(self, repository: str) -> RepositoryListing:
        """What the hub has under this name.

        Raises:
            PullError: nothing, or it cannot be reached.
            BusyError: too many others wait.
        """
        _check_queue(self._listings)
        self._listings += 1
        try:
            async with self._listing_slots, aclosing(_run_hub_process([repository, "--list"], repository)) as messages:
                async for kind, said in messages:
                    if kind == "listing":
                        return RepositoryListing(tuple(said["files"]), said["config"])
        finally:
            self._listings -= 1
        raise PullError(f"The hub says nothing about {repository}.")

    async def shutdown(self) -> None:
        """End all downloads; their followers are told why."""
        self._shutting_down = True
        for download in list(self._downloads.values()):
            await download.stop()


class ModelDownload:
    """One model being fetched by a process of its own, once it is its turn."""

    def __init__(self, repository: str, patterns: Sequence[str], folder: Path, turn: asyncio.Semaphore):
        self.followers = 0
        self._slots = turn
        self._repository = repository
        self._progress = PullProgress(0, 0)
        self._changed = asyncio.Event()
        options = [f"--pattern={pattern}" for pattern in patterns]
        self._arguments = [repository, f"--cache={folder}", *options]
        self._task = asyncio.create_task(self._run())

    async def follow_progress(self) -> AsyncGenerator[PullProgress, None]:
        """The state now, then each change, until the end."""
        while not self._task.done():
            changed = self._changed
            if self._progress.total:
                yield self._progress
            await changed.wait()
        if self._task.cancelled():
            raise _make_shutdown_error(self._repository)
        self._task.result()
        yield self._progress

    async def stop(self) -> None:
        """End it, if it has not ended."""
        await cancel_and_wait(self._task)
        self._set_progress(self._progress)

    async def _run(self) -> None:
        try:
            async with self._slots, aclosing(_run_hub_process(self._arguments, self._repository)) as messages:
                async for kind, said in messages:
                    if kind == "plan":
                        self._set_progress(PullProgress(said["present"], said["total"]))
                    elif kind == "progress":
                        self._set_progress(PullProgress(said["completed"], self._progress.total, said["file"]))
        finally:
            self._set_progress(self._progress)

    def _set_progress(self, progress: PullProgress) -> None:
        self._progress = progress
        self._changed.set()
        self._changed = asyncio.Event()


async def _run_hub_process(arguments: Sequence[str], repository: str) -> AsyncGenerator[tuple[str, Any], None]:
    """Start the program and yield what it says, by kind, until it has done what it should. Closing the iterator ends it.

    The child gets a session of its own, so that Ctrl-C reaches only us, and a pipe as stdin whose end tells it that we are
    gone.
    """
    command = [sys.executable, "-m", HUB_MODULE, "--parent", *arguments]
    child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True, limit=MAX_LINE_BYTES)
    assert child.stdout
    try:
        async for line in child.stdout:
            ((kind, said),) = json.loads(line).items()
            if kind == "failed":
                raise error_from_json(said)
            yield kind, said
            if kind in ("done", "listing"):
                return
        code = await child.wait()
        raise PullError(f"Fetching {repository} ended with exit code {code}; the log has its last output.")
    finally:
        with suppress(ProcessLookupError):
            child.terminate()
        await asyncio.shield(child.wait())


def _check_queue(waiting: int) -> None:
    if waiting >= MAX_WAITING:
        raise BusyError(f"{waiting} models are being fetched, or wait for it: try again later.", retry_after=RETRY_AFTER_S)


def _make_shutdown_error(repository: str) -> ShuttingDownError:
    return ShuttingDownError(f"The server is shutting down. Pull {repository} again later; what has arrived is kept.")
