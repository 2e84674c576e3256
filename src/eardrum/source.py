"""Where a server's settings come from, read again when it is told to or when a file has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set
from contextlib import suppress
from pathlib import Path

from eardrum.config import Settings
from eardrum.config.load import Loaded
from eardrum.config.ports import Ports

log = logging.getLogger(__name__)

EVERY_S = 2.0
"""Time between two looks at the files, as llama-swap has it."""


class Source:
    """Files, environment and flags of one command line. `read_with` reads them, given the ports that are held."""

    def __init__(self, read_with: Callable[[Ports], Loaded], folder: Path | None = None):
        self._read_with = read_with
        self._folder = folder
        self._held: dict[str, int] = {}
        self.files: tuple[Path, ...] = ()
        """What was read last."""

    def first(self) -> Loaded:
        """The settings to start with, and what there is to say about them.

        Raises:
            ConfigError: they cannot be read, or make no sense.
        """
        loaded = self._read_with(Ports())
        self._take(loaded, frozenset())
        return loaded

    async def read(self, up: Set[str]) -> Settings:
        """Read them again. Commands keep their ports, and nobody else gets one on which a model of `up` may still listen.

        Raises:
            ConfigError: they cannot be read, or make no sense.
        """
        avoided = frozenset(port for model, port in self._held.items() if model in up)
        loaded = await asyncio.to_thread(self._read_with, Ports(self._held, avoided))
        for warning in loaded.warnings:
            log.warning("%s", warning)
        self._take(loaded, up)
        return loaded.settings

    async def watch(self, reread: Callable[[], object]) -> None:
        """Call `reread` whenever a file is another one than before. A read that fails is tried again with the next change."""
        seen = self._seen()
        while True:
            await asyncio.sleep(EVERY_S)
            now = await asyncio.to_thread(self._seen)
            if now != seen:
                seen = now
                reread()

    def _take(self, loaded: Loaded, up: Set[str]) -> None:
        left = {model: port for model, port in self._held.items() if model in up}
        self._held = left | dict(loaded.ports)
        self.files = loaded.files

    def _seen(self) -> dict[Path, tuple[int, int]]:
        """Each file's time and size; of the folder, that a file has come or gone."""
        found = {}
        for path in (*self.files, *([self._folder] if self._folder else [])):
            with suppress(OSError):  # editors replace files: for a moment there may be none
                status = path.stat()
                found[path] = (status.st_mtime_ns, status.st_size)
        return found
