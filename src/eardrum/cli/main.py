"""The `eardrum` command: `serve` and the registration of all other commands.

A command imports the gateway or the client only when it runs: they would double the start time of the other commands.
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
from eardrum.cli import check, listen, models, processes, transcribe
from eardrum.cli.options import AssignmentsOption, ConfigFileOption, ConfigFolderOption
from eardrum.cli.terminal import print_error
from eardrum.errors import EardrumError
from eardrum.garbage_collection import pause_garbage_collection
from eardrum.server.reload import ConfigSource

logger = logging.getLogger(__name__)


class Command(TyperCommand):
    """A command whose help shows no Python types: flags take no value, and arguments have a name that says what they take."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """Return the parameters, without types of flags and arguments."""
        return _hide_types(super().get_params(ctx))


class CommandGroup(TyperGroup):
    """The program itself, with the same help."""

    def get_params(self, ctx: typer.Context) -> list[Any]:  # type: ignore[override]
        """Return the parameters, without types of flags and arguments."""
        return _hide_types(super().get_params(ctx))


def _hide_types(parameters: Sequence[Any]) -> list[Any]:
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None
        elif parameter.is_flag:
            parameter.metavar = ""
    return list(parameters)


app = typer.Typer(
    cls=CommandGroup,
    help="Speech to text, and every other local model, behind one port.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),  # options as openai-whisper spells them
    },
)


PROGRAM_NAME = "eardrum"


def main() -> None:
    """Run a command. An expected error becomes one line on stderr and exit code 1."""
    _repair_standard_streams()
    try:
        app(prog_name=PROGRAM_NAME)
    except EardrumError as error:
        print_error(error.message)
        sys.exit(1)


def _repair_standard_streams() -> None:
    """Replace closed standard streams, and make stdout escape what its encoding lacks.

    A file name may hold bytes that are not text, and a transcript letters that the terminal's encoding lacks.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115, PTH123 -- open until the process ends
            setattr(sys, name, nothing)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is


@app.callback(invoke_without_command=True)
def show_version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Speech to text, and every other local model, behind one port."""
    if show:
        print(f"eardrum {__version__}")
        raise typer.Exit


@app.command("help", cls=Command)
def show_help(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="Command to explain. Without it: all commands.", show_default=False)
    ] = "",
) -> None:
    """Explain a command and its options."""
    app([*([command] if command else []), "--help"], prog_name=PROGRAM_NAME)


@app.command(cls=Command)
def serve(
    host: Annotated[
        str | None, typer.Option(metavar="HOST", show_default="127.0.0.1", help="Address to listen on; 0.0.0.0 is every network.")
    ] = None,
    port: Annotated[int | None, typer.Option(metavar="PORT", show_default="8100", help="Port to listen on.")] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(
            "--tls-certificate",
            "--tls-cert-file",
            metavar="FILE",
            help="PEM file with a certificate; the server then speaks HTTPS only.",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", "--tls-key-file", metavar="FILE", help="PEM file with the certificate's private key."),
    ] = None,
    wyoming: Annotated[
        bool | None,
        typer.Option(
            "--wyoming/--no-wyoming", show_default="on, unless api_keys are set", help="Serve Home Assistant (Wyoming protocol)."
        ),
    ] = None,
    wyoming_port: Annotated[
        int | None, typer.Option(metavar="PORT", show_default="10300", help="Port for Home Assistant.")
    ] = None,
    config_file: ConfigFileOption = None,
    config_folder: ConfigFolderOption = None,
    assignments: AssignmentsOption = None,
    watch: Annotated[
        bool, typer.Option("--watch-config", help="Load the config again when a file changes. SIGHUP loads it too.")
    ] = False,
    sample: Annotated[bool, typer.Option("--sample", help="Transcribe the sample recording after the start.")] = False,
) -> None:
    """Start the server."""
    with pause_garbage_collection():
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
