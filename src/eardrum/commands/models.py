"""`pull`, `list`, `show`, `rm` and `engines`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eardrum import config
from eardrum.commands import describe, fetch
from eardrum.commands.options import Assignments, ConfigFile
from eardrum.engines import registry
from eardrum.errors import ConfigError, ModelNotFoundError
from eardrum.gateway import names
from eardrum.gateway.catalog import Catalog
from eardrum.gateway.inventory import Inventory, engine_of
from eardrum.gateway.store import Store

console = Console(soft_wrap=True, highlight=False)
Name = Annotated[str, typer.Argument(help="Model: its id, an alias, or a name an engine knows.")]


def pull(
    name: Annotated[str, typer.Argument(help="Name of a model (large-v3, OWNER/NAME), or a folder that holds one.")],
    id: Annotated[str, typer.Option("--name", help="What the model in the folder is to be called.")] = "",
    engine: Annotated[str, typer.Option(help="Engine that is to run it, where several could.")] = "",
    config_file: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Fetch a model, or copy one in from a folder."""
    inventory = Inventory(config.load(config_file, assignments or ()))
    engine = registry.card(engine).name if engine else ""
    if folder := fetch.folder_meant(name):
        fetch.copied(folder, inventory.store, id=id, engine=engine)
    elif id:
        raise ConfigError("--name is for folders: a model from the hub keeps its name. `aliases:` in the config gives it others.")
    else:
        fetch.fetched(name, inventory, engine)


def list_models(config_file: ConfigFile = None, assignments: Assignments = None) -> None:
    """Show the models this server has."""
    catalog = Catalog(config.load(config_file, assignments or ()))
    table = Table("model", "engine", "languages", "size", "from", box=None, pad_edge=False)
    for column in table.columns[:2]:
        column.no_wrap = True
    for model in catalog:
        mark = " (default)" if model.id == catalog.default.id else ""
        size = "not here" if model.absent else "-" if model.foreign else describe.size(model.size)
        languages = describe.languages(model.capabilities) if model.hears else "-"
        table.add_row(model.id + mark, model.engine, languages, size, model.origin)
    console.print(table)
    print()
    for note in _notes(catalog):
        print(note)
    print(f"\nThe default is {catalog.default.id}: {catalog.why_default}.")


def _notes(catalog: Catalog) -> list[str]:
    notes = []
    for model in catalog:
        if aliases := catalog.aliases(model):
            notes.append(f"{model.id} is also called {', '.join(aliases)}.")
        if not model.runnable:
            notes.append(f"{model.id} cannot run yet. {model.card.how_to_install_here}")
        if model.absent:
            notes.append(f"{model.id} is not on this machine: `{model.pull_command()}`.")
    half = catalog.inventory.store.half_fetched()
    notes += [f"{id} is not whole: pull it again, which continues a download, or `eardrum rm {id}`." for id in half]
    return notes + [str(failed) for failed in registry.broken()]


def show(name: Name, config_file: ConfigFile = None, assignments: Assignments = None) -> None:
    """Show what there is to know of one model, here or not."""
    settings = config.load(config_file, assignments or ())
    catalog = Catalog(settings)
    try:
        model = catalog.find(name)
    except ModelNotFoundError:
        model = catalog.inventory.at(name) or catalog.inventory.fetchable(names.choose(name))
    for line in describe.lines(model, catalog):
        print(line)


def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Delete a model's files from the store."""
    inventory = Inventory(config.load(config_file, assignments or ()))
    id = _removable(name, inventory)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"Nobody can be asked whether to delete {id} from {inventory.store.folder}: say --yes.")
        typer.confirm(f"Delete {id} from {inventory.store.folder}?", abort=True)
    freed = inventory.store.remove(id)
    print(f"{id} is gone; {describe.size(freed)} are free again.")


def _removable(name: str, inventory: Inventory) -> str:
    """The id in the store of what a name means.

    Raises:
        ConfigError: its files are not the store's to delete.
        ModelNotFoundError: there is no such model.
    """
    store = inventory.store
    if name in _ids(store):
        return name
    if (model := inventory.configured(name)) and model.source and not store.holds(model.source):
        raise ConfigError(f"{name} is a model of the config: take it out there; its files at {model.source} are yours to delete.")
    wanted = [model.repository] if model else [match.repository for match in names.matches(name)]
    if id := next((id for id in wanted if id in _ids(store)), ""):
        return id
    if any(name in (other.id, *other.aliases) for other in inventory if other.origin == "embedded"):
        raise ConfigError(f"{name} came with the package: `pip uninstall moonshine-voice` removes it.")
    raise ModelNotFoundError(f"There is no model {names.shown(name)} in {store.folder}. `eardrum list` shows those there are.")


def _ids(store: Store) -> set[str]:
    """What is ours to delete: not every folder in a store is a model."""
    return {id for id, source in store if engine_of(source)} | set(store.half_fetched())


def engines() -> None:
    """Show what can run models, which names it knows, and what is missing."""
    for card in registry.cards().values():
        console.print(f"[bold]{card.name}[/]  {card.title}")
        for label, text in describe.engine(card):
            print(f"  {label:<11}{text}")
        print()
    for failed in registry.broken():
        print(failed)


COMMANDS: dict[str, Callable[..., Any]] = {"pull": pull, "list": list_models, "show": show, "rm": remove, "engines": engines}
