"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eardrum import config

ConfigFile = Annotated[list[Path] | None, typer.Option("--config", help="YAML file with settings; repeatable.")]
ConfigFolder = Annotated[Path | None, typer.Option("--config-dir", help="Folder of YAML files, read after --config.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one setting; repeatable.")]
Certificate = Annotated[
    Path | None,
    typer.Option(
        envvar=config.CLIENT_CERTIFICATE_VARIABLE,
        help="PEM file with the server's certificate, or its signer's, if this system does not trust it.",
    ),
]
Key = Annotated[str, typer.Option(envvar=config.CLIENT_KEY_VARIABLE, help="One of the server's `apiKeys`, if it has any.")]
Server = Annotated[
    str,
    typer.Option(
        envvar=config.CLIENT_SERVER_VARIABLE,
        show_default="http://127.0.0.1:8100, or where EARDRUM_HOST and EARDRUM_PORT say that it listens",
        help="The server to ask.",
    ),
]
