"""Jobs on three nodes of a Ray cluster, while the fleet's process or raylets are killed at seeded moments.

A scripted engine tells which windows were decoded.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import wait_for
from tests.fleet.ray_clusters import GCS_PORT, HEAD, PATIENCE_S, RayCluster, RayNode
from tests.jobs.job_servers import JobServer, Undisturbed, check_outcome, transcribe_undisturbed
from tests.processes import find_children
from tests.recordings import encode_announcements

KILLS = int(os.environ.get("EARDRUM_RAY_KILLS", "3"))
"""Of each kind. Twenty take twelve minutes of the fleet's process, and six of raylets."""

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900 + 60 * KILLS)]

LONG_WINDOW_S = 0.2 * KILLS
"""The long recording has some 300 windows, one after the other: work for a minute before each kill, as the server waits longer
each time, up to half a minute, before it starts the fleet's process again."""
SHORT_WINDOW_S = 0.1 + 0.05 * KILLS
"""Work for more than a quarter of a minute before each kill."""
LOST_WINDOWS = 10
"""Most windows that may be decoded again after a kill, beside those in hand."""


@dataclass
class RayJobServer(JobServer):
    """A server of jobs with a model of three replicas on a Ray cluster."""

    cluster: RayCluster | None = None

    @property
    def model(self) -> dict[str, Any]:
        return {**super().model, "replicas": {"min": 3, "target_requests": 1}}

    @property
    def hurry(self) -> Path:
        """The engine decodes at once when this file is there."""
        return self.folder / "hurry"

    def list_replicas(self) -> list[dict[str, Any]]:
        """Those that are ready, as `/api/ps` shows them."""
        replicas = [replica for model in self.get("/api/ps")["models"] for replica in model.get("replicas", [])]
        return [replica for replica in replicas if replica["state"] == "ready"]

    def list_ready(self) -> list[tuple[RayNode, int]]:
        """The nodes whose replicas are ready, with the number of their requests in hand."""
        assert self.cluster
        nodes = {node.host: node for node in self.cluster.workers}
        return [(nodes[replica["node"].partition("/")[0]], replica["requests"]) for replica in self.list_replicas()]

    def find_fleet_processes(self) -> list[psutil.Process]:
        assert self.process
        return find_children(self.process.pid, "eardrum.fleet")

    def count_ends(self) -> int:
        """How often the fleet's process ended."""
        return self.read_log().count("It is started again")

    def count_joins(self) -> int:
        return self.read_log().count("Joined the Ray cluster")

    @property
    def is_joined(self) -> bool:
        log = self.read_log()
        return log.rfind("Joined the Ray cluster") > log.rfind("It is started again")


@contextmanager
def run_ray_job_server(cluster: RayCluster, model: dict[str, Any], folder: Path, seconds: float) -> Iterator[RayJobServer]:
    (folder / "tmp").mkdir()
    (folder / "model").symlink_to(model["source"])
    ray = {"address": f"{HEAD}:{GCS_PORT}", "namespace": folder.name}
    server = RayJobServer(folder, cluster.environment, settings={"ray": ray}, cluster=cluster)
    server.options = {"seconds": seconds, "hurry": str(server.hurry)}
    server.start()
    try:
        wait_for(lambda: len(server.list_ready()) == 3, PATIENCE_S)
        yield server
    finally:
        server.stop()
    assert cluster.list_leftovers() == [], "an actor or a runner outlived the server"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return transcribe_undisturbed(tmp_path_factory.mktemp("undisturbed") / "server", encode_announcements(1800), 100)


def seed_moments(seed: int) -> random.Random:
    print(f"seed {seed}")
    return random.Random(seed)


def wait_for_progress(server: JobServer) -> None:
    """Wait until one more window is decoded: a recording under which three replicas died in a row would be blamed for it."""
    before = server.count_windows()
    wait_for(lambda: server.count_windows() > before, PATIENCE_S)


def finish(server: RayJobServer, ids: list[str], undisturbed: Undisturbed, kills: str) -> int:
    """Let the work end quickly and check it; returns how many windows were decoded again."""
    left = sum(undisturbed.windows.values()) - len(server.decoded)
    assert left > 0, "the work ended before the last kill"
    server.hurry.touch()
    again = check_outcome(server, ids, undisturbed)
    print(f"{kills}: {again} of {sum(undisturbed.windows.values())} windows were decoded again; {left} were left after the last")
    return again


def test_kills_of_the_fleet_process_cost_no_window(
    cluster: RayCluster, scripted_entry: dict, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    moments = seed_moments(24)
    with run_ray_job_server(cluster, scripted_entry, tmp_path, LONG_WINDOW_S) as server:
        before = {replica["address"] for replica in server.list_replicas()}
        ids = undisturbed.add_all(server)
        for number in range(KILLS):
            wait_for_progress(server)
            wait_for(server.find_fleet_processes, PATIENCE_S)
            time.sleep(moments.uniform(0.0, 8.0))  # some before it has joined again
            (fleet,) = server.find_fleet_processes()
            fleet.kill()
            wait_for(lambda number=number: server.count_ends() > number, PATIENCE_S)
        wait_for(lambda: server.is_joined, PATIENCE_S)  # only a process that has joined ends the replicas with the server
        wait_for(lambda: len(server.list_replicas()) == 3, PATIENCE_S)
        assert {replica["address"] for replica in server.list_replicas()} == before, "they are found again, not started anew"
        unjoined = server.count_ends() + 1 - server.count_joins()
        again = finish(server, ids, undisturbed, f"{KILLS} kills of the fleet's process, {unjoined} before it had joined")
        assert again == 0, "the replicas never stopped"


def restart_node(node: RayNode, left: list[psutil.Process]) -> None:
    """Start a node again whose raylet was killed, when all its processes have ended."""
    assert not psutil.wait_procs(left, timeout=PATIENCE_S)[1], "a process of a node outlived its raylet"
    node.start()
    node.wait_started()


def test_kills_of_raylets_cost_the_windows_in_hand(
    cluster: RayCluster, scripted_entry: dict, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    moments, in_hand = seed_moments(25), 0
    restarts: dict[int, Future[None]] = {}
    # One node is started at a time: they choose the names of their sockets in one folder.
    with ThreadPoolExecutor(1) as starter, run_ray_job_server(cluster, scripted_entry, tmp_path, SHORT_WINDOW_S) as server:
        living: list[tuple[RayNode, int]] = []

        def has_two_living() -> bool:
            """Whether two nodes have a ready replica, and no raylet that was just killed: the server may not know that yet."""
            living[:] = [one for one in server.list_ready() if (again := restarts.get(one[0].number)) is None or again.done()]
            return len(living) > 1

        ids = undisturbed.add_all(server)
        wait_for(lambda: all(requests for _, requests in server.list_ready()), PATIENCE_S)
        for _ in range(KILLS):
            wait_for_progress(server)
            time.sleep(moments.uniform(0.0, 3.0))
            wait_for(has_two_living, PATIENCE_S)
            node, requests = moments.choice(living)
            in_hand += requests
            left = node.list_processes()
            (raylet,) = node.find_processes("/raylet/raylet")
            raylet.kill()
            if before := restarts.get(node.number):
                before.result()
            restarts[node.number] = starter.submit(restart_node, node, left)
        for restart in restarts.values():
            restart.result(PATIENCE_S)
        again = finish(server, ids, undisturbed, f"{KILLS} kills of raylets, whose replicas had {in_hand} requests in hand")
        assert again <= in_hand + LOST_WINDOWS * KILLS
