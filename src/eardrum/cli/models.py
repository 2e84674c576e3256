"""The commands `pull`, `list`, `show`, `rm` and `engines`: models on disk, and the engines that run them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from eardrum import config
from eardrum.cli.options import AssignmentsOption, ConfigFileOption
from eardrum.cli.terminal import INTERRUPTED, get_console, print_warning
from eardrum.config import Settings
from eardrum.config.macros import split_command
from eardrum.engines import registry
from eardrum.engines.registry import EngineCard
from eardrum.errors import ConfigError, ModelNotFoundError
from eardrum.gateway.models import download, names
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.download import ModelDownloader
from eardrum.gateway.models.inventory import COMMON_OPTIONS, Model, ModelInventory, detect_engine
from eardrum.gateway.models.store import ModelStore, expand_home, is_written_as_path, measure_size, resolve_folder
from eardrum.redaction import redact_command
from eardrum.transcription import Capabilities
from eardrum.units import format_size

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Id, alias, or a name that an engine knows.")]


def pull(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a model (large-v3, OWNER/NAME), or a folder with a model.")
    ],
    id: Annotated[str, typer.Option("--name", metavar="NAME", help="Name for the model in the folder.")] = "",
    engine: Annotated[str, typer.Option(metavar="ENGINE", help="Engine to run it, if several could.")] = "",
    config_file: ConfigFileOption = None,
    assignments: AssignmentsOption = None,
) -> None:
    """Download a model, or copy one from a folder into the store."""
    inventory = ModelInventory(config.load_settings(config_file, assignments or ()))
    engine = registry.find_card(engine).name if engine else ""
    if folder := find_folder(name):
        copy_model(folder, inventory.store, id=id, engine=engine)
    elif id:
        raise ConfigError("--name is for folders. A model from the hub keeps its name; add others with `aliases` in the config.")
    else:
        download_model(name, inventory, engine)


def download_missing(settings: Settings) -> None:
    """Download the models that the server would download at its start; without any, the default model."""
    catalog = ModelCatalog(settings)
    for name in settings.hooks.on_startup.pull or ("",):
        model = catalog.find_model(name)
        if model.needs_download:
            download_model(model.id, catalog.inventory, "")
        else:
            print(f"{model.id} is on this machine already.")


def list_models(config_file: ConfigFileOption = None, assignments: AssignmentsOption = None) -> None:
    """List the models on this machine and in the config."""
    catalog = ModelCatalog(config.load_settings(config_file, assignments or ()))
    from rich.table import Table

    table = Table("model", "engine", "languages", "size", "from", box=None, pad_edge=False)
    for column in table.columns[:2]:
        column.no_wrap = True
    for model in catalog:
        mark = " (default)" if model.id == catalog.default.id else ""
        size = "missing" if model.needs_download else "-" if model.is_external or model.is_replicated else format_size(model.size)
        has_languages = model.is_speech_model or not model.is_external
        languages = format_languages(model.capabilities) if has_languages else "-"
        table.add_row(model.id + mark, model.engine, languages, size, model.origin)
    get_console().print(table, markup=False)
    print()
    for note in _list_notes(catalog):
        print(note)
    print(f"\nThe default is {catalog.default.id}: {catalog.why_default}.")


SHOWN_ALIASES = 3


def _list_notes(catalog: ModelCatalog) -> list[str]:
    notes = []
    for model in catalog:
        if aliases := catalog.list_aliases(model):
            hidden = len(aliases) - SHOWN_ALIASES
            more = f" and {hidden} more (`eardrum show {quote(model.id)}`)" if hidden > 0 else ""
            notes.append(f"{model.id} is also called {', '.join(aliases[:SHOWN_ALIASES])}{more}.")
        if not model.is_runnable:
            notes.append(f"{model.id} cannot run yet. {model.card.install_hint_here}")
        if model.needs_download:
            notes.append(f"{model.id} is not on this machine: run `{model.format_pull_command()}`.")
    store = catalog.inventory.store
    for id in store.list_unfinished():
        more = (
            f"FOLDER --name {quote(id)}` copies it again"
            if store.is_partly_copied(id)
            else f"{quote(id)}` continues the download"
        )
        notes.append(f"{id} is incomplete: `eardrum pull {more}, `eardrum rm {quote(id)}` deletes it.")
    return notes + [str(failed) for failed in registry.list_broken()]


def show(name: ModelArgument, config_file: ConfigFileOption = None, assignments: AssignmentsOption = None) -> None:
    """Show one model in detail, whether it is on this machine or not."""
    settings = config.load_settings(config_file, assignments or ())
    catalog = ModelCatalog(settings)
    try:
        model = catalog.find_model(name)
    except ModelNotFoundError:
        model = catalog.inventory.find_at_path(name) or catalog.inventory.build_downloadable(names.choose_match(name))
    for line in describe_model(model, catalog):
        print(line)


def remove(
    name: ModelArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    config_file: ConfigFileOption = None,
    assignments: AssignmentsOption = None,
) -> None:
    """Delete a model's files from the store."""
    inventory = ModelInventory(config.load_settings(config_file, assignments or ()))
    id = _find_removable(name, inventory)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"Cannot ask whether to delete {id} from {inventory.store.folder}, because stdin is not a terminal: add --yes."
            )
        typer.confirm(f"Delete {id} from {inventory.store.folder}?", abort=True)
    freed = inventory.store.remove_model(id)
    print(f"Deleted {id}: {format_size(freed)} freed.")


