"""`ps`, `load`, `stop` and `logs`: the models whose processes run in a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from eardrum.commands.options import Certificate, Key
from eardrum.errors import ConfigError
from eardrum.importing import uncollected

if TYPE_CHECKING:
    from eardrum.client import Client

console = Console(soft_wrap=True, highlight=False)

DEFAULT_SERVER = "http://127.0.0.1:8100"
Name = Annotated[str, typer.Argument(help="Model or alias.")]
Server = Annotated[str, typer.Option(help="The server to ask.")]


def ps(server: Server = DEFAULT_SERVER, key: Key = "", certificate: Certificate = None) -> None:
    """Show the models that are loaded in a running server."""
    models = asyncio.run(_asked(server, key, certificate, lambda client: client.running()))
    if not models:
        print("No model is loaded.")
        return
    table = Table("model", "engine", "state", "requests", "pid", "loaded for", "unloads in", box=None, pad_edge=False)
    table.columns[0].no_wrap = True
    for model in models:
        left = model["ttl_remaining"]
        table.add_row(
            model["id"],
            model["engine"],
            model["state"],
            str(model["requests"]),
            "-" if model["pid"] is None else str(model["pid"]),
            _period(time() - model["loaded_at"]),
            "-" if left is None else _period(left),
        )
    console.print(table)


def load(name: Name, server: Server = DEFAULT_SERVER, key: Key = "", certificate: Certificate = None) -> None:
    """Load a model in a running server and wait until it serves."""
    print(f"Loaded {asyncio.run(_asked(server, key, certificate, lambda client: client.load(name)))}.")


def stop(
    name: Annotated[str, typer.Argument(help="Model or alias.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Unload all models.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Do not let it finish what it has begun.")] = False,
    server: Server = DEFAULT_SERVER,
    key: Key = "",
    certificate: Certificate = None,
) -> None:
    """Unload a model in a running server: its process ends when it has finished what it has begun."""
    if bool(name) == every:
        raise ConfigError("Which model? Say one name, or --all.")
    if every:
        asyncio.run(_asked(server, key, certificate, lambda client: client.unload_all(force=force)))
        print("Unloaded all models.")
    else:
        print(f"Unloaded {asyncio.run(_asked(server, key, certificate, lambda client: client.unload(name, force=force)))}.")


def logs(
    name: Annotated[str, typer.Argument(help="Model or alias, or `upstream` for all models; the server if left out.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what comes, too, until Ctrl-C.")] = False,
    server: Server = DEFAULT_SERVER,
    key: Key = "",
    certificate: Certificate = None,
) -> None:
    """Show what a model, or the server itself, said last."""
    if not follow:
        print(asyncio.run(_asked(server, key, certificate, lambda client: client.logs(name))), end="")
        return
    with suppress(KeyboardInterrupt):
        asyncio.run(_asked(server, key, certificate, lambda client: _print_logs(client, name)))


Answer = TypeVar("Answer")


async def _asked(server: str, key: str, certificate: Path | None, ask: Callable[[Client], Awaitable[Answer]]) -> Answer:
    with uncollected():
        from eardrum.client import Client

    async with Client(server, key, certificate) as client:
        return await ask(client)


async def _print_logs(client: Client, name: str) -> None:
    async with aclosing(client.follow_logs(name)) as news:
        async for text in news:
            print(text, end="", flush=True)


def _period(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


COMMANDS: dict[str, Callable[..., None]] = {"ps": ps, "load": load, "stop": stop, "logs": logs}
