"""The command line: `serve`, `transcribe`, and the commands around models.

What only one command needs is imported by that command: the gateway and its client are half of the time that the others
would take to start.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from eardrum import __version__, config, log
from eardrum.commands import check, listen, models, processes
from eardrum.commands.options import Assignments, Certificate, ConfigFile, ConfigFolder, Key
from eardrum.errors import EardrumError
from eardrum.importing import uncollected
from eardrum.source import Source

logger = logging.getLogger(__name__)

app = typer.Typer(
    help="Speech to text behind one port.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


class Format(StrEnum):
    """Formats that `transcribe` writes."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    JSON = "json"
    VERBOSE_JSON = "verbose_json"


def main() -> None:
    """Run a command. An error is one sentence that says what to do."""
    try:
        app()
    except EardrumError as error:
        print(f"eardrum: {error.message}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Speech to text behind one port."""
    if show:
        print(f"eardrum {__version__}")
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.  [default: 8100]")] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", "--tls-cert-file", help="PEM file; the server then speaks HTTPS only.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", "--tls-key-file", help="PEM file with the certificate's private key.")
    ] = None,
    wyoming: Annotated[
        bool | None,
        typer.Option("--wyoming/--no-wyoming", help="Serve Home Assistant.  [default: yes, unless there are apiKeys]"),
    ] = None,
    wyoming_port: Annotated[int | None, typer.Option(help="Port for Home Assistant.  [default: 10300]")] = None,
    config_file: ConfigFile = None,
    config_folder: ConfigFolder = None,
    assignments: Assignments = None,
    watch: Annotated[
        bool, typer.Option("--watch-config", help="Read the config again when it has changed; SIGHUP does too.")
    ] = False,
    sample: Annotated[bool, typer.Option("--sample", help="Transcribe the shipped recording once up.")] = False,
) -> None:
    """Start the server."""
    with uncollected():
        from eardrum import server

    flags = {"enabled": wyoming, "port": wyoming_port}
    given = {name: value for name, value in flags.items() if value is not None}
    overrides = {
        "host": host,
        "port": port,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "wyoming": given or None,
    }
    source = Source(
        lambda ports: config.read(config_file, assignments or (), overrides=overrides, folder=config_folder, ports=ports),
        config_folder,
    )
    loaded = source.first()
    log.set_up(loaded.settings.log.level, loaded.settings.log.format)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    server.run(loaded.settings, source, watch=watch, sample=sample)


@app.command()
def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio or video files.", metavar="FILES...")],
    model: Annotated[str, typer.Option(help="Model or alias; the default model if left out.")] = "",
    language: Annotated[str, typer.Option(help="Language spoken, as a code; detected if left out.")] = "",
    translate: Annotated[bool, typer.Option("--translate", help="Translate into English.")] = False,
    format: Annotated[Format, typer.Option(help="What to write.")] = Format.TEXT,
    output_dir: Annotated[Path | None, typer.Option(help="Write one file per recording here, not to the terminal.")] = None,
    server: Annotated[str, typer.Option(help="Use this server, as in http://127.0.0.1:8100; without it none is needed.")] = "",
    key: Key = "",
    certificate: Certificate = None,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
) -> None:
    """Turn recordings into text, with or without a server."""
    with uncollected():
        from eardrum import offline

    job = offline.Job(files, model=model, language=language, translate=translate, format=format, output_dir=output_dir)
    job.check()
    if server:
        failures = asyncio.run(offline.through_server(job, server, key, certificate))
    else:
        settings = config.load(config_file, assignments or ())
        log.set_up("error", settings.log.format)
        failures = asyncio.run(offline.here(job, settings))
    if failures:
        raise typer.Exit(1)


for name, command in (models.COMMANDS | processes.COMMANDS | check.COMMANDS | listen.COMMANDS).items():
    app.command(name)(command)
