"""Models on their way from the hub: one download per model, however many wait for it."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from eardrum.errors import PullError, error_from_json


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is, in bytes of all files."""

    completed: int
    total: int
    file: str = ""


class Puller:
    """Fetches models into one folder. A download goes on while anybody waits for it; cut off, it can be continued."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._downloads: dict[str, Download] = {}

    async def pull(self, repository: str, patterns: Sequence[str]) -> AsyncGenerator[Progress, None]:
        """Progress until everything is there.

        Raises:
            PullError: why it cannot be had.
            StorageFullError: the disk has no room.
        """
        download = self._downloads.get(repository)
        if not download:
            download = self._downloads[repository] = Download(repository, patterns, self._folder)
        download.followers += 1
        try:
            async for progress in download.follow():
                yield progress
        finally:
            download.followers -= 1
            if not download.followers and self._downloads.get(repository) is download:
                del self._downloads[repository]
                await download.stop()


class Download:
    """One model being fetched by a process of its own."""

    def __init__(self, repository: str, patterns: Sequence[str], folder: Path):
        self.followers = 0
        self._progress = Progress(0, 0)
        self._changed = asyncio.Event()
        options = [option for pattern in patterns for option in ("--pattern", pattern)]
        self._command = [sys.executable, "-m", "eardrum.hub", repository, "--cache", str(folder), "--parent", *options]
        self._repository = repository
        self._task = asyncio.create_task(self._run())

    async def follow(self) -> AsyncGenerator[Progress, None]:
        """The state now, then each change, until the end."""
        while not self._task.done():
            changed = self._changed
            if self._progress.total:
                yield self._progress
            await changed.wait()
        self._task.result()
        yield self._progress

    async def stop(self) -> None:
        """End it, if it has not ended."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            await self._fetch()
        finally:
            self._tell(self._progress)

    async def _fetch(self) -> None:
        child = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, start_new_session=True)
        assert child.stdout
        try:
            async for line in child.stdout:
                ((kind, said),) = json.loads(line).items()
                if kind == "failed":
                    raise error_from_json(said)
                if kind == "plan":
                    self._tell(Progress(said["present"], said["total"]))
                elif kind == "progress":
                    self._tell(Progress(said["completed"], self._progress.total, said["file"]))
                else:
                    return
            raise PullError(
                f"Fetching {self._repository} ended with exit code {await child.wait()}; its last words are in the log."
            )
        finally:
            with suppress(ProcessLookupError):
                child.terminate()
            await asyncio.shield(child.wait())

    def _tell(self, progress: Progress) -> None:
        self._progress = progress
        self._changed.set()
        self._changed = asyncio.Event()
