"""The commands `cluster start`, `join`, `status` and `stop`: a Ray cluster with safe settings, whose machines run replicas."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eardrum import config
from eardrum.cli.options import (
    AssignmentsOption,
    CertificateOption,
    ConfigFileOption,
    ConfigFolderOption,
    KeyOption,
    ServerOption,
)
from eardrum.cli.processes import call_server
from eardrum.cli.terminal import print_error, print_table
from eardrum.errors import ConfigError, EardrumError
from eardrum.gateway.processes import process_info
from eardrum.units import format_size

if TYPE_CHECKING:
    import psutil
    from rich.table import Table

STARTED = "Ray runtime started"
"""The line with which `ray start` says that the node is up."""

START_S, STOP_S, NODES_S = 90.0, 30.0, 60.0
"""Longest wait for the start of a node, for its end, and for the list of nodes."""

RayOptions = Annotated[
    list[str] | None,
    typer.Argument(metavar="-- RAY_OPTIONS", help="Options of `ray start`, as in `-- --num-gpus 2 --labels gpu=h100`."),
]
ForegroundOption = Annotated[
    bool, typer.Option("--foreground", help="Stay in the foreground, as a service manager requires, and end with the node.")
]


def start_cluster(
    address: Annotated[
        str, typer.Option(metavar="HOST", help="Address of this machine at which the other machines reach it, as in 10.0.0.1.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="PORT", help="Port of the head.")] = 6379,
    foreground: ForegroundOption = False,
    ray_options: RayOptions = None,
) -> None:
    """Start the head of a Ray cluster on this machine: with a token, without usage reports, and with a state that is kept.

    The token is Ray's own, made if there is none, and kept in ~/.ray/auth_token.
    """
    node = RayNodeProcess()
    node.check_free()
    token = node.read_token(generate=True)
    storage = node.folder / "gcs"
    storage.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(storage)}
    arguments = ["--head", "--node-ip-address", address, "--port", str(port), "--include-dashboard=false"]
    show = _format_instructions(f"{address}:{port}", token)
    if foreground:
        print(show, flush=True)
        node.replace_process([*arguments, *(ray_options or ())], kept)
    pid = node.start([*arguments, *(ray_options or ())], kept)
    print(f"The head of the cluster runs as process {pid}; its log is {node.log_file}.\n\n{show}")


def join_cluster(
    head: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Address of the cluster's head.")],
    address: Annotated[
        str, typer.Option(metavar="HOST", show_default="Ray finds it", help="Address of this machine for the others.")
    ] = "",
    foreground: ForegroundOption = False,
    ray_options: RayOptions = None,
) -> None:
    """Add this machine to a Ray cluster. The token of the head must be in ~/.ray/auth_token (RAY_AUTH_TOKEN_PATH)."""
    node = RayNodeProcess()
    node.check_free()
    node.read_token(generate=False)
    arguments = ["--address", head, *(["--node-ip-address", address] if address else []), *(ray_options or ())]
    if foreground:
        node.replace_process(arguments, {})
    print(f"This machine is a node of the cluster at {head}, as process {node.start(arguments, {})}; its log is {node.log_file}.")


def show_cluster(
    config_file: ConfigFileOption = None,
    config_folder: ConfigFolderOption = None,
    assignments: AssignmentsOption = None,
    server: ServerOption = "",
    key: KeyOption = "",
    certificate: CertificateOption = None,
) -> None:
    """Show the nodes of the cluster that the config names, and the replicas of the running server."""
    address = config.load_config(config_file, assignments or (), folder=config_folder).settings.ray.address
    if not address:
        raise ConfigError("No cluster is in the config: set `ray.address`, as in `--set ray.address=10.0.0.1:6379`.")
    RayNodeProcess()
    print_table(_build_nodes_table(fetch_nodes(address)))
    print()
    try:
        models, _ = asyncio.run(call_server(server, key, certificate, lambda client: client.list_running()))
    except EardrumError as error:
        print_error(f"The replicas are not known. {error.message}")
        sys.exit(1)
    if not any(model.get("replicas") for model in models):
        print("The server has no replicas.")
    else:
        print_table(_build_replicas_table(models))


def stop_cluster() -> None:
    """End the head or node that `cluster start` or `cluster join` started here, and nothing else of Ray."""
    node = RayNodeProcess()
    if not (process := node.find_process()):
        raise ConfigError("No node runs here that `eardrum cluster start` or `eardrum cluster join` started.")
    node.stop(process)
    print("Stopped.")


class RayNodeProcess:
    """The node of this machine that these commands start: a `ray start` that stays, in a session of its own.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self) -> None:
        self._program = Path(sys.executable).parent / "ray"
        if not self._program.exists():
            raise ConfigError("A cluster needs Ray: install it with `pip install 'eardrum[ray]'`.")
        state = os.environ.get("XDG_STATE_HOME")
        self.folder = (Path(state) if state else Path.home() / ".local" / "state") / "eardrum" / "ray"
        self.log_file = self.folder / "node.log"
        self._process_file = self.folder / "node.json"
        self._environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}

    def read_token(self, *, generate: bool) -> str:
        """Let Ray read its token, or make one.

        Raises:
            ConfigError: there is none.
        """
        command = [str(self._program), "get-auth-token", *(["--generate"] if generate else [])]
        done = subprocess.run(  # noqa: S603
            command, env=self._environment, capture_output=True, text=True, check=False, umask=0o077
        )
        kept = Path("~/.ray/auth_token").expanduser()
        if generate and kept.exists():
            kept.chmod(0o600)  # Ray leaves it readable for all users
        if done.returncode or not done.stdout.strip():
            raise ConfigError("This machine has no token: copy ~/.ray/auth_token of the head to the same place, with mode 600.")
        return done.stdout.strip().splitlines()[-1]

    def check_free(self) -> None:
        """Check that no node was started here.

        Raises:
            ConfigError: one was.
        """
        if process := self.find_process():
            raise ConfigError(f"A node runs here already, as process {process.pid}: `eardrum cluster stop` ends it.")

    def replace_process(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        """Become the node."""
        command = [str(self._program), "start", "--block", "--disable-usage-stats", *arguments]
        os.execve(self._program, command, {**self._environment, **environment})  # noqa: S606 -- no shell is wanted

    def start(self, arguments: Sequence[str], environment: dict[str, str]) -> int:
        """Start the node, and wait until it is up; returns its pid.

        Raises:
            ConfigError: it ended, or is not up in time.
        """
        import psutil

        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [str(self._program), "start", "--block", "--disable-usage-stats", *arguments]
        process: subprocess.Popen[bytes] | None = None
        until = time.monotonic() + START_S
        try:
            with self.log_file.open("wb") as log, delay_interrupt():
                process = subprocess.Popen(  # noqa: S603
                    command,
                    env={**self._environment, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            while STARTED not in self.log_file.read_text(errors="replace"):
                if process.poll() is not None or time.monotonic() > until:
                    last = self.log_file.read_text(errors="replace").strip().splitlines()[-1:]
                    raise ConfigError(f"The node did not start: {''.join(last)} The rest is in {self.log_file}.")
                time.sleep(0.1)
            ticks = process_info.read_start_ticks(psutil.Process(process.pid))
            self._process_file.write_text(json.dumps({"pid": process.pid, "started": ticks}), encoding="ascii")
        except BaseException as error:  # Ctrl-C, too: nothing else knows of the process
            if process and process.poll() is None:
                self.stop(psutil.Process(process.pid))
            if process and isinstance(error, OSError):
                raise ConfigError(f"The node was ended: {error.filename or self._process_file}: {error.strerror}.") from error
            raise
        return process.pid

    def find_process(self) -> psutil.Process | None:
        """Find the node that was started here and still runs."""
        import psutil

        try:
            known = json.loads(self._process_file.read_text(encoding="ascii"))
            process = psutil.Process(known["pid"])
            return process if process_info.read_start_ticks(process) == known["started"] else None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, psutil.NoSuchProcess):
            return None

    def stop(self, process: psutil.Process) -> None:
        """End a node with everything that it started."""
        import psutil

        with suppress(psutil.NoSuchProcess):  # it may end by itself at any time
            whole = [process, *process.children(recursive=True)]
            process.terminate()
            for left in psutil.wait_procs(whole, timeout=STOP_S)[1]:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
        self._process_file.unlink(missing_ok=True)


@contextmanager
def delay_interrupt() -> Iterator[None]:
    """Let a Ctrl-C during this context take effect at its end: a process that was just started would be lost."""
    came: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if came:
            signal.raise_signal(signal.SIGINT)


def fetch_nodes(address: str) -> list[dict[str, Any]]:
    """List the nodes of a cluster, by a process that joins it.

    Raises:
        ConfigError: it cannot be joined.
    """
    command = [sys.executable, "-m", "eardrum.fleet", "--address", address, "--nodes"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=NODES_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise ConfigError(f"The cluster at {address} did not answer within {NODES_S:g} s.") from None
    lines = done.stdout.splitlines()
    message = json.loads(lines[-1]) if lines else {}
    if "nodes" not in message:
        why = message.get("failed", {}).get("message") or (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"The cluster at {address} cannot be joined: {why}")
    nodes: list[dict[str, Any]] = message["nodes"]
    return nodes


def _build_nodes_table(nodes: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("node", "name", "CPUs", "GPUs", "memory", "other resources", "labels", box=None, pad_edge=False)
    for node in nodes:
        resources = dict(node["resources"])
        cpus, gpus, memory = (resources.pop(name, 0) for name in ("CPU", "GPU", "memory"))
        resources.pop("object_store_memory", None)
        table.add_row(
            f"{node['address']}/{node['id'][:8]}",
            node["name"],
            f"{cpus:g}",
            f"{gpus:g}",
            format_size(int(memory)),
            ", ".join(f"{name}: {amount:g}" for name, amount in sorted(resources.items())) or "-",
            ", ".join(f"{name}={value}" for name, value in sorted(node["labels"].items())) or "-",
        )
    return table


def _build_replicas_table(models: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table("model", "replica", "node", "address", "state", "requests", "", box=None, pad_edge=False)
    for model in models:
        for one in model.get("replicas", []):
            shown = [one.get(name) or "-" for name in ("name", "node", "address")]
            table.add_row(model["id"], *shown, one["state"], str(one["requests"]), one["detail"] or "")
    return table


def _format_instructions(head: str, token: str) -> str:
    where = "RAY_AUTH_TOKEN of this environment" if os.environ.get("RAY_AUTH_TOKEN") == token else "~/.ray/auth_token"
    where = os.environ.get("RAY_AUTH_TOKEN_PATH", where)
    return f"""On each other machine, with the same versions of Python and Ray (`pip install 'eardrum[ray]'`):
  1. Copy the token, {where}, to ~/.ray/auth_token there, with mode 600. With it, any program can be run on all machines.
  2. eardrum cluster join {head}

In the config of the server, which runs on one of these machines:
  ray: {{address: "{head}"}}"""


COMMANDS: dict[str, Callable[..., None]] = {
    "start": start_cluster,
    "join": join_cluster,
    "status": show_cluster,
    "stop": stop_cluster,
}
