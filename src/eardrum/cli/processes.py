"""The commands `ps`, `load`, `stop` and `logs`: models loaded in a running server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, suppress
from datetime import timedelta
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from eardrum.cli.options import CertificateOption, KeyOption, ServerOption
from eardrum.cli.terminal import print_table
from eardrum.errors import ConfigError
from eardrum.garbage_collection import pause_garbage_collection
from eardrum.units import format_size

if TYPE_CHECKING:
    from rich.table import Table

    from eardrum.client import EardrumClient


MAX_DEPARTURES = 10
"""Unloaded models that are shown, the last ones first."""
LoadedModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Model or alias.")]


def list_processes(server: ServerOption = "", key: KeyOption = "", certificate: CertificateOption = None) -> None:
    """List the models that a running server has loaded, and why others were unloaded."""
    models, gone = asyncio.run(call_server(server, key, certificate, lambda client: client.list_running()))
    if not models:
        print("No model is loaded.")
    else:
        print_table(_build_table(models))
    for model in models:
        if reason := model.get("device_reason"):
            print(f"\n{model['id']} runs on the CPU: {reason}")
        for line in format_replicas(model):
            print(line)
    for departure in gone[:MAX_DEPARTURES]:
        print(
            f"{departure['id']} was unloaded {format_period(time() - departure['at'])} ago: {departure['message']}.".replace(
                "..", "."
            )
        )


def _build_table(models: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    columns = ("model", "engine", "state", "requests", "device", "memory", "pid", "loaded for", "unloads in")
    table = Table(*columns, box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[4].no_wrap = True
    for model in models:
        left = model["ttl_remaining"]
        table.add_row(
            model["id"],
            model["engine"],
            f"{model['state']} ({model['reason']})" if model.get("reason") else model["state"],
            str(model["requests"]),
            "-" if "auto" in (model["device"], model["compute_type"]) else f"{model['device']}, {model['compute_type']}",
            _format_memory(model),
            "-" if model["pid"] is None else str(model["pid"]),
            format_period(time() - model["loaded_at"]),
            "-" if left is None else format_period(left),
        )
    return table


def format_replicas(model: dict[str, Any]) -> Iterator[str]:
    """Format the replicas of a model, a line each; nothing for a model without any."""
    replicas = model.get("replicas", [])
    if not replicas:
        return
    ready = sum(replica["state"] == "ready" for replica in replicas)
    yield f"\n{model['id']}: {ready} of {len(replicas)} replicas ready"
    names = [replica["address"] or replica["name"] for replica in replicas]
    width = max(map(len, names))
    for name, replica in zip(names, replicas, strict=True):
        device = f", {replica['device']}" if replica["device"] else ""
        why = f": {replica['detail']}" if replica["detail"] else ""
        requests = "1 request" if replica["requests"] == 1 else f"{replica['requests']} requests"
        node = f", on {replica['node']}" if replica.get("node") else ""
        yield f"  {name:<{width}}  {replica['state']}, {requests}{device}{node}{why}"


def _format_memory(model: dict[str, Any]) -> str:
    """Format the memory of the model's process and its part on a GPU; `-` for another server, whose memory is not known."""
    whole, on_gpu = model.get("size", 0), model.get("size_vram", 0)
    if not whole:
        return "-"
    return format_size(whole) + (f" ({format_size(on_gpu)} GPU)" if on_gpu else "")


def load(
    name: LoadedModelArgument, server: ServerOption = "", key: KeyOption = "", certificate: CertificateOption = None
) -> None:
    """Load a model in a running server, and wait until it is ready."""
    print(f"Loaded {asyncio.run(call_server(server, key, certificate, lambda client: client.load(name)))}.")


def stop(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Model or alias.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Unload all models.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Unload at once: running requests fail.")] = False,
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
) -> None:
    """Unload a model in a running server, after its running requests."""
    if bool(name) == every:
        raise ConfigError("Name one model, or use --all.")
    if every:
        asyncio.run(call_server(server, key, certificate, lambda client: client.unload_all(force=force)))
        print("Unloaded all models.")
    else:
        print(f"Unloaded {asyncio.run(call_server(server, key, certificate, lambda client: client.unload(name, force=force)))}.")


def show_logs(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="Model or alias, or `upstream` for all models. Without it: the server's log.")
    ] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing new lines until Ctrl-C.")] = False,
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
) -> None:
    """Show the last log lines of a model, or of the server itself."""
    if not follow:
        print(asyncio.run(call_server(server, key, certificate, lambda client: client.read_logs(name))), end="")
        return
    with suppress(KeyboardInterrupt):
        asyncio.run(call_server(server, key, certificate, lambda client: _print_logs(client, name)))


Result = TypeVar("Result")


async def call_server(
    server: str, key: str, certificate: Path | None, ask: Callable[[EardrumClient], Awaitable[Result]]
) -> Result:
    """Ask a running server for something.

    Raises:
        EardrumError: the server cannot be reached, or refuses.
    """
    with pause_garbage_collection():
        from eardrum.client import EardrumClient

    async with EardrumClient(server, key, certificate) as client:
        return await ask(client)


async def _print_logs(client: EardrumClient, name: str) -> None:
    async with aclosing(client.follow_logs(name)) as texts:
        async for text in texts:
            print(text, end="", flush=True)


def format_period(seconds: float) -> str:
    """Format a time in seconds as `1:02:03`."""
    return str(timedelta(seconds=round(seconds)))


COMMANDS: dict[str, Callable[..., None]] = {"ps": list_processes, "load": load, "stop": stop, "logs": show_logs}
