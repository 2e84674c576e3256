"""Models into the store, with progress: from the hub, or from a folder."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

from eardrum.commands import describe
from eardrum.engines import registry
from eardrum.errors import ConfigError
from eardrum.gateway import choice, names
from eardrum.gateway.inventory import Inventory, engine_of
from eardrum.gateway.pull import Puller
from eardrum.gateway.store import Store, is_written_as_path, size_of, unpacked

INTERRUPTED = 130
"""Exit code of what Ctrl-C ended."""

Advance = Callable[[int, int], None]
"""Told how many bytes are there, and of how many."""


def folder_meant(name: str) -> Path | None:
    """The folder that a name on the command line is, if it is one. A name that engines know stays a name.

    Raises:
        ConfigError: it is written as a path, and there is no such folder.
    """
    if not name:
        raise ConfigError("Which model? Say a name or a folder.")
    path = Path(name).expanduser()
    written_as_path = is_written_as_path(name)
    if path.is_dir() and (written_as_path or not names.matches(name)):
        return path.resolve()
    if written_as_path:
        raise ConfigError(f"{name} is a file: name the folder that holds it." if path.exists() else f"There is no folder {name}.")
    return None


def copied(folder: Path, store: Store, *, id: str, engine: str) -> None:
    """Copy the model in a folder into the store.

    Raises:
        ConfigError: no engine recognises the files, or the name will not do.
        PullError: they cannot be read.
        StorageFullError: they do not fit.
    """
    source, own_id = unpacked(folder)
    id = id or own_id
    recognised = engine_of(source)
    _warn_of_missing(engine or recognised)
    if not recognised and not engine:
        raise ConfigError(f"No engine recognises the files in {source}. `eardrum engines` lists which files each looks for.")
    total, done = size_of(source), 0
    with _progress(id) as advance:

        def copied(bytes: int) -> None:
            nonlocal done
            done += bytes
            advance(done, total)

        target = store.add(source, id, copied)
    print(f"{id} is in the store, {describe.size(size_of(target))} at {target}.")
    if engine and engine != recognised:
        print(f"Have it run by {engine} with `models: {{{id}: {{engine: {engine}}}}}` in the config.")
    else:
        _say_how_to_use(id, recognised)


def fetched(name: str, inventory: Inventory, engine: str) -> None:
    """Fetch a model from the hub. Ctrl-C keeps what has arrived.

    Raises:
        ModelNotFoundError: nobody knows the name.
        PullError: it cannot be had.
        StorageFullError: it does not fit.
    """
    try:
        asyncio.run(_fetch(name, inventory, engine))
    except KeyboardInterrupt:
        print(f"\nInterrupted. What has arrived is kept: `eardrum pull {name}` continues.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


async def _fetch(name: str, inventory: Inventory, engine: str) -> None:
    puller = Puller(inventory.store.folder)
    match = await choice.choose(name, inventory, puller, engine)
    _warn_of_missing(match.card.name)
    print(f"Fetching {match.repository} for the engine {match.card.name}.", flush=True)
    completed = 0
    with _progress(match.repository) as advance:
        async with aclosing(puller.pull(match.repository, match.card.downloads)) as steps:
            async for progress in steps:
                completed = progress.completed
                advance(completed, progress.total)
    print(f"{match.repository} is here, {describe.size(completed)} at {inventory.store.find(match.repository)}.")
    _say_how_to_use(name, match.card.name)


def _warn_of_missing(engine: str) -> None:
    """Before what may take long."""
    if engine and (card := registry.card(engine)).missing:
        print(f"It cannot run yet. {card.how_to_install_here}", file=sys.stderr, flush=True)


def _say_how_to_use(name: str, engine: str) -> None:
    card = registry.card(engine)
    if card.missing:
        print(f"Before it can run: {card.how_to_install_here}")
    print(f"Try it: eardrum transcribe FILE --model {name}")


@contextmanager
def _progress(title: str) -> Iterator[Advance]:
    """A bar on the terminal; elsewhere a line for every tenth."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        line = bar.add_task(title, total=None)
        yield lambda completed, total: bar.update(line, completed=completed, total=total)


class _Lines:
    """Progress where there is no terminal."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, completed: int, total: int) -> None:
        percent = 100 * completed // total if total else 100
        if percent >= self._next:
            print(f"{percent:3} % of {describe.size(total)}", file=sys.stderr, flush=True)
            self._next = percent // 10 * 10 + 10
