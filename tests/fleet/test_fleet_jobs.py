"""Jobs on three runners, of which one after the other is killed. A scripted engine tells which windows each has decoded."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.fleet.fleets import PATIENCE_S, TOKEN, FleetRunner, build_scripted_model, run_runners
from tests.jobs.job_servers import JobServer, Undisturbed, check_outcome, create_clips, transcribe_undisturbed
from tests.recordings import encode_announcements

pytestmark = [pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("EARDRUM_KILLS", "6"))
WINDOW_S = 0.07
EACH = 2
"""Recordings that a replica has at a time, by default."""


@dataclass
class FleetJobServer(JobServer):
    """A server of jobs whose model these runners serve."""

    runners: list[FleetRunner] = field(default_factory=list)

    @property
    def decoded(self) -> Counter[str]:
        return sum((runner.decoded for runner in self.runners), Counter())

    @property
    def model(self) -> dict[str, Any]:
        replicas = {"addresses": [runner.address for runner in self.runners], "token": TOKEN}
        return {"engine": "scripted", "source": str(self.folder / "model"), "replicas": replicas}

    def list_replicas(self) -> list[dict[str, Any]]:
        """The replicas as `/api/ps` shows them; none before the first request."""
        models = self.get("/api/ps")["models"]
        return list(models[0]["replicas"]) if models else []

    def count_requests(self) -> list[int]:
        """The requests that each replica has in hand."""
        return [replica["requests"] for replica in self.list_replicas()]


@contextmanager
def run_fleet_server(folder: Path, count: int, **settings: Any) -> Iterator[FleetJobServer]:
    model, environment = build_scripted_model(folder)
    (folder / "tmp").mkdir()
    with run_runners(folder, count, model, environment, seconds=WINDOW_S) as runners:
        server = FleetJobServer(folder, environment, settings=settings, runners=runners)
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return transcribe_undisturbed(tmp_path_factory.mktemp("undisturbed") / "server", encode_announcements(1800), 100)


def kill_one_after_another(server: FleetJobServer, undisturbed: Undisturbed) -> int:
    """Kill one runner after the other, and start it again, while windows are decoded; returns the number of kills."""
    moments, kills = random.Random(23), 0
    for index in cycle(range(len(server.runners))):
        time.sleep(moments.uniform(0.0, 1.5))
        if kills == KILLS or set(server.decoded) == set(undisturbed.windows):
            return kills
        server.runners[index].kill()
        kills += 1
        server.runners[index].start()
        wait_for(lambda: all(replica["state"] == "ready" for replica in server.list_replicas()), PATIENCE_S)
    return kills


def test_jobs_end_once_while_one_runner_after_the_other_is_killed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_fleet_server(tmp_path, 3) as server:
        ids = undisturbed.add_all(server)
        wait_for(lambda: server.count_requests() == [EACH] * 3, PATIENCE_S)
        kills = kill_one_after_another(server, undisturbed)
        assert kills > KILLS // 2
        again = check_outcome(server, ids, undisturbed)
        print(f"{kills} kills of runners: {again} of {sum(undisturbed.windows.values())} windows were decoded again")
        assert again <= kills * (EACH + 1), "one on its way, of each recording that a replica had"
        assert sum(replica["moved"] for replica in server.list_replicas()) > 0


def test_jobs_leave_half_of_the_requests_to_clients(tmp_path: Path) -> None:
    with run_fleet_server(tmp_path, 3, limits={"requests": 2 * 4}) as server:
        batch = server.add_batch(create_clips(60))
        wait_for(lambda: sum(server.count_requests()) == 4, PATIENCE_S)
        while server.count_done(batch) < 60:
            assert sum(server.count_requests()) <= 4
            time.sleep(0.05)
