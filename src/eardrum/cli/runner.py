"""The command `runner`: serves one model on TCP, for a server on this or another machine that names it as a replica."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from eardrum import config
from eardrum.cli.options import AssignmentsOption, ConfigFileOption, ConfigFolderOption, parse_period
from eardrum.config import ReplicaSettings, Settings
from eardrum.errors import ConfigError, ModelNotFoundError
from eardrum.garbage_collection import pause_garbage_collection
from eardrum.gateway.models.catalog import ModelCatalog
from eardrum.gateway.models.inventory import Model
from eardrum.runner_access import TOKEN_VARIABLE, find_token_problem, is_loopback

DRAIN_S = 30.0
"""Seconds for running requests after SIGTERM, by default: as long as Kubernetes waits before it kills a container."""


ListenOption = Annotated[
    str,
    typer.Option(metavar="HOST:PORT", help="Address to listen on. Beyond this machine, as with 0.0.0.0, it needs a token."),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default=f"{TOKEN_VARIABLE}, or the config's token",
        help="File with the token that servers must send.",
    ),
]
DrainOption = Annotated[
    float | None,
    typer.Option(
        metavar="TIME",
        parser=parse_period,
        show_default=f"{DRAIN_S:g} s",
        help="Time to finish requests after SIGTERM; the server sends new ones to other replicas.",
    ),
]


def run_runner(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Model, alias, or folder with a model.")],
    listen: ListenOption = "127.0.0.1:8101",
    token_file: TokenFileOption = None,
    drain_timeout: DrainOption = None,
    device: Annotated[str | None, typer.Option(metavar="DEVICE", show_default="auto", help="auto, cpu or cuda.")] = None,
    compute_type: Annotated[
        str | None, typer.Option(metavar="TYPE", show_default="auto", help="Number format of the weights: int8, float16 ...")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="measured", help="Windows decoded together.")
    ] = None,
    model_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default="the Hugging Face cache", help="Folder of the models.")
    ] = None,
    config_file: ConfigFileOption = None,
    config_folder: ConfigFolderOption = None,
    assignments: AssignmentsOption = None,
    has_parent: Annotated[bool, typer.Option("--parent", hidden=True, help="End with stdin, and write messages.")] = False,
) -> None:
    """Serve one model to other servers, which name this address under `replicas` of a model."""
    given = {"device": device, "compute_type": compute_type, "model_dir": model_dir}
    overrides = {name: value for name, value in given.items() if value is not None}
    settings = config.load_config(config_file, assignments or (), overrides=overrides, folder=config_folder).settings
    model, token = find_local_model(settings, name)
    host, port = parse_address(listen)
    token = read_token(token_file) if token_file else os.environ.get(TOKEN_VARIABLE, token)
    check_token(token, host)
    check_port(host, port)
    arguments = {
        "--engine": model.engine,
        "--source": str(model.source or ""),
        "--host": host,
        "--port": str(port),
        "--batch": str(batch_size or model.batch_size or 0),
        "--max-audio-s": str(settings.limits.audio_duration),
        "--drain-timeout": str(DRAIN_S if drain_timeout is None else drain_timeout),
        "--log-level": settings.log.level,
    }
    interpreter = model.python or sys.executable
    command = [interpreter, "-m", "eardrum.runner", *(part for pair in arguments.items() for part in pair)]
    command.append("--parent" if has_parent else "--log-only")
    os.execve(interpreter, command, build_environment(model, token))  # noqa: S606 -- no shell is wanted


def find_local_model(settings: Settings, name: str) -> tuple[Model, str]:
    """Find a model whose files are here, and the token that the config has for its runners.

    A config may be that of the server, in which this runner is one of the replicas.

    Raises:
        ConfigError: the model is served by another program, or cannot run here.
        ModelNotFoundError: there is no such model.
    """
    alone = ReplicaSettings()
    entries = {id: entry.model_copy(update={"replicas": alone}) for id, entry in settings.models.items()}
    catalog = ModelCatalog(settings.model_copy(update={"models": entries}))
    try:
        model = catalog.find_model(name)
    except ModelNotFoundError:
        if not (found := catalog.inventory.find_at_path(name)):
            raise
        model = found
    if model.is_external:
        raise ConfigError(f"{model.id} is served by another program: a runner serves models of engines.")
    if model.needs_download:
        raise ConfigError(f"{model.id} is not on this machine: run `{model.format_pull_command(name)}`.")
    if not model.is_runnable:
        raise ConfigError(f"{model.id} cannot run yet. {model.card.install_hint_here}")
    entry = settings.models.get(model.id)
    return model, entry.replicas.token if entry else ""


def parse_address(listen: str) -> tuple[str, int]:
    """Parse `HOST:PORT`; IPv6 addresses stand in brackets.

    Raises:
        ConfigError: it is something else.
    """
    try:
        parts = urlsplit(f"//{listen}")
        if parts.hostname and parts.port is not None and parts.netloc == listen and "@" not in listen:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise ConfigError(f"--listen is {listen!r}, and must be HOST:PORT, as in 0.0.0.0:8101 or [::1]:8101.")


def read_token(file: Path) -> str:
    """Read a token from a file.

    Raises:
        ConfigError: the file cannot be read, or holds no token.
    """
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"--token-file {file} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--token-file {file} holds no text.") from None


def check_token(token: str, host: str) -> None:
    """Check the token before the model is loaded.

    Raises:
        ConfigError: it is unfit, or missing although others reach the port.
    """
    if token and (problem := find_token_problem(token)):
        raise ConfigError(f"The token {problem}.")
    if not token and not is_loopback(host):
        raise ConfigError(
            f"Every client that can connect to {host} could use this runner: make a token, as with `openssl rand -hex 32 > "
            "token`, and name its file with --token-file."
        )


def check_port(host: str, port: int) -> None:
    """Check that the address can be listened on before the model is loaded.

    Raises:
        ConfigError: it cannot; the message says what to do.
    """
    with pause_garbage_collection():
        from eardrum.server.lifecycle import bind_socket

    bind_socket(host, port, "choose another with --listen").close()


def build_environment(model: Model, token: str) -> Mapping[str, str]:
    """Build the environment of the runner: arguments are visible to all users, and options may hold keys."""
    return {**os.environ, "EARDRUM_RUNNER_OPTIONS": json.dumps(model.options), TOKEN_VARIABLE: token}


COMMANDS: dict[str, Callable[..., None]] = {"runner": run_runner}
