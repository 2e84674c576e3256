"""Downloads models from the Hugging Face hub and deletes them.

The meaning of a name comes from the config, else from the names that engines declare, else from the repository's files. There
is one download per model, however many requests wait for it. The hub is accessed by a separate process (`eardrum.hub`), as
its libraries are heavy.
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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct

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
    build_shortage_error,
    error_from_json,
)
from eardrum.gateway.models import names
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import EMBEDDED_ID, Model, ModelInventory, detect_engine
from eardrum.gateway.models.names import ModelMatch

log = logging.getLogger(__name__)

MAY_FETCH: ContextVar[bool] = ContextVar("MAY_FETCH", default=True)
"""Whether the current client may start downloads. The value holds for a task and the tasks that it starts."""


class ModelLibrary:
    """Downloads and deletes models, and rescans the catalog after each."""

    def __init__(self, catalog: ModelCatalog):
        self._catalog = catalog
        self._downloader = ModelDownloader(catalog.inventory.store.folder)

    async def choose_match(self, name: str) -> ModelMatch:
        """Choose the engine and the repository that a name stands for.

        Raises:
            ModelNotFoundError: the name is unknown.
            PullError: the hub cannot be reached, or no engine recognises the repository's files.
        """
        return await choose_download(name, self._catalog.inventory, self._downloader)

    async def pull_model(self, match: ModelMatch) -> AsyncGenerator[PullProgress, None]:
        """Download a model, or update the one on this machine.

        Raises:
            PullError: the download failed.
            StorageFullError: the disk is full.
        """
        async with aclosing(self._downloader.download_model(match.repository, match.card.downloads)) as steps:
            async for progress in steps:
                yield progress
        self._catalog.scan()

    async def fetch_missing(self, model: Model, *, may_pull: bool) -> Model:
        """Download the files of a model and return the model with them.

        Raises:
            ModelNotFoundError: the files are missing, and may not be downloaded.
            PullError: the download failed.
        """
        if not may_pull or not MAY_FETCH.get():
            raise ModelNotFoundError(self._catalog.explain_download(model))
        log.info("%s is not on this machine: downloading %s.", model.id, model.repository)
        try:
            async with aclosing(self.pull_model(ModelMatch(model.card, model.repository))) as steps:
                async for _ in steps:
                    pass
        except StorageFullError as error:  # the disk of models, not of uploads: another model may still serve this request
            raise PullError(error.message) from error
        fetched = self._catalog.find_model(model.id)
        if fetched.needs_download:
            raise PullError(f"{model.repository} was downloaded, but its files are not a model of the engine {model.engine}.")
        return fetched

    def check_removable(self, model: Model) -> None:
        """Make sure that the model's files are in the store, and that requests without a model do not depend on it.

        Raises:
            InvalidRequestError: the model may not be deleted.
        """
        if model.origin != "disk":
            origin = {"config": "the config: remove it there", "embedded": "the package"}.get(model.origin, "elsewhere")
            raise InvalidRequestError(f"{model.id} cannot be deleted here: it comes from {origin}.", param="model")
        if model.id == self._catalog.default.id and not self._catalog.can_do_without_default:
            raise InvalidRequestError(f"{model.id} is the default model: set default_model to another one first.", param="model")

    async def remove_model(self, model: Model) -> None:
        """Delete the files of a model that no process uses.

        Raises:
            ConfigError: this user may not delete them.
        """
        await asyncio.to_thread(self._catalog.inventory.store.remove_model, model.id)
        self._catalog.scan()

    async def shutdown(self) -> None:
        """Stop every download."""
        await self._downloader.shutdown()


async def choose_download(name: str, inventory: ModelInventory, downloader: ModelDownloader, engine: str = "") -> ModelMatch:
    """Choose the engine and the repository for a name. For other Hugging Face ids, the repository's files decide the engine.

    Raises:
        ModelNotFoundError: the name is unknown or ambiguous.
        InvalidRequestError: the model has no repository, or no engine recognises the files.
        PullError: the hub cannot be reached.
    """
    if not engine and (model := inventory.find_configured(name)):
        if not model.repository:
            reason = f"its files are at {model.source}" if model.source else "another server runs it"
            raise InvalidRequestError(f"{model.id} cannot be downloaded: {reason}.")
        return ModelMatch(model.card, model.repository)
    if name == EMBEDDED_ID and not engine:
        raise InvalidRequestError(f"{name} need not be downloaded: it is part of the package.")
    try:
        return names.choose_match(name, engine)
    except ModelNotFoundError:
        if names.find_matches(name, engine) or not names.is_hub_id(name):
            raise
    listing = await downloader.list_repository(name)
    return ModelMatch(await asyncio.to_thread(_detect_card, name, listing), name)


def _detect_card(repository: str, listing: RepositoryListing) -> EngineCard:
    """Return the engine that recognises these files, by an empty file for each."""
    try:
        with TemporaryDirectory(prefix="eardrum-") as folder:
            for name in listing.files:
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            if (config := Path(folder, "config.json")).exists():
                config.write_text(json.dumps(listing.config), encoding="utf-8")
            if engine := detect_engine(Path(folder)):
                return registry.find_card(engine)
    except OSError as error:
        shortage = build_shortage_error(error, "to examine the files of a repository", setting="TMPDIR")
        raise shortage or PullError(f"The files of {repository} cannot be examined: {error.strerror}.") from error
    except UnicodeEncodeError:  # half of a character that needs two
        raise PullError(f"{repository} lists a file with a name that no file can have.") from None
    raise InvalidRequestError(
        f"No engine recognises the files of {repository}. `eardrum engines` lists the files that each engine needs."
    )


HUB_MODULE = "eardrum.hub"
"""The program that accesses the hub. It is started, never imported."""

MAX_DOWNLOADS = 4
"""Concurrent downloads, and concurrent listings of repositories; each is a process. Others wait."""

MAX_QUEUED = 100
"""Downloads, or listings, including those that wait."""

RETRY_AFTER_S = 30.0

MAX_LINE_BYTES = 64 << 20
"""Longest line of the program's output: the names of all files of a repository, and its config.json."""


