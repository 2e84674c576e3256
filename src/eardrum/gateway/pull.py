"""Models on their way from the hub: one download per model, however many wait for it."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eardrum.errors import BusyError, PullError, ShuttingDownError, error_from_json

MODULE = "eardrum.hub"
"""The program that speaks with the hub. Started, never imported: its libraries are heavy."""

AT_ONCE = 4
"""Downloads at a time, and as many looks at what the hub has: each is a process. Others wait for their turn."""

MOST_WAITING = 100
"""Of either, those that wait included."""

RETRY_S = 30.0

LINE_BYTES = 64 << 20
"""Longest line that the program says: the names of all files of a repository, and its config.json."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is, in bytes of all files."""

    completed: int
    total: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds: names of files, and the content of its config.json."""

    files: tuple[str, ...]
    config: dict[str, Any]


class Puller:
    """Fetches models into one folder. A download goes on while anybody waits for it; cut off, it can be continued."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._downloads: dict[tuple[str, tuple[str, ...]], Download] = {}
        self._turn, self._turn_to_look = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(AT_ONCE)
        self._looking = 0
        self._down = False

    async def pull(self, repository: str, patterns: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """Progress until everything is there.

        Raises:
            PullError: why it cannot be had.
            BusyError: too many others wait.
            ShuttingDownError: the server goes down.
            StorageFullError: the disk has no room.
        """
        if self._down:
            raise _shutting_down(repository)
        key = repository, tuple(patterns)
        download = self._downloads.get(key)
        if not download:
            _check_waiting(len(self._downloads))
            download = self._downloads[key] = Download(repository, patterns, self._folder, self._turn)
        download.followers += 1
        try:
            async for progress in download.follow():
                yield progress
        finally:
            download.followers -= 1
            if not download.followers and self._downloads.get(key) is download:
                del self._downloads[key]
                await download.stop()

    async def listing(self, repository: str) -> Listing:
        """What the hub has under this name.

        Raises:
            PullError: nothing, or it cannot be reached.
            BusyError: too many others wait.
        """
        _check_waiting(self._looking)
        self._looking += 1
        try:
            async with self._turn_to_look, aclosing(_said_by_child([repository, "--list"], repository)) as messages:
                async for kind, said in messages:
                    if kind == "listing":
                        return Listing(tuple(said["files"]), said["config"])
        finally:
            self._looking -= 1
        raise PullError(f"The hub says nothing about {repository}.")

    async def shutdown(self) -> None:
        """End all downloads; their followers are told why."""
        self._down = True
        for download in list(self._downloads.values()):
            await download.stop()


class Download:
    """One model being fetched by a process of its own, once it is its turn."""

    def __init__(self, repository: str, patterns: Sequence[str], folder: Path, turn: asyncio.Semaphore):
        self.followers = 0
        self._turn = turn
        self._repository = repository
        self._progress = Progress(0, 0)
        self._changed = asyncio.Event()
        options = [f"--pattern={pattern}" for pattern in patterns]
        self._arguments = [repository, f"--cache={folder}", *options]
        self._task = asyncio.create_task(self._run())

    async def follow(self) -> AsyncGenerator[Progress, None]:
        """The state now, then each change, until the end."""
        while not self._task.done():
            changed = self._changed
            if self._progress.total:
                yield self._progress
            await changed.wait()
        if self._task.cancelled():
            raise _shutting_down(self._repository)
        self._task.result()
        yield self._progress

    async def stop(self) -> None:
        """End it, if it has not ended."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.exception()  # seen; asyncio would otherwise complain of an error nobody asked for
        self._tell(self._progress)

    async def _run(self) -> None:
        try:
            async with self._turn, aclosing(_said_by_child(self._arguments, self._repository)) as messages:
                async for kind, said in messages:
                    if kind == "plan":
                        self._tell(Progress(said["present"], said["total"]))
                    elif kind == "progress":
                        self._tell(Progress(said["completed"], self._progress.total, said["file"]))
        finally:
            self._tell(self._progress)

    def _tell(self, progress: Progress) -> None:
        self._progress = progress
        self._changed.set()
        self._changed = asyncio.Event()


async def _said_by_child(arguments: Sequence[str], repository: str) -> AsyncGenerator[tuple[str, Any], None]:
    """Start the program and yield what it says, by kind, until it has done what it should. Closing the iterator ends it.

    The child gets a session of its own, so that Ctrl-C reaches only us, and a pipe as stdin whose end tells it that we are
    gone.
    """
    command = [sys.executable, "-m", MODULE, "--parent", *arguments]
    child = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True, limit=LINE_BYTES)
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
        raise PullError(f"Fetching {repository} ended with exit code {code}; its last words are in the log.")
    finally:
        with suppress(ProcessLookupError):
            child.terminate()
        await asyncio.shield(child.wait())


def _check_waiting(waiting: int) -> None:
    if waiting >= MOST_WAITING:
        raise BusyError(f"{waiting} models are being fetched, or wait for it: try again later.", retry_after=RETRY_S)


def _shutting_down(repository: str) -> ShuttingDownError:
    return ShuttingDownError(f"The server is shutting down. Pull {repository} again later; what has arrived is kept.")
