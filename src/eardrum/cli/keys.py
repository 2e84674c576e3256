"""The commands `key new` and `keys`: API keys, and their use in a running server."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from eardrum.cli.options import CertificateOption, KeyOption, ServerOption
from eardrum.cli.processes import call_server, format_period
from eardrum.cli.terminal import get_console
from eardrum.config.api_keys import HASH_PREFIX, ApiKeySettings, KeyScope, hash_key

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
    expires: Annotated[
        str, typer.Option(metavar="DATE", help="When the key ends: 2027-01-31, or 2027-01-31T18:00:00Z.", show_default="never")
    ] = "",
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most requests to models in a minute.")
    ] = None,
    audio_per_hour: Annotated[str, typer.Option(metavar="TIME", help="Most audio in an hour: 30m, 2h.")] = "",
    max_requests: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Most requests to models at the same time, live sessions included."),
    ] = None,
    max_job_items: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most recordings in jobs that have not ended.")
    ] = None,
    max_file_bytes: Annotated[str, typer.Option(metavar="SIZE", help="Size of all files of jobs: 500M, 20G.")] = "",
) -> None:
    """Create a key, and print it once, with an entry for `api_keys` in the config that holds its hash."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    given: dict[str, Any] = {
        "key": f"{HASH_PREFIX}{hash_key(key).hex()}",
        "name": name,
        "scopes": [scope.value for scope in scopes or ()],
        "models": models,
        "expires": expires,
        "requests_per_minute": requests_per_minute,
        "audio_per_hour": audio_per_hour,
        "max_requests": max_requests,
        "max_job_items": max_job_items,
        "max_file_bytes": max_file_bytes,
    }
    entry = {setting: value for setting, value in given.items() if value}
    _check_entry(entry)
    from eardrum.config.yaml_files import format_yaml

    print(f"{key}\n\nGive it to the client; it cannot be shown again. Add its hash to the config:\n")
    print(format_yaml({"api_keys": [entry]}), end="")


def _check_entry(entry: dict[str, Any]) -> None:
    """Check that the config will take the entry.

    Raises:
        BadParameter: it will not.
    """
    try:
        ApiKeySettings.model_validate(entry)
    except ValidationError as invalid:
        error = invalid.errors()[0]
        raise typer.BadParameter(
            f"{error['msg'].removeprefix('Value error, ').removesuffix('.')}.",
            param_hint=f"--{str(error['loc'][0]).replace('_', '-')}",
        ) from None


def list_keys(server: ServerOption = "", key: KeyOption = "", certificate: CertificateOption = None) -> None:
    """List the API keys of a running server, and how much each was used."""
    keys = asyncio.run(call_server(server, key, certificate, lambda client: client.list_keys()))
    if not keys:
        print("The server has no api_keys: every client that can connect has all rights.")
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
    get_console().print(table, markup=False)


COMMANDS: dict[str, Callable[..., Any]] = {"keys": list_keys}