class PullProgress(Struct, frozen=True):
    """The progress of a download, in bytes of all files."""

    completed: int
    total: int
    file: str = ""


class RepositoryListing(Struct, frozen=True):
    """The file names of a repository, and the content of its config.json."""

    files: tuple[str, ...]
    config: dict[str, Any]


class ModelDownloader:
    """Downloads models into one folder. A download runs while a request waits for it; the next one resumes it."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._downloads: dict[tuple[str, tuple[str, ...]], ModelDownload] = {}
        self._download_slots, self._listing_slots = asyncio.Semaphore(MAX_DOWNLOADS), asyncio.Semaphore(MAX_DOWNLOADS)
        self._listings = 0
        self._shutting_down = False

    async def download_model(self, repository: str, patterns: Sequence[str]) -> AsyncGenerator[PullProgress, None]:
        """Download a repository's files and yield the progress. Callers for the same files share one download.

        Raises:
            PullError: the download failed.
            BusyError: too many downloads wait.
            ShuttingDownError: the server is shutting down.
            StorageFullError: the disk is full.
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
        """List the files of a repository at the hub.

        Raises:
            PullError: there is no such repository, or the hub cannot be reached.
            BusyError: too many listings wait.
        """
        _check_queue(self._listings)
        self._listings += 1
        try:
            async with self._listing_slots, aclosing(_run_hub_process([repository, "--list"], repository)) as messages:
                async for kind, content in messages:
                    if kind == "listing":
                        return RepositoryListing(tuple(content["files"]), content["config"])
        finally:
            self._listings -= 1
        raise PullError(f"The hub did not list the files of {repository}.")

    async def shutdown(self) -> None:
        """End all downloads; their followers get a `ShuttingDownError`."""
        self._shutting_down = True
        for download in list(self._downloads.values()):
            await download.stop()


class ModelDownload:
    """One download, run by a separate process once a slot is free."""

    def __init__(self, repository: str, patterns: Sequence[str], folder: Path, slots: asyncio.Semaphore):
        self.followers = 0
        self._slots = slots
        self._repository = repository
        self._progress = PullProgress(0, 0)
        self._changed = asyncio.Event()
        options = [f"--pattern={pattern}" for pattern in patterns]
        self._arguments = [repository, f"--cache={folder}", *options]
        self._task = asyncio.create_task(self._run())

    async def follow_progress(self) -> AsyncGenerator[PullProgress, None]:
        """Yield the progress now and after each change, until the end."""
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
        """End the download, if it still runs."""
        await cancel_and_wait(self._task)
        self._set_progress(self._progress)

    async def _run(self) -> None:
        try:
            async with self._slots, aclosing(_run_hub_process(self._arguments, self._repository)) as messages:
                async for kind, content in messages:
                    if kind == "plan":
                        self._set_progress(PullProgress(content["present"], content["total"]))
                    elif kind == "progress":
                        self._set_progress(PullProgress(content["completed"], self._progress.total, content["file"]))
        finally:
            self._set_progress(self._progress)

    def _set_progress(self, progress: PullProgress) -> None:
        self._progress = progress
        self._changed.set()
        self._changed = asyncio.Event()


async def _run_hub_process(arguments: Sequence[str], repository: str) -> AsyncGenerator[tuple[str, Any], None]:
    """Run the program and yield its messages with their kind. Closing the iterator ends it.

    The child has its own session, so that Ctrl-C reaches only the gateway. It ends when its stdin, a pipe, is closed,
    also when the gateway is killed.
    """
    command = [sys.executable, "-m", HUB_MODULE, "--parent", *arguments]
    try:
        child = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, start_new_session=True, limit=MAX_LINE_BYTES
        )
    except OSError as error:
        shortage = build_shortage_error(error, "for the process of a download")
        raise shortage or PullError(f"The process that downloads {repository} cannot be started: {error.strerror}.") from error
    assert child.stdout
    try:
        async for line in child.stdout:
            ((kind, content),) = json.loads(line).items()
            if kind == "failed":
                raise error_from_json(content)
            yield kind, content
            if kind in ("done", "listing"):
                return
        code = await child.wait()
        raise PullError(f"The download of {repository} ended with exit code {code}; its last output is in the log.")
    finally:
        with suppress(ProcessLookupError):
            child.terminate()
        await asyncio.shield(child.wait())


def _check_queue(queued: int) -> None:
    if queued >= MAX_QUEUED:
        raise BusyError(f"{queued} downloads are running or waiting: try again later.", retry_after=RETRY_AFTER_S)


def _make_shutdown_error(repository: str) -> ShuttingDownError:
    return ShuttingDownError(f"The server is shutting down. Pull {repository} again later; what has arrived is kept.")
