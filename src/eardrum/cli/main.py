"""The `eardrum` command: `serve`, and all other commands registered beside it.

A command imports what it alone needs when it runs: importing the gateway and its client would double the start time of the
others.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from eardrum import __version__, config, logging_setup
from eardrum.cli import check, gc_paused, listen, models, processes, transcribe
from eardrum.cli.options import AssignmentsOption, ConfigFileOption, ConfigFolderOption
from eardrum.errors import EardrumError
from eardrum.server.reload import ConfigSource

logger = logging.getLogger(__name__)


class Command(TyperCommand):
    """A command whose help shows no value type beside flags, which take none."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """The parameters, flags with an empty type."""
        return _hide_flag_types(super().get_params(ctx))


class CommandGroup(TyperGroup):
    """The program itself, whose own flags are shown alike."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """The parameters, flags with an empty type."""
        return _hide_flag_types(super().get_params(ctx))


def _hide_flag_types(parameters: Sequence[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return list(parameters)


app = typer.Typer(
    cls=CommandGroup,
    help="Speech to text behind one port.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


PROGRAM_NAME = "eardrum"


def main() -> None:
    """Run a command. An error is one sentence that says what to do."""
    _repair_standard_streams()
    try:
        app(prog_name=PROGRAM_NAME)
    except EardrumError as error:
        print(f"{logging_setup.color_for_stderr('eardrum:', logging_setup.RED)} {error.message}", file=sys.stderr)
        sys.exit(1)


def _repair_standard_streams() -> None:
    """Take care that a terminal's encoding, or a stream that is closed, is no reason to fail.

    A name of a file may hold bytes that are no text, and a transcript letters that the terminal does not have.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115, PTH123 -- to the end
            setattr(sys, name, nothing)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is


@app.callback(invoke_without_command=True)
def show_version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Speech to text behind one port."""
    if show:
        print(f"eardrum {__version__}")
        raise typer.Exit


@app.command("help", cls=Command)
def show_help(
    command: Annotated[str, typer.Argument(help="The command to explain; all of them if left out.", show_default=False)] = "",
) -> None:
    """Explain a command."""
    app([*([command] if command else []), "--help"], prog_name=PROGRAM_NAME)


@app.command(cls=Command)
def serve(
    host: Annotated[str | None, typer.Option(show_default="127.0.0.1", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(show_default="8100", help="Port to listen on.")] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", "--tls-cert-file", help="PEM file; the server then speaks HTTPS only.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", "--tls-key-file", help="PEM file with the certificate's private key.")
    ] = None,
    wyoming: Annotated[
        bool | None,
        typer.Option("--wyoming/--no-wyoming", show_default="yes, unless there are api_keys", help="Serve Home Assistant."),
    ] = None,
    wyoming_port: Annotated[int | None, typer.Option(show_default="10300", help="Port for Home Assistant.")] = None,
    config_file: ConfigFileOption = None,
    config_folder: ConfigFolderOption = None,
    assignments: AssignmentsOption = None,
    watch: Annotated[
        bool, typer.Option("--watch-config", help="Read the config again when it has changed; SIGHUP does too.")
    ] = False,
    sample: Annotated[bool, typer.Option("--sample", help="Transcribe the shipped recording once up.")] = False,
) -> None:
    """Start the server."""
    with gc_paused():
        from eardrum.server import lifecycle

    flags = {"enabled": wyoming, "port": wyoming_port}
    given = {name: value for name, value in flags.items() if value is not None}
    overrides = {
        "host": host,
        "port": port,
        "tls_certificate": tls_certificate,
        "tls_key": tls_key,
        "wyoming": given or None,
    }
    source = ConfigSource(
        lambda ports: config.load_config(config_file, assignments or (), overrides=overrides, folder=config_folder, ports=ports),
        config_folder,
    )
    loaded = source.read_first()
    logging_setup.configure_logging(loaded.settings.log.level, loaded.settings.log.format)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    lifecycle.run_gateway(loaded.settings, source, watch=watch, sample=sample)


for name, command in (transcribe.COMMANDS | models.COMMANDS | processes.COMMANDS | check.COMMANDS | listen.COMMANDS).items():
    app.command(name, cls=Command)(command)
