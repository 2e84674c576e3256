"""The `eardrum` command: registers all commands.

A command imports the gateway or the client only when it runs: they would double the start time of the other commands.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from eardrum import __version__
from eardrum.cli import batch, bot, check, cluster, doctor, jobs, keys, listen, models, processes, runner, say, serve, transcribe
from eardrum.cli.terminal import print_error
from eardrum.errors import EardrumError


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
    help="Speech to text, text to speech, and every other local model, behind one port.",
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
    """Speech to text, text to speech, and every other local model, behind one port."""
    if show:
        print(f"eardrum {__version__}")
        raise typer.Exit


@app.command("help", cls=Command)
def show_help(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="Command to explain. Without it: all commands.", show_default=False),
    ] = None,
) -> None:
    """Explain a command and its options."""
    app([*(command or []), "--help"], prog_name=PROGRAM_NAME)


for name, command in (
    serve.COMMANDS
    | runner.COMMANDS
    | transcribe.COMMANDS
    | models.COMMANDS
    | processes.COMMANDS
    | keys.COMMANDS
    | batch.COMMANDS
    | check.COMMANDS
    | doctor.COMMANDS
    | listen.COMMANDS
    | say.COMMANDS
).items():
    app.command(name, cls=Command)(command)
for group, help_text, commands in (
    ("jobs", "List, show, cancel, delete and export jobs.", jobs.COMMANDS),
    ("key", "Create API keys.", {"new": keys.create_key}),
    ("cluster", "Run a Ray cluster for replicas.", cluster.COMMANDS),
    ("bot", "Run a bot in a messenger.", bot.COMMANDS),
):
    group_app = typer.Typer(cls=CommandGroup, help=help_text, no_args_is_help=True)
    for name, command in commands.items():
        group_app.command(name, cls=Command)(command)
    app.add_typer(group_app, name=group, context_settings={"help_option_names": ["-h", "--help"]})
