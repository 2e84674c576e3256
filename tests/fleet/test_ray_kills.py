"""A model with three replicas on three nodes of a Ray cluster, of which one is killed or suspended while it works.

Ray notices the loss of a node late; the server asks each runner itself.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from tests.conftest import wait_for
from tests.fleet.fleets import measure_seconds, stream_text
from tests.fleet.ray_clusters import PATIENCE_S, RayCluster, RayServer, run_ray_server
from tests.processes import read_command
from tests.recordings import encode, load_announcements

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]

WINDOW_S = 0.15


@pytest.fixture(scope="module")
def fleet(cluster: RayCluster, scripted_entry: dict) -> Iterator[RayServer]:
    entry = {**scripted_entry, "options": {"seconds": WINDOW_S}}
    with run_ray_server(cluster, entry, {"min": 3}, namespace="kills") as server:
        server.wait_ready(3)
        yield server
    assert cluster.list_leftovers() == [], "an actor or a runner outlived the server"


@pytest.fixture(scope="module")
def clips() -> list[bytes]:
    return [encode(-samples, "flac") for _, samples, _ in load_announcements()[:6]]


@pytest.fixture(scope="module")
def long() -> bytes:
    return encode(np.concatenate([samples for _, samples, _ in load_announcements()]), "flac")


@pytest.fixture(scope="module")
def undisturbed(fleet: RayServer, long: bytes) -> str:
    """The text of the long recording when nothing happens."""
    return stream_text(fleet.server, long)


@pytest.fixture(scope="module")
def clip_texts(fleet: RayServer, clips: list[bytes]) -> list[str]:
    return [fleet.transcribe(clip) for clip in clips]


class Streaming(threading.Thread):
    """A request for a long recording, in a thread."""

    def __init__(self, fleet: RayServer, audio: bytes):
        super().__init__()
        self.fleet, self.audio, self.text = fleet, audio, ""
        self.start()

    def run(self) -> None:
        self.text = stream_text(self.fleet.server, self.audio)

    def wait(self) -> str:
        self.join(240)
        return self.text


def test_replicas_are_on_all_nodes(fleet: RayServer, cluster: RayCluster) -> None:
    nodes = {replica["node"].partition("/")[0] for replica in fleet.replicas}
    assert nodes == {node.host for node in cluster.workers}
    assert sorted(replica["name"] for replica in fleet.replicas) == ["m/1", "m/2", "m/3"]
    assert all(replica["node"].startswith(replica["address"][7:].partition(":")[0]) for replica in fleet.replicas)


def test_the_token_is_in_no_command_line(fleet: RayServer, cluster: RayCluster) -> None:
    runners = [process for node in cluster.workers for process in node.find_processes("eardrum.runner")]
    assert len(runners) == 3
    for runner in runners:
        token = runner.environ()["EARDRUM_RUNNER_TOKEN"]
        assert len(token) == 64
        commands = [" ".join(read_command(process)) for process in psutil.process_iter()]
        assert not [command for command in commands if token in command]
        assert token not in fleet.server.log


def test_a_killed_runner(fleet: RayServer, long: bytes, undisturbed: str) -> None:
    streaming = Streaming(fleet, long)
    replica, node = fleet.find_busy()
    (runner,) = node.find_processes("eardrum.runner")
    runner.kill()
    assert streaming.wait() == undisturbed
    fleet.wait_ready(3)
    assert fleet.find_state(replica["address"]) == "", "the runner that replaces it has another port"


def test_a_killed_fleet_process(fleet: RayServer, long: bytes, undisturbed: str) -> None:
    before = {replica["address"] for replica in fleet.replicas}
    streaming = Streaming(fleet, long)
    fleet.find_busy()
    killed = fleet.find_fleet_process()
    killed.kill()
    assert streaming.wait() == undisturbed
    wait_for(lambda: fleet.server.log.count("Joined the Ray cluster") >= 2, PATIENCE_S)
    fleet.wait_ready(3)
    assert {replica["address"] for replica in fleet.replicas} == before, "the replicas are found again, not started anew"
    assert fleet.find_fleet_process().pid != killed.pid


def test_a_suspended_node(fleet: RayServer, long: bytes, clips: list[bytes], undisturbed: str, clip_texts: list[str]) -> None:
    streaming = Streaming(fleet, long)
    replica, node = fleet.find_busy()
    node.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    try:
        wait_for(lambda: fleet.find_state(replica["address"]) == "silent", PATIENCE_S)
        print(f"suspended: it counted as silent after {measure_seconds(stopped):.1f} s")
        (hung,) = [one for one in fleet.replicas if one["address"] == replica["address"]]
        for clip, text in zip(clips, clip_texts, strict=True):
            assert fleet.transcribe(clip) == text
            (now,) = [one for one in fleet.replicas if one["address"] == replica["address"]]
            assert now["requests"] <= hung["requests"]
        assert streaming.wait() == undisturbed
    finally:
        node.send_signal(signal.SIGCONT)
    fleet.wait_ready(3)


def test_a_killed_raylet(fleet: RayServer, long: bytes, clips: list[bytes], undisturbed: str, clip_texts: list[str]) -> None:
    streaming = Streaming(fleet, long)
    replica, node = fleet.find_busy()
    (raylet,) = node.find_processes("/raylet/raylet")
    left = node.list_processes()
    raylet.kill()
    assert streaming.wait() == undisturbed
    for clip, text in zip(clips, clip_texts, strict=True):
        assert fleet.transcribe(clip) == text
    psutil.wait_procs(left, timeout=120)  # the runner ends with its actor, and that with the raylet
    node.start()
    node.wait_started()
    fleet.wait_ready(3)
    assert fleet.find_state(replica["address"]) == ""
