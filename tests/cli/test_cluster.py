"""The commands `cluster`, with a program in place of Ray's; `make test-ray` has the real one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest

from eardrum.cli import cluster
from eardrum.errors import ConfigError
from tests.processes import find_children, is_alive

pytestmark = [  # a node outlives the command that starts it, and here the objects of that command
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PROGRAM = """#!/bin/sh
echo "$@" >> {folder}/calls
echo "$RAY_AUTH_MODE $RAY_USAGE_STATS_ENABLED $RAY_gcs_storage" >> {folder}/environment
case "$1" in
    get-auth-token) [ -z "$NO_TOKEN" ] && echo 0123456789abcdef || exit 1 ;;
    start) [ -z "$SLOW" ] || {{ echo $$ > {folder}/pid; exec sleep 100; }}
        [ -z "$BROKEN" ] || {{ echo "No such address."; exit 3; }}; echo Ray runtime started.; exec sleep 100 ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program `ray` beside the interpreter, and the state of these commands."""
    (tmp_path / "ray").write_text(PROGRAM.format(folder=tmp_path))
    (tmp_path / "ray").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


def test_without_ray_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python3"))
    with pytest.raises(ConfigError, match=r"pip install 'eardrum\[ray\]'"):
        cluster.start_cluster(address="10.0.0.1")


def test_a_head_is_started_and_stopped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.start_cluster(address="10.0.0.1", ray_options=["--num-gpus", "2"])
    shown = capsys.readouterr().out
    assert "eardrum cluster join 10.0.0.1:6379" in shown
    assert 'ray: {address: "10.0.0.1:6379"}' in shown
    assert "0123456789abcdef" not in shown, "the token is told by its place only"
    node = cluster.RayNodeProcess().find_process()
    assert node
    with pytest.raises(ConfigError, match=f"runs here already, as process {node.pid}"):
        cluster.join_cluster("10.0.0.2:6379")
    cluster.stop_cluster()
    assert not is_alive(node.pid)
    with pytest.raises(ConfigError, match="No node runs here"):
        cluster.stop_cluster()
    token, start = (folder / "calls").read_text().splitlines()
    assert token == "get-auth-token --generate"
    assert start.startswith("start --block --disable-usage-stats --head --node-ip-address 10.0.0.1 --port 6379 ")
    assert start.endswith("--include-dashboard=false --num-gpus 2")
    assert (folder / "environment").read_text().splitlines()[-1] == "token 0 rocksdb"


def test_a_machine_joins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.join_cluster("10.0.0.1:6379", address="10.0.0.2")
    assert "This machine is a node of the cluster at 10.0.0.1:6379" in capsys.readouterr().out
    cluster.stop_cluster()
    calls = (folder / "calls").read_text().splitlines()
    assert calls[0] == "get-auth-token"
    assert calls[1] == "start --block --disable-usage-stats --address 10.0.0.1:6379 --node-ip-address 10.0.0.2"


def test_a_machine_without_the_token_does_not_join(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_TOKEN", "1")
    with pytest.raises(ConfigError, match="This machine has no token"):
        cluster.join_cluster("10.0.0.1:6379")
    assert (folder / "calls").read_text() == "get-auth-token\n"


def test_a_node_that_does_not_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", "1")
    with pytest.raises(ConfigError, match=r"The node did not start: No such address\. The rest is in .*node\.log"):
        cluster.join_cluster("10.0.0.1:6379")
    assert cluster.RayNodeProcess().find_process() is None
    assert (folder / "state" / "eardrum" / "ray").stat().st_mode & 0o777 == 0o700


def test_a_start_that_is_interrupted_leaves_no_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW", "1")

    def interrupt() -> None:
        while not (folder / "pid").exists() or not (folder / "pid").read_text().strip():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = Thread(target=interrupt)
    interrupting.start()
    with pytest.raises(KeyboardInterrupt):
        cluster.join_cluster("10.0.0.1:6379")
    interrupting.join()
    pid = int((folder / "pid").read_text())
    try:
        assert not is_alive(pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_an_interrupt_during_the_start_itself_leaves_no_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW", "1")
    started: list[int] = []
    start = subprocess.Popen

    def start_and_interrupt(*arguments: Any, **options: Any) -> Any:
        process = start(*arguments, **options)
        if "start" in arguments[0]:
            started.append(process.pid)
            signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", start_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        cluster.join_cluster("10.0.0.1:6379")
    (pid,) = started
    try:
        assert not is_alive(pid)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_node_is_found_after_the_clock_was_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.join_cluster("10.0.0.1:6379")
    node = cluster.RayNodeProcess().find_process()
    assert node
    (folder / "proc").mkdir()  # as the system shows itself after a step of an hour
    (folder / "proc" / str(node.pid)).symlink_to(f"/proc/{node.pid}")
    stat = Path("/proc/stat").read_text()
    (folder / "proc" / "stat").write_text(
        re.sub(r"^btime (\d+)", lambda at: f"btime {int(at[1]) + 3600}", stat, flags=re.MULTILINE)
    )
    with monkeypatch.context() as later:
        later.setattr(psutil, "PROCFS_PATH", str(folder / "proc"))
        assert psutil.Process(node.pid).create_time() == pytest.approx(node.create_time() + 3600, abs=0.1)
        found = cluster.RayNodeProcess().find_process()
    cluster.RayNodeProcess().stop(node)
    assert found
    assert found.pid == node.pid


def test_a_node_that_ends_while_it_is_stopped_is_no_error(folder: Path) -> None:
    cluster.join_cluster("10.0.0.1:6379")
    node = cluster.RayNodeProcess().find_process()
    assert node
    node.kill()
    with suppress(ChildProcessError):
        os.waitpid(node.pid, 0)
    cluster.RayNodeProcess().stop(node)
    assert not (folder / "state" / "eardrum" / "ray" / "node.json").exists()


def test_a_node_that_cannot_be_recorded_is_ended(folder: Path) -> None:
    record = folder / "state" / "eardrum" / "ray" / "node.json"
    record.parent.mkdir(parents=True)
    record.symlink_to("/nowhere/at/all")
    with pytest.raises(ConfigError, match=r"The node was ended: .*node\.json: No such file or directory"):
        cluster.join_cluster("10.0.0.1:6379")
    assert not find_children(os.getpid(), "sleep")


def test_a_status_needs_a_cluster_in_the_config(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"set `ray\.address`"):
        cluster.show_cluster()
    assert not (folder / "calls").exists()
