"""Jobs of a server whose files are in a bucket, behind a server of S3's protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.jobs.buckets import build_bucket_environment, run_bucket_server
from tests.jobs.job_servers import JobServer, run_job_server
from tests.recordings import encode, encode_announcements, load_announcements

pytestmark = [pytest.mark.slow, pytest.mark.jobs, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with run_bucket_server() as address:
        yield address


def list_objects(bucket: str) -> str:
    return requests.get(f"{bucket}/jobs?list-type=2", timeout=20).text


def list_local_files(server: JobServer) -> list[Path]:
    return [path for path in (server.folder / "jobs" / "files").rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def server(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    folder = tmp_path_factory.mktemp("bucket") / "server"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in build_bucket_environment(bucket).items():
            patch.setenv(name, value)
        with run_job_server(folder, {"bucket": "s3://jobs/files"}, seconds=0.05) as started:
            yield started


def test_files_and_results_are_in_the_bucket(server: JobServer, bucket: str) -> None:
    clips = [encode(samples, "flac") for _, samples, _ in load_announcements()[:3]]
    batch = server.add_batch(clips)
    (ended,) = server.wait_for_end([batch])
    assert (ended["status"], ended["request_counts"]["completed"]) == ("completed", 3)
    lines = server.read_lines(ended["output_file_id"])
    assert [line["custom_id"] for line in lines] == ["0", "1", "2"]
    files: list[dict[str, Any]] = server.get("/v1/files")["data"]
    assert len(files) == 5, "three recordings, the requests and the results"
    for file in files:
        assert file["id"].removeprefix("file-") in list_objects(bucket)
    recording = next(file["id"] for file in files if file["purpose"] == "user_data")
    address = f"{server.address}/v1/files/{recording}/content"
    part = requests.get(address, headers={"range": "bytes=10-19"}, timeout=60)
    whole = requests.get(address, timeout=60)
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert whole.content in clips
    assert requests.delete(f"{server.address}/v1/files/{recording}", timeout=60).status_code == 200
    assert recording.removeprefix("file-") not in list_objects(bucket)
    assert requests.get(address, timeout=60).status_code == 404
    assert list_local_files(server) == []


def test_a_recording_continues_after_the_death_of_the_server(server: JobServer) -> None:
    id = server.add_recording(encode_announcements(120))
    server.wait_for_progress(id)
    server.kill()
    server.start()
    (job,) = server.wait_for_end([id])
    assert job["status"] == "completed", json.dumps(job)
    assert server.read_text(id)


def test_a_bucket_that_is_missing_is_named(server: JobServer) -> None:
    server.stop()
    server.jobs["bucket"] = "s3://nothing/here"
    server.start()
    answer = requests.get(f"{server.address}/v1/files", timeout=60)
    assert answer.status_code >= 500
    assert "s3://nothing/here" in answer.json()["error"]["message"]
