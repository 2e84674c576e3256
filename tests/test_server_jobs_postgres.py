"""Two servers that share their jobs in a real Postgres."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.jobs.databases import create_database, run_postgres
from tests.jobs.job_servers import (
    JobServer,
    Undisturbed,
    check_outcome,
    join_announcements,
    run_job_server,
    transcribe_undisturbed,
)

pytestmark = [pytest.mark.slow, pytest.mark.jobs, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return transcribe_undisturbed(tmp_path_factory.mktemp("undisturbed") / "server", join_announcements(2), 20)


@contextmanager
def run_two_servers(folder: Path, **of_second: str) -> Iterator[tuple[JobServer, JobServer]]:
    """Two servers; `of_second` are settings of jobs of the second one alone."""
    with run_postgres():
        jobs = {"database": create_database()}
        with run_job_server(folder, jobs, seconds=0.1) as first:
            second = JobServer(folder, first.environment, first.options, {**jobs, **of_second}, name="second")
            second.start()
            try:
                yield first, second
            finally:
                second.stop()


def test_two_servers_share_jobs_and_one_takes_over_when_the_other_dies(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_two_servers(tmp_path / "server") as (first, second):
        ids = undisturbed.add_all(first)
        second.wait_for_progress(ids[0])
        wait_for(lambda: "scripted" in str(second.get("/api/ps")["models"]), 60)
        first.kill()
        again = check_outcome(second, ids, undisturbed)
        print(f"one of two servers was killed: {again} of {sum(undisturbed.windows.values())} windows were decoded again")
        assert again <= 2 * 11


def test_a_job_is_cancelled_through_the_server_that_does_not_run_it(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_two_servers(tmp_path / "server") as (first, second):
        id = first.add_recording(undisturbed.long)
        second.wait_for_progress(id)
        servers = [server for server in (first, second) if server.get("/api/ps")["models"]]
        others = [server for server in (first, second) if server not in servers] or [second]
        assert others[0].post(f"/api/jobs/{id}/cancel")["status"] == "cancelling"
        began = time.monotonic()
        assert first.get(f"/api/jobs/{id}?wait=30")["status"] == "cancelled"
        assert time.monotonic() - began < 15


def test_a_server_without_the_shared_folder_gives_recordings_back(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_two_servers(tmp_path / "server", dir=str(tmp_path / "unmounted")) as (first, second):
        id = first.add_recording(undisturbed.long)
        first.stop()
        wait_for(lambda: "is tried again: The file" in second.read_log(), 60)
        assert "is missing on this server, although the database of jobs has its record" in second.read_log()
        first.start()
        (job,) = first.wait_for_end([id])
        assert job["status"] == "completed", (job, second.read_log())
        assert first.read_text(id) == undisturbed.text
