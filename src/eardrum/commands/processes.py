"""`ps`, `load`, `stop` and `logs`: the models whose processes run in a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from time import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eardrum.client import Client
from eardrum.errors import ConfigError

console = Console(soft_wrap=True, highlight=False)

DEFAULT_SERVER = "http://127.0.0.1:8100"
Name = Annotated[str, typer.Argument(help="Model or alias.")]
Server = Annotated[str, typer.Option(help="The server to ask.")]


def ps(server: Server = DEFAULT_SERVER) -> None:
    """Show the models that are loaded in a running server."""
    models = asyncio.run(_running(server))
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


def load(name: Name, server: Server = DEFAULT_SERVER) -> None:
    """Load a model in a running server and wait until it serves."""
    print(f"Loaded {asyncio.run(_loaded(server, name))}.")


def stop(
    name: Annotated[str, typer.Argument(help="Model or alias.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Unload all models.")] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Unload a model in a running server: its process ends when it has finished what it has begun."""
    if bool(name) == every:
        raise ConfigError("Which model? Say one name, or --all.")
    if every:
        asyncio.run(_all_unloaded(server))
        print("Unloaded all models.")
    else:
        print(f"Unloaded {asyncio.run(_unloaded(server, name))}.")


def logs(
    name: Annotated[str, typer.Argument(help="Model or alias, or `upstream` for all models; the server if left out.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what comes, too, until Ctrl-C.")] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Show what a model, or the server itself, said last."""
    with suppress(KeyboardInterrupt, BrokenPipeError):
        asyncio.run(_print_logs(server, name, follow=follow))


async def _running(server: str) -> list[dict[str, Any]]:
    async with Client(server) as client:
        return await client.running()


async def _loaded(server: str, name: str) -> str:
    async with Client(server) as client:
        return await client.load(name)


async def _all_unloaded(server: str) -> None:
    async with Client(server) as client:
        await client.unload_all()


async def _print_logs(server: str, name: str, *, follow: bool) -> None:
    async with Client(server) as client:
        if not follow:
            print(await client.logs(name), end="")
            return
        async with aclosing(client.follow_logs(name)) as news:
            async for text in news:
                print(text, end="", flush=True)


async def _unloaded(server: str, name: str) -> str:
    async with Client(server) as client:
        return await client.unload(name)


def _period(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


COMMANDS: dict[str, Callable[..., None]] = {"ps": ps, "load": load, "stop": stop, "logs": logs}