def _find_removable(name: str, inventory: ModelInventory) -> str:
    """Find the model in the store that a name means; returns its id.

    Raises:
        ConfigError: the files belong to the config or to a package.
        ModelNotFoundError: there is no such model.
    """
    store = inventory.store
    if name in _list_stored_ids(store):
        return name
    if (model := inventory.find_configured(name)) and model.source and not store.contains(model.source):
        raise ConfigError(f"{name} is defined in the config: remove it there, and delete its files at {model.source} yourself.")
    wanted = [model.repository] if model else [match.repository for match in names.find_matches(name)]
    if id := next((id for id in wanted if id in _list_stored_ids(store)), ""):
        return id
    if any(name in (other.id, *other.aliases) for other in inventory if other.origin == "embedded"):
        raise ConfigError(f"{name} is part of a Python package: `pip uninstall moonshine-voice` removes it.")
    raise ModelNotFoundError(f"There is no model {names.quote_name(name)} in {store.folder}. `eardrum list` shows all models.")


def _list_stored_ids(store: ModelStore) -> set[str]:
    """List the models in the store, incomplete ones included. Other folders there are not models."""
    return {id for id, source in store if detect_engine(source)} | set(store.list_unfinished())


def list_engines() -> None:
    """List the engines, their capabilities and options, and the packages that they need."""
    from rich.markup import escape

    for card in registry.list_cards().values():
        get_console().print(f"[bold]{escape(card.name)}[/]  {escape(card.title)}")
        for label, text in describe_engine(card):
            print(f"  {label:<11}{text}")
        print()
    for failed in registry.list_broken():
        print(failed)


COMMANDS: dict[str, Callable[..., Any]] = {"pull": pull, "list": list_models, "show": show, "rm": remove, "engines": list_engines}


DownloadProgress = Callable[[int, int], None]
"""Takes the bytes on disk and the total."""


def find_folder(name: str) -> Path | None:
    """Find the folder that a command line argument names, if it does. A name that engines know is not a folder.

    Raises:
        ConfigError: the argument is a path without a folder.
    """
    if not name:
        raise ConfigError("Name a model or a folder.")
    path = expand_home(name)
    written_as_path = is_written_as_path(name)
    if os.path.isdir(path) and (written_as_path or not names.find_matches(name)):  # noqa: PTH112 -- Path's raises for long names
        return path.resolve()
    if written_as_path:
        raise ConfigError(f"{name} is a file: name its folder." if os.path.exists(path) else f"There is no folder {name}.")
    return None


