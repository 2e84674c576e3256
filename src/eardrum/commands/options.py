"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[list[Path] | None, typer.Option("--config", help="YAML file with settings; repeatable.")]
ConfigFolder = Annotated[Path | None, typer.Option("--config-dir", help="Folder of YAML files, read after --config.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="Override one setting; repeatable.")]
Certificate = Annotated[
    Path | None, typer.Option(help="PEM file with the server's certificate, or its signer's, if this system does not trust it.")
]
Key = Annotated[str, typer.Option(help="One of the server's `apiKeys`, if it has any.")]
