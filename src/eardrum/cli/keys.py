"""The commands `key new` and `keys`: API keys, and their use in a running server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Annotated, Any

import typer

from eardrum.cli.options import CertificateOption, KeyOption, ServerOption
from eardrum.cli.processes import call_server, format_period
from eardrum.cli.terminal import get_console
from eardrum.config.api_keys import HASH_PREFIX, KeyScope, hash_key

KEY_PREFIX = "ear-"
KEY_BYTES = 32


def create_key(
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the key in errors and in `eardrum keys`.")] = "",
    scopes: Annotated[
        list[KeyScope] | None, typer.Option("--scope", metavar="SCOPE", help=f"Right; repeatable: {', '.join(KeyScope)}.")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--models", metavar="PATTERN", help="Models that the key may use; repeatable.")
    ] = None,
) -> None:
    """Create a key: it is printed once, and an entry for `api_keys` in the config with its hash."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    print(f"{key}\n\nGive it to the client; it cannot be shown again. Add its hash to the config:\n")
    print(f"api_keys:\n  - key: {HASH_PREFIX}{hash_key(key).hex()}")
    for label, values in (("scopes", scopes), ("models", models)):
        if values:
            print(f"    {label}: [{', '.join(map(_quote, values))}]")
    if name:
        print(f"    name: {_quote(name)}")


def _quote(value: str) -> str:
    return value if value.replace("-", "").replace("_", "").isalnum() else f"'{value.replace(chr(39), 2 * chr(39))}'"


def list_keys(server: ServerOption = "", key: KeyOption = "", certificate: CertificateOption = None) -> None:
    """List the API keys of a running server, and how much each was used."""
    keys = asyncio.run(call_server(server, key, certificate, lambda client: client.list_keys()))
    if not keys:
        print("The server has no api_keys: everybody who reaches it is let in.")
        return
    from rich.table import Table

    table = Table("key", "scopes", "requests", "refused", "audio", "in progress", box=None, pad_edge=False)
    for entry in keys:
        audio = format_period(entry["audio_seconds"])
        table.add_row(
            entry["name"],
            " ".join(entry["scopes"]),
            *(str(entry[name]) for name in ("requests", "refused")),
            audio,
            str(entry["in_progress"]),
        )
    get_console().print(table)


COMMANDS: dict[str, Callable[..., Any]] = {"keys": list_keys}
