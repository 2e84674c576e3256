"""The commands `eardrum cluster` with the real Ray: a head with one CPU, a server on it, and the head's end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import psutil
import pytest

from tests.conftest import run_server, wait_for
from tests.fleet.ray_clusters import PATIENCE_S
from tests.processes import read_command
from tests.recordings import encode, load_speech

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

HOST, PORT = "10.98.0.1", 6397


@pytest.fixture
def home() -> Iterator[Path]:
    """A home whose path is short: sockets are in it."""
    if set(psutil.net_if_addrs()) != {"lo"}:
        pytest.fail("`make test-ray` runs these tests in a network namespace of their own.")
    subprocess.run(["ip", "address", "add", f"{HOST}/32", "dev", "lo"], check=True)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
    subprocess.run(["ip", "address", "delete", f"{HOST}/32", "dev", "lo"], check=True)


def run_command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `eardrum cluster`. Its output goes to a file, since a node keeps what it inherits."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EARDRUM_", "RAY_", "XDG_"))}
    return subprocess.run(
        [sys.executable, "-m", "eardrum", "cluster", *arguments],
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@contextmanager
def start_head(home: Path) -> Iterator[str]:
    options = ["--num-cpus", "1", "--object-store-memory", "80000000", "--labels", "gpu=none", "--temp-dir", str(home / "ray")]
    started = run_command(home, "start", "--address", HOST, "--port", str(PORT), "--", *options)
    assert started.returncode == 0, started.stderr
    try:
        yield started.stdout
    finally:
        stopped = run_command(home, "stop")
        assert (stopped.returncode, stopped.stdout) == (0, "Stopped.\n"), stopped.stderr


def list_ray_processes(home: Path) -> list[str]:
    """Processes of the cluster in this home, with their actors and runners."""
    commands = [" ".join(read_command(process)) for process in psutil.process_iter()]
    return [command for command in commands if str(home) in command or "ray::" in command or "eardrum.runner" in command]


def test_a_cluster_from_its_start_to_its_end(home: Path) -> None:
    ray = {"address": f"{HOST}:{PORT}"}
    models = {"m": {"source": "moonshine-tiny-en", "replicas": {"min": 1}}}
    with start_head(home) as told:
        token = home / ".ray" / "auth_token"
        assert f"eardrum cluster join {HOST}:{PORT}" in told
        assert token.stat().st_mode & 0o777 == 0o600
        assert token.read_text() not in told
        assert list((home / ".local" / "state" / "eardrum" / "ray" / "gcs").iterdir()), "the head keeps its state there"
        assignments = ["--set", f"models={json.dumps(models)}", "--set", f"ray={json.dumps(ray)}", "--set", "default_model=m"]
        with run_server(*assignments, HOME=str(home)) as server:
            assert server.post_audio(encode(load_speech(), "flac"), model="m").status_code == 200
            shown = run_command(home, "status", "--set", f"ray.address={HOST}:{PORT}", "--server", server.address)
            assert shown.returncode == 0, shown.stderr
            lines = shown.stdout.splitlines()
            (node,) = [line for line in lines if line.startswith(f"{HOST}/")]
            assert node.endswith("gpu=none")
            (replica,) = [line for line in lines if line.startswith("m ")]
            assert ("m/1" in replica, f"http://{HOST}:" in replica, "ready" in replica) == (True, True, True)
        refused = run_command(home, "start", "--address", HOST)
        assert "A node runs here already" in refused.stderr
    wait_for(lambda: list_ray_processes(home) == [], PATIENCE_S)


def test_a_token_of_another_cluster_is_refused(home: Path) -> None:
    with start_head(home):
        (home / ".ray" / "auth_token").write_text("0" * 64)
        refused = run_command(home, "status", "--set", f"ray.address={HOST}:{PORT}")
        assert refused.returncode == 1
        assert f"The cluster at {HOST}:{PORT} cannot be joined" in refused.stderr
        print(refused.stderr)


NOISY_RUNNER = """#!/bin/sh
echo "Welcome to this environment."
echo '{"ready": {"address": "http://10.0.0.1:8101"}}'
read line
"""


def test_a_runner_whose_interpreter_greets_is_a_runner(tmp_path: Path) -> None:
    module = import_module("eardrum.fleet.replica_actor")  # which needs Ray
    program = tmp_path / "python3"
    program.write_text(NOISY_RUNNER)
    program.chmod(0o755)
    actor = module.ReplicaActor.__new__(module.ReplicaActor)  # without a cluster
    actor._order, actor._report = module.ReplicaOrder("m", {}, str(program), "", ""), module.ReplicaReport()
    actor._host, actor._ending, actor._last_lines = "10.0.0.1", threading.Event(), deque(maxlen=4)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(actor._run_once)
        wait_for(lambda: actor._report.state == "ready" or running.done())
        assert actor._report.address == "http://10.0.0.1:8101", running
        with actor._process:
            actor._process.stdin.close()
        assert running.result() == (True, "ended with exit code 1: Welcome to this environment.")
