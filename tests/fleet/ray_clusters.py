"""A Ray cluster of several nodes on this machine, each with an address of its own on the loopback, and servers that use it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.jobs.scripted_engine import count_windows
from tests.processes import find_children, read_command

HEAD = "10.99.0.1"
"""An address that is added to the loopback: Ray does not take 127.0.0.2."""

GCS_PORT = 6391
RAY = Path(sys.executable).parent / "ray"
OBJECT_STORE_BYTES = 80_000_000
"""The least that Ray takes: replicas put nothing there."""

PATIENCE_S = 200.0


@dataclass
class RayNode:
    """A node: a raylet with its agents, actors and runners."""

    number: int
    """0 is the head, which has no CPU for replicas."""
    folder: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    """How often it was started."""

    @property
    def host(self) -> str:
        return f"10.99.0.{self.number + 1}"

    def start(self) -> None:
        if self.process:
            self.process.wait(60)
        self.starts += 1
        where = (
            ["--address", f"{HEAD}:{GCS_PORT}", "--labels", f"place=node{self.number}"]
            if self.number
            else ["--head", "--port", str(GCS_PORT), "--include-dashboard=false", "--temp-dir", str(self.folder / "ray")]
        )
        clean = {name: value for name, value in os.environ.items() if not name.startswith("EARDRUM_")}  # EARDRUM_RAY_KILLS
        sizes = ["--num-cpus", "1" if self.number else "0", "--object-store-memory", str(OBJECT_STORE_BYTES)]
        with (self.folder / f"node{self.number}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [RAY, "start", "--block", "--node-ip-address", self.host, *where, *sizes],
                env={**clean, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        return (self.folder / f"node{self.number}.log").read_text()

    def wait_started(self) -> None:
        def is_up() -> bool:
            assert self.process
            assert self.process.poll() is None, self.log
            return self.log.count("Ray runtime started") == self.starts and bool(self.find_processes("raylet"))

        wait_for(is_up, PATIENCE_S)

    def list_processes(self) -> list[psutil.Process]:
        """Its processes, the outermost first."""
        if not self.process or self.process.poll() is not None:
            return []
        whole = psutil.Process(self.process.pid)
        return [whole, *whole.children(recursive=True)]

    def find_processes(self, word: str) -> list[psutil.Process]:
        """Its processes with this word in their command."""
        return [process for process in self.list_processes() if any(word in part for part in read_command(process))]

    def send_signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        for process in self.list_processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.send_signal(signal.SIGCONT)
            left = self.list_processes()
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            for process in psutil.wait_procs(left, timeout=10)[1]:
                process.kill()


@dataclass
class RayCluster:
    """The head and its nodes."""

    folder: Path
    environment: dict[str, str]
    nodes: list[RayNode] = field(default_factory=list)

    @property
    def workers(self) -> list[RayNode]:
        return self.nodes[1:]

    def list_leftovers(self) -> list[str]:
        """Actors and runners that live on any node."""
        return [
            " ".join(read_command(process))
            for node in self.workers
            for word in ("ray::ReplicaActor", "eardrum.runner")
            for process in node.find_processes(word)
        ]


@contextmanager
def run_cluster(count: int, environment: dict[str, str]) -> Iterator[RayCluster]:
    """Run a head and so many nodes with one CPU each. They ask for a token, as any cluster should."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # paths of sockets must be short
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = RayCluster(folder, {**environment, **token})
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        for number in range(count + 1):
            node = RayNode(number, folder, cluster.environment)
            subprocess.run(["ip", "address", "add", f"{node.host}/32", "dev", "lo"], check=True)
            cluster.nodes.append(node)
            node.start()
            stack.callback(node.stop)
            node.wait_started()  # one after the other: they choose the names of their sockets in one folder
        yield cluster


@dataclass
class RayServer:
    """A server with one model, `m`, whose replicas the cluster runs."""

    server: ServerUnderTest
    cluster: RayCluster
    windows_file: Path

    def read_model(self) -> dict[str, Any]:
        """Its model, as `GET /api/ps` shows it; empty if it is not loaded."""
        models = requests.get(f"{self.server.address}/api/ps", timeout=30).json()["models"]
        return next((dict(model) for model in models if model["id"] == "m"), {})

    @property
    def replicas(self) -> list[dict[str, Any]]:
        return list(self.read_model().get("replicas", []))

    def list_states(self) -> list[str]:
        """The states of its replicas; one that is ready must have an address."""
        replicas = self.replicas
        assert not [one for one in replicas if one["state"] == "ready" and not one["address"]], replicas
        return [str(one["state"]) for one in replicas]

    def count_ready(self) -> int:
        return self.list_states().count("ready")

    def wait_ready(self, count: int) -> None:
        """Wait until so many replicas are ready, and no other ones are there."""
        try:
            wait_for(lambda: self.list_states() == ["ready"] * count, PATIENCE_S)
        except AssertionError:
            raise AssertionError(f"{self.replicas}\n{self.server.log}") from None

    def find_busy(self) -> tuple[dict[str, Any], RayNode]:
        """Wait until a replica has a request and has begun to decode; returns it and its node."""
        before = sum(count_windows(self.windows_file).values())
        wait_for(lambda: sum(count_windows(self.windows_file).values()) > before + 1, PATIENCE_S)
        busy = next(replica for replica in self.replicas if replica["requests"])
        return busy, next(node for node in self.cluster.workers if node.host == busy["node"].partition("/")[0])

    def find_state(self, address: str) -> str:
        """The state of the replica at an address; empty if it is not listed any more."""
        return next((str(replica["state"]) for replica in self.replicas if replica["address"] == address), "")

    def transcribe(self, audio: bytes) -> str:
        answer = self.server.post_audio(audio, model="m")
        assert answer.status_code == 200, answer.text + self.server.log
        return str(answer.json()["text"])

    def find_fleet_process(self) -> psutil.Process:
        (found,) = find_children(self.server.process.pid, "eardrum.fleet")
        return found


@contextmanager
def run_ray_server(
    cluster: RayCluster, model: dict[str, Any], replicas: dict[str, Any], *arguments: str, **ray: Any
) -> Iterator[RayServer]:
    """Run a server whose model `m` has these settings and these replicas; `ray` are more settings of the cluster."""
    windows_file = cluster.folder / f"windows-{time.monotonic_ns()}"
    options = {"options": {"log": str(windows_file), **model.get("options", {})}} if model.get("engine") == "scripted" else {}
    models = {"m": {**model, **options, "replicas": replicas}}
    settings = {"address": f"{HEAD}:{GCS_PORT}", **ray}
    assignments = ["--set", f"models={json.dumps(models)}", "--set", f"ray={json.dumps(settings)}", "--set", "default_model=m"]
    with run_server(*assignments, *arguments, **cluster.environment) as server:
        yield RayServer(server, cluster, windows_file)