def copy_model(folder: Path, store: ModelStore, *, id: str, engine: str) -> None:
    """Copy the model in a folder into the store.

    Raises:
        ConfigError: no engine recognises the files, or the name is invalid.
        PullError: the files cannot be read.
        StorageFullError: the disk has no room.
    """
    source, own_id = resolve_folder(folder)
    id = id or own_id
    recognised = detect_engine(source)
    _warn_if_not_installed(engine or recognised)
    if not recognised and not engine:
        raise ConfigError(f"No engine recognises the files in {source}. `eardrum engines` lists which files each looks for.")
    total, done = measure_size(source), 0
    with _show_download(id) as advance:

        def add_bytes(bytes: int) -> None:
            nonlocal done
            done += bytes
            advance(done, total)

        target = store.import_folder(source, id, add_bytes)
    print(f"Copied {id} to {target} ({format_size(measure_size(target))}).")
    if engine and engine != recognised:
        print(f"To run it with {engine}, add `models: {{{id}: {{engine: {engine}}}}}` to the config.")
    else:
        _print_usage(id, recognised)


def download_model(name: str, inventory: ModelInventory, engine: str) -> None:
    """Download a model from the hub. After Ctrl-C the next download continues.

    Raises:
        ModelNotFoundError: neither an engine nor the hub knows the name.
        PullError: the download failed.
        StorageFullError: the disk has no room.
    """
    try:
        asyncio.run(_download_model(name, inventory, engine))
    except KeyboardInterrupt:
        print(f"\nInterrupted. `eardrum pull {quote(name)}` continues where it stopped.", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


async def _download_model(name: str, inventory: ModelInventory, engine: str) -> None:
    puller = ModelDownloader(inventory.store.folder)
    match = await download.choose_download(name, inventory, puller, engine)
    _warn_if_not_installed(match.card.name)
    print(f"Downloading {match.repository} for the engine {match.card.name}.", flush=True)
    completed = 0
    with _show_download(match.repository) as advance:
        async with aclosing(puller.download_model(match.repository, match.card.downloads)) as steps:
            async for progress in steps:
                completed = progress.completed
                advance(completed, progress.total)
    print(f"Downloaded {match.repository} to {inventory.store.find_files(match.repository)} ({format_size(completed)}).")
    _print_usage(name, match.card.name)


def _warn_if_not_installed(engine: str) -> None:
    """Warn before a long download that the engine lacks packages."""
    if engine and (card := registry.find_card(engine)).missing_packages:
        print_warning(f"The model cannot run yet. {card.install_hint_here}")


def _print_usage(name: str, engine: str) -> None:
    card = registry.find_card(engine)
    if card.missing_packages:
        print(f"Before the first use: {card.install_hint_here}")
    tried = (
        f'eardrum say "Hello." -o hello.mp3 --model {quote(name)}'
        if card.capabilities.speak
        else f"eardrum transcribe FILE --model {quote(name)}"
    )
    print(f"Try it: {tried}")


@contextmanager
def _show_download(title: str) -> Iterator[DownloadProgress]:
    """Show a bar on a terminal, and elsewhere a line for every 10 %."""
    if not sys.stderr.isatty():
        yield _DownloadLines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        line = bar.add_task(title, total=None)
        yield lambda completed, total: bar.update(line, completed=completed, total=total)


class _DownloadLines:
    """Download progress as lines."""

    def __init__(self) -> None:
        self._next_percent = 0

    def __call__(self, completed: int, total: int) -> None:
        percent = 100 * completed // total if total else 100
        if percent >= self._next_percent:
            print(f"{percent:3} % of {format_size(total)}", file=sys.stderr, flush=True)
            self._next_percent = percent // 10 * 10 + 10


CAPABILITY_LABELS = {
    "translate": "translation",
    "words": "word times",
    "logprobs": "token probabilities",
    "prompt": "prompt",
    "hotwords": "keywords",
    "temperature": "temperature",
    "detects_language": "language detection",
}
"""Names for the capabilities that a model has or lacks."""


def format_languages(can: Capabilities) -> str:
    """Format the codes of a model's languages, or `many`."""
    return ", ".join(can.languages) or "many"


def format_capabilities(can: Capabilities) -> str:
    """Format the capabilities beyond plain text, or the voices."""
    if can.speak:
        return f"speech, with the voices {', '.join(voice for voice, _ in can.voices)}" if can.voices else "speech"
    return ", ".join(words for name, words in CAPABILITY_LABELS.items() if getattr(can, name)) or "plain transcription"


def describe_model(model: Model, catalog: ModelCatalog) -> Iterator[str]:
    """Yield the lines that describe a model."""
    facts = _describe_external_model(model, model.entry) if model.is_external and model.entry else _describe_local_model(model)
    known = [] if model.is_external else [name for name, repository in model.card.names.items() if repository == model.repository]
    facts = {
        "model": model.id,
        **facts,
        "also called": ", ".join(dict.fromkeys([*catalog.list_aliases(model), *known])),
        "fallback": ", ".join(model.fallback),
    }
    yield from (f"{label:<13}{text}" for label, text in facts.items() if text)
    if model.needs_download:
        files = ", ".join(model.card.downloads) or "all files"
        state = "incomplete" if catalog.inventory.store.is_unfinished(model.repository) else "not on this machine"
        yield f"\nIt is {state}: `{model.format_pull_command()}` downloads {files} of {model.repository}."
    if not model.is_runnable:
        yield f"\nIt cannot run yet. {model.card.install_hint_here}"


def _describe_local_model(model: Model) -> dict[str, str]:
    """Describe a model that an engine here runs."""
    return {
        "engine": f"{model.engine} ({model.card.title})",
        "from": model.origin,
        "repository": model.repository,
        "files": str(model.source or ""),
        "replicas": model.entry.replicas.summary if model.entry else "",
        "size": "" if model.needs_download or model.is_replicated else format_size(model.size),
        "languages": format_languages(model.capabilities),
        "can": format_capabilities(model.capabilities),
        "windows": ""
        if model.capabilities.speak
        else f"up to {model.capabilities.max_window_s:g} s, {model.capabilities.max_batch} at once",
        "set": ", ".join(f"{name}={value}" for name, value in model.options.items() if value != "auto"),
        "options": ", ".join(dict.fromkeys([*COMMON_OPTIONS, *model.card.options])),
    }


def _describe_external_model(model: Model, entry: config.ModelSettings) -> dict[str, str]:
    """Describe a model of another server. Its environment is left out, because it holds keys."""
    can = entry.capabilities
    more = [word for word, has in (("tools", can.tools), ("reranking", can.reranker)) if has]
    return {
        "name": entry.name,
        "description": entry.description,
        "engine": model.engine,
        "from": model.origin,
        "command": redact_command(" ".join(split_command(entry.cmd))),
        "stopped by": redact_command(entry.cmd_stop),
        "address": redact_command(entry.proxy),
        "ready when": entry.check_endpoint if entry.cmd else "",
        "takes": ", ".join(can.inputs),
        "gives": ", ".join(can.outputs),
        "can": ", ".join(more),
        "context": f"{can.context} tokens" if can.context else "",
    }


def describe_engine(card: EngineCard) -> Iterator[tuple[str, str]]:
    """Yield labels and texts that describe an engine."""
    yield (
        "installed",
        f"no, it needs {', '.join(card.missing_packages)}: {card.install_here}" if card.missing_packages else "yes",
    )
    yield "languages", format_languages(card.capabilities)
    yield "can", format_capabilities(card.capabilities)
    if card.options:
        yield "options", ", ".join(card.options)
    if card.names or card.repositories:
        yield "names", list_known_names(card)
    if card.layouts:
        yield "files", " or ".join(", ".join(layout) for layout in card.layouts)


def list_known_names(card: EngineCard) -> str:
    """List one name for each model that an engine knows, and the patterns of repositories it takes."""
    by_model: dict[str, str] = {}
    for name, repository in card.names.items():
        by_model.setdefault(repository, name)
    return ", ".join([*by_model.values(), *card.repositories])
