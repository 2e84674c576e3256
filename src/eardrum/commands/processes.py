"""`ps` and `stop`: the models whose processes run in a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from time import time
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from eardrum.client import Client

console = Console(soft_wrap=True, highlight=False)

DEFAULT_SERVER = "http://127.0.0.1:8100"
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
            str(model["pid"]),
            _period(time() - model["loaded_at"]),
            "-" if left is None else _period(left),
        )
    console.print(table)


def stop(name: Annotated[str, typer.Argument(help="Model or alias.")], server: Server = DEFAULT_SERVER) -> None:
    """Unload a model in a running server: its process ends when it has finished what it has begun."""
    print(f"Unloaded {asyncio.run(_unloaded(server, name))}.")


async def _running(server: str) -> list[dict[str, Any]]:
    async with Client(server) as client:
        return await client.running()


async def _unloaded(server: str, name: str) -> str:
    async with Client(server) as client:
        return await client.unload(name)


def _period(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


COMMANDS: dict[str, Callable[..., None]] = {"ps": ps, "stop": stop}
