"""Reads the server's settings, and reads them again on SIGHUP or when a config file has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from eardrum.config import Settings
from eardrum.config.loading import ConfigExamination, LoadedConfig
from eardrum.config.macros import PortReservations
from eardrum.errors import ConfigError

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 2.0
"""Time between two looks at the files, as llama-swap has it."""


class ConfigSource:
    """Files, environment and flags of one command line. `read_with` reads them, given the ports that are held."""

    def __init__(self, read_with: Callable[[PortReservations], LoadedConfig], folder: Path | None = None):
        self._read_with = read_with
        self._folder = folder
        self._assigned_ports: dict[str, int] = {}
        self.files: tuple[Path, ...] = ()
        """The files that were read last."""

    def read_first(self) -> LoadedConfig:
        """The settings to start with, and what there is to say about them.

        Raises:
            ConfigError: they cannot be read, or make no sense.
        """
        loaded = self._read_with(PortReservations())
        self._adopt(loaded, frozenset())
        return loaded

    @asynccontextmanager
    async def read(self, up: Set[str]) -> AsyncIterator[Settings]:
        """Read them again, for a block that applies them. Commands keep their ports, and no other command gets one on which a
        model of `up` may still listen. If the block refuses them, the ports of the settings before stay assigned.

        Raises:
            ConfigError: they cannot be read, or make no sense.
        """
        avoided = frozenset(port for model, port in self._assigned_ports.items() if model in up)
        loaded = await asyncio.to_thread(self._read_with, PortReservations(self._assigned_ports, avoided))
        for warning in loaded.warnings:
            log.warning("%s", warning)
        self.files = loaded.files
        yield loaded.settings
        self._adopt(loaded, up)

    async def check(self) -> ConfigExamination:
        """Read them again, and report errors and warnings. Nothing is adopted."""
        try:
            loaded = await asyncio.to_thread(self._read_with, PortReservations(self._assigned_ports))
        except ConfigError as error:
            return ConfigExamination(self.files, errors=tuple(error.message.splitlines()))
        return ConfigExamination(loaded.files, warnings=tuple(map(str, loaded.warnings)))

    async def watch(self, reread: Callable[[], object]) -> None:
        """Call `reread` whenever a file is another one than before. A read that fails is tried again with the next change."""
        seen = self._stat_files()
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            now = await asyncio.to_thread(self._stat_files)
            if now != seen:
                seen = now
                reread()

    def _adopt(self, loaded: LoadedConfig, up: Set[str]) -> None:
        left = {model: port for model, port in self._assigned_ports.items() if model in up}
        self._assigned_ports = left | dict(loaded.ports)
        self.files = loaded.files

    def _stat_files(self) -> dict[Path, tuple[int, int]]:
        """Each file's time and size; of the folder, that a file has come or gone."""
        found = {}
        for path in (*self.files, *([self._folder] if self._folder else [])):
            with suppress(OSError):  # editors replace files: for a moment there may be none
                status = path.stat()
                found[path] = (status.st_mtime_ns, status.st_size)
        return found
