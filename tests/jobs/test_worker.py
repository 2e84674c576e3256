"""The work on jobs when something is wrong with the server itself."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import requests
from aiohttp import web

from eardrum.errors import ConfigError
from eardrum.jobs import batch_files, database, file_store, items, manager, worker
from eardrum.jobs.blobs import BlobFolder
from eardrum.jobs.store import MAX_TRIES
from eardrum.wav import build_wav_header
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.conftest import wait_for
from tests.gateway.live.number_speaker import RATE, build_model, speak_sentence
from tests.gateway.upstreams.test_replicas import ALL, TOKEN, FakeRunner
from tests.upstreams import FakeUpstream, UpstreamCall, fake_saying, fake_upstream


@contextmanager
def run_job_gateway(folder: Path) -> Iterator[GatewayUnderTest]:
    """A gateway whose only model's server cannot be reached."""
    with run_gateway(models={"m": {"proxy": "http://127.0.0.1:9"}}, default_model="m", jobs={"dir": folder}) as gateway:
        yield gateway


def send_job(gateway: GatewayUnderTest) -> str:
    answer = requests.post(f"{gateway.url}/api/jobs", files={"file": ("a.wav", b"audio")}, timeout=20)
    return str(answer.json()["id"])


def scrape(gateway: GatewayUnderTest) -> str:
    return requests.get(f"{gateway.url}/metrics", timeout=20).text


def test_an_attempt_that_fails_unexpectedly_is_over_with_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> str:
        raise RuntimeError("no recipe")

    monkeypatch.setattr(items, "compute_recipe", fail)
    for name, seconds in (("LEASE_S", 0.2), ("SAVE_S", 0.05), ("RENEW_S", 0.05), ("POLL_S", 0.1)):
        monkeypatch.setattr(worker, name, seconds)
    with run_job_gateway(tmp_path) as gateway:
        assert "eardrum_job" not in scrape(gateway)
        job = requests.get(f"{gateway.url}/api/jobs/{send_job(gateway)}?wait=15", timeout=20).json()
        assert job["status"] == "failed"
        assert "given up after 5 tries" in job["error"]["message"]
        assert 'eardrum_job_recordings_total{model="m",status="failed"} 1.0' in scrape(gateway)


def test_metrics_show_recordings_that_wait(tmp_path: Path) -> None:
    with run_job_gateway(tmp_path) as gateway:
        for _ in range(3):
            send_job(gateway)
        wait_for(lambda: 'eardrum_job_queue{model="m",state="waiting"} 3.0' in scrape(gateway))
        (line,) = [line for line in scrape(gateway).splitlines() if line.startswith('eardrum_job_oldest_seconds{model="m"}')]
        assert 0 < float(line.split()[1]) < 60
        assert 'eardrum_job_recordings_total{model="m"' not in scrape(gateway)


def test_a_model_that_is_not_here_is_no_label(tmp_path: Path) -> None:
    models = {name: {"proxy": "http://127.0.0.1:9"} for name in ("m", "gone")}
    with run_gateway(models=models, default_model="m", jobs={"dir": tmp_path}) as gateway:
        audio = {"file": ("a.wav", b"audio")}
        sent = requests.post(f"{gateway.url}/api/jobs", data={"model": "gone"}, files=audio, timeout=20).json()
    with run_job_gateway(tmp_path) as gateway:
        job = requests.get(f"{gateway.url}/api/jobs/{sent['id']}?wait=30", timeout=40).json()
        assert (job["status"], job["error"]["code"]) == ("failed", "model_not_found")
        assert 'eardrum_job_recordings_total{model="unknown",status="failed"} 1.0' in scrape(gateway)
        assert 'model="gone"' not in scrape(gateway)


def test_the_audio_of_a_job_is_charged_to_its_key(tmp_path: Path) -> None:
    with (
        fake_upstream(
            fake_saying({"task": "transcribe", "language": "en", "duration": 7.6, "text": "Hello.", "segments": []})
        ) as upstream,
        run_gateway(
            models={"m": {"proxy": upstream.url}}, default_model="m", api_keys=["ann"], jobs={"dir": tmp_path}
        ) as gateway,
    ):
        key = {"authorization": "Bearer ann"}
        sent = requests.post(f"{gateway.url}/api/jobs", files={"file": ("a.wav", b"audio")}, headers=key, timeout=20).json()
        job = requests.get(f"{gateway.url}/api/jobs/{sent['id']}?wait=60", headers=key, timeout=80).json()
        assert job["status"] == "completed", job
        (usage,) = gateway.service.api_keys
        metrics = gateway.service.metrics
        assert usage.audio_s == metrics.job_audio["m"] == job["progress"]["seconds"] > 0
        assert metrics.job_recordings == {("m", "done"): 1}


def test_jobs_continue_once_their_database_can_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with run_job_gateway(tmp_path) as gateway:
        send_job(gateway)
    monkeypatch.setattr(database, "LOCK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(manager, "RETRY_S", 0.05)
    caplog.clear()
    caplog.set_level("INFO", "eardrum")
    other = sqlite3.connect(tmp_path / manager.DATABASE_NAME)
    other.execute("begin exclusive")
    with run_job_gateway(tmp_path):
        wait_for(lambda: "Jobs are not being processed" in caplog.text)
        assert "Jobs are kept in" not in caplog.text
        other.close()
        wait_for(lambda: "Jobs are kept in" in caplog.text)
        assert caplog.text.count("Jobs are not being processed") == 1, "the same reason is logged once"


class SlowBucket:
    """Makes the files of jobs those of a bucket that sends nothing until it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.asked, self.sends = Event(), Event()
        self.fetches = 0
        open_copy = BlobFolder.open_copy

        @asynccontextmanager
        async def fetch(blobs: BlobFolder, id: str) -> AsyncIterator[Path]:
            self.fetches += 1
            self.asked.set()
            while not self.sends.is_set():  # noqa: ASYNC110 -- the event belongs to another thread
                await asyncio.sleep(0.01)
            async with open_copy(blobs, id) as path:
                yield path

        monkeypatch.setattr(BlobFolder, "is_remote", True)
        monkeypatch.setattr(BlobFolder, "open_copy", fetch)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> SlowBucket:
    return SlowBucket(monkeypatch)


ANSWER = {"task": "transcribe", "language": "en", "duration": 7.6, "text": "Hello.", "segments": []}


@contextmanager
def run_single_gateway(folder: Path, upstream: FakeUpstream) -> Iterator[GatewayUnderTest]:
    """A gateway whose only model serves one request at a time."""
    models = {"m": {"proxy": upstream.url, "max_concurrency": 1}}
    with run_gateway(models=models, default_model="m", jobs={"dir": folder}) as gateway:
        yield gateway


def get_job(gateway: GatewayUnderTest, id: str, wait: int = 0) -> Any:
    return requests.get(f"{gateway.url}/api/jobs/{id}?wait={wait}", timeout=wait + 20).json()


def test_no_model_is_leased_while_a_recording_is_fetched(tmp_path: Path, bucket: SlowBucket) -> None:
    with (
        fake_upstream(fake_saying(ANSWER)) as upstream,
        run_single_gateway(tmp_path, upstream) as gateway,
    ):
        id = send_job(gateway)
        assert bucket.asked.wait(20)
        files = {"file": ("a.wav", b"audio")}
        answer = requests.post(f"{gateway.url}/v1/audio/transcriptions", data={"model": "m"}, files=files, timeout=20)
        assert answer.json()["text"] == "Hello.", "the model serves one request at a time, and it is free"
        assert get_job(gateway, id)["status"] == "in_progress"
        bucket.sends.set()
        assert get_job(gateway, id, wait=15)["status"] == "completed"


def test_a_job_is_cancelled_while_its_recording_is_fetched(tmp_path: Path, bucket: SlowBucket) -> None:
    with run_job_gateway(tmp_path) as gateway:
        id = send_job(gateway)
        assert bucket.asked.wait(20)
        requests.post(f"{gateway.url}/api/jobs/{id}/cancel", timeout=20)
        assert get_job(gateway, id, wait=15)["status"] == "cancelled"


def test_a_fetched_recording_goes_back_if_its_model_serves_others(
    tmp_path: Path, bucket: SlowBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HOLD_S", 0.1)
    busy, done = Event(), Event()

    async def answer(_: UpstreamCall, __: web.Request) -> web.Response:
        busy.set()
        while not done.is_set():  # noqa: ASYNC110 -- the same
            await asyncio.sleep(0.01)
        return web.json_response(ANSWER)

    with (
        fake_upstream(answer) as upstream,
        run_single_gateway(tmp_path, upstream) as gateway,
        ThreadPoolExecutor() as pool,
    ):
        id = send_job(gateway)
        assert bucket.asked.wait(20)
        files = {"file": ("a.wav", b"audio")}
        other = pool.submit(
            lambda: requests.post(f"{gateway.url}/v1/audio/transcriptions", data={"model": "m"}, files=files, timeout=60)
        )
        assert busy.wait(20)
        bucket.sends.set()
        wait_for(lambda: 'eardrum_job_queue{model="m",state="waiting"} 1.0' in scrape(gateway))
        done.set()
        assert other.result().status_code == 200
        assert get_job(gateway, id, wait=30)["status"] == "completed"
        assert 'eardrum_job_recordings_total{model="m",status="done"} 1.0' in scrape(gateway)


@pytest.mark.slow
def test_speakers_are_found_where_memory_holds_one_model_at_a_time(tmp_path: Path) -> None:
    models = {"m": build_model(tmp_path, entry={"memory": "300M"})}
    with run_gateway(models=models, default_model="m", memory={"cpu": "310M"}, jobs={"dir": tmp_path / "jobs"}) as gateway:
        samples = speak_sentence(1, 2)
        files = {"file": ("a.wav", build_wav_header(len(samples), RATE) + samples)}
        answer = requests.post(f"{gateway.url}/api/jobs", files=files, data={"response_format": "diarized_json"}, timeout=20)
        job = get_job(gateway, answer.json()["id"], wait=30)
        assert job["status"] == "completed", job
        result = requests.get(f"{gateway.url}/api/jobs/{job['id']}/result", timeout=20).json()
        assert {segment["speaker"] for segment in result["segments"]} == {"A"}


@pytest.mark.slow
async def test_recordings_wait_while_all_replicas_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_PAUSE_S", 0.05)
    runner = FakeRunner()
    models = {"m": {"engine": "moonshine", "replicas": {"addresses": [runner.address], "token": TOKEN}}}
    with run_gateway(models=models, default_model="m", jobs={"dir": tmp_path}) as gateway:
        await runner.start()

        def read_replica_state() -> str:
            return str(requests.get(f"{gateway.url}/api/ps", timeout=20).json()["models"][0]["replicas"][0]["state"])

        first = await asyncio.to_thread(send_job, gateway)
        assert (await asyncio.to_thread(get_job, gateway, first, 20))["status"] == "completed", "the model is loaded"
        runner.token = "other"
        await asyncio.to_thread(wait_for, lambda: read_replica_state() == "refused")
        second = await asyncio.to_thread(send_job, gateway)
        await asyncio.sleep(2)
        assert (await asyncio.to_thread(get_job, gateway, second))["status"] in ("queued", "in_progress")
        runner.token = TOKEN
        job = await asyncio.to_thread(get_job, gateway, second, 30)
        assert (job["status"], job["progress"]["windows"]) == ("completed", len(ALL))
        await runner.stop()


def test_recordings_wait_while_their_bucket_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_PAUSE_S", 0.05)
    refuses, refused = Event(), 0
    refuses.set()
    open_copy = BlobFolder.open_copy

    @asynccontextmanager
    async def fetch(blobs: BlobFolder, id: str) -> AsyncIterator[Path]:
        nonlocal refused
        if refuses.is_set():
            refused += 1
            raise ConfigError("The bucket refuses the request.", retry_after=0.05)
        async with open_copy(blobs, id) as path:
            yield path

    monkeypatch.setattr(BlobFolder, "is_remote", True)
    monkeypatch.setattr(BlobFolder, "open_copy", fetch)
    with fake_upstream(fake_saying(ANSWER)) as upstream, run_single_gateway(tmp_path, upstream) as gateway:
        id = send_job(gateway)
        wait_for(lambda: refused > MAX_TRIES)
        assert get_job(gateway, id)["status"] in ("queued", "in_progress")
        refuses.clear()
        assert get_job(gateway, id, wait=15)["status"] == "completed"


def upload(gateway: GatewayUnderTest, content: str, **more: str) -> str:
    files = {"file": ("a", content)}
    sent = requests.post(f"{gateway.url}/v1/files", data={"purpose": "batch", **more}, files=files, timeout=20)
    return str(sent.json()["id"])


def create_batch(gateway: GatewayUnderTest, *bodies: dict[str, str], **more: Any) -> str:
    lines = "\n".join(json.dumps({"custom_id": str(n), "body": body}) for n, body in enumerate(bodies))
    file = upload(gateway, lines, **{"expires_after[seconds]": "3600"})
    wanted = {"input_file_id": file, "endpoint": "/v1/audio/transcriptions", **more}
    return str(requests.post(f"{gateway.url}/v1/batches", json=wanted, timeout=20).json()["id"])


def test_results_are_kept_as_long_as_was_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SWEEP_S", "POLL_S"):
        monkeypatch.setattr(worker, name, 0.05)
    models = {"m": {"proxy": "http://127.0.0.1:9"}}
    with run_gateway(models=models, default_model="m", jobs={"dir": tmp_path, "keep": 0.2}) as gateway:
        promised = {"anchor": "created_at", "seconds": 3600}
        id = create_batch(gateway, {"file": "file-none"}, output_expires_after=promised)
        file = get_job(gateway, id, wait=15)["error_file_id"]
        later = upload(gateway, "x")
        wait_for(lambda: requests.get(f"{gateway.url}/v1/files/{later}", timeout=20).status_code == 404)
        described = requests.get(f"{gateway.url}/v1/files/{file}", timeout=20).json()
        assert described["expires_at"] - described["created_at"] == 3600
        assert requests.get(f"{gateway.url}/v1/files/{file}/content", timeout=20).status_code == 200
        assert requests.get(f"{gateway.url}/v1/batches/{id}", timeout=20).json()["error_file_id"] == file


@pytest.mark.parametrize(("is_shared", "again"), [(True, MAX_TRIES - 1), (False, 0)])
def test_a_recording_that_another_server_may_have_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_shared: bool, again: int
) -> None:
    monkeypatch.setattr(database.SqliteDatabase, "shared", is_shared)
    monkeypatch.setattr(worker, "MAX_PAUSE_S", 0.05)
    monkeypatch.setattr(file_store, "ELSEWHERE_S", 0.05)
    with run_job_gateway(tmp_path) as gateway:
        file = upload(gateway, "audio")
        BlobFolder(tmp_path / "files", 0).find_path(file).unlink()
        sent = requests.post(f"{gateway.url}/api/jobs", json={"model": "m", "file": file}, timeout=20).json()
        job = get_job(gateway, sent["id"], wait=15)
    assert job["status"] == "failed"
    assert caplog.text.count(f"is tried again: The file {file} is missing on this server") == again
    assert ("Is it mounted" if is_shared else "was deleted") in job["error"]["message"]


@pytest.fixture
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_files, "LEASE_S", 1.0)
    for name, seconds in (("LEASE_S", 1.0), ("RENEW_S", 0.1), ("POLL_S", 0.1)):
        monkeypatch.setattr(worker, name, seconds)


@pytest.mark.slow
@pytest.mark.usefixtures("short_leases")
def test_a_batch_is_read_once_however_slow_its_bucket_is(tmp_path: Path, bucket: SlowBucket) -> None:
    with run_job_gateway(tmp_path) as gateway:
        id = create_batch(gateway, {"file": "file-none"})
        assert bucket.asked.wait(20)
        time.sleep(3)
        bucket.sends.set()
        assert get_job(gateway, id, wait=15)["status"] == "completed"
        assert bucket.fetches == 1


@pytest.mark.slow
@pytest.mark.usefixtures("short_leases")
def test_results_are_written_once_however_slow_their_bucket_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[str] = []
    store = BlobFolder.store

    def store_slowly(blobs: BlobFolder, path: Path, id: str) -> None:
        stored.append(id)
        time.sleep(3 if len(stored) > 1 else 0)
        store(blobs, path, id)

    monkeypatch.setattr(BlobFolder, "store", store_slowly)
    with run_job_gateway(tmp_path) as gateway:
        id = create_batch(gateway, {"file": "file-none"})
        assert get_job(gateway, id, wait=15)["status"] == "completed"
        assert len(stored) == 2, "the requests, and the errors"


def send_address(gateway: GatewayUnderTest, model: str, address: str) -> str:
    body = {"model": model, "file_url": address}
    return str(requests.post(f"{gateway.url}/api/jobs", json=body, timeout=20).json()["id"])


@contextmanager
def run_fetching_gateway(folder: Path) -> Iterator[tuple[GatewayUnderTest, FakeUpstream]]:
    """A gateway with a model `m` that cannot be reached and a model `n` that can, and a server with recordings."""

    async def answer(call: UpstreamCall, _: web.Request) -> web.Response:
        if call.path == "/slow.wav":
            await asyncio.sleep(60)
        return web.Response(body=b"audio") if call.path.endswith(".wav") else web.json_response(ANSWER)

    with fake_upstream(answer) as upstream:
        models = {"m": {"proxy": "http://127.0.0.1:9"}, "n": {"proxy": upstream.url}}
        limits = {"fetch_hosts": ["127.0.0.1"]}
        with run_gateway(models=models, default_model="m", jobs={"dir": folder}, limits=limits) as gateway:
            yield gateway, upstream


def test_recordings_of_a_model_that_is_away_keep_no_others_from_being_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "MAX_FETCHED", 2)
    with run_fetching_gateway(tmp_path) as (gateway, upstream):
        for _ in range(3):
            send_address(gateway, "m", f"{upstream.url}/m.wav")
        wait_for(lambda: caplog.text.count("The jobs of m are paused") >= 2)
        id = send_address(gateway, "n", f"{upstream.url}/n.wav")
        assert get_job(gateway, id, wait=8)["status"] == "completed", "before those of `m` are tried again"


def test_a_slow_address_keeps_no_others_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "POLL_S", 0.1)
    with run_fetching_gateway(tmp_path) as (gateway, upstream):
        slow = send_address(gateway, "n", f"{upstream.url}/slow.wav")
        wait_for(lambda: upstream.calls)
        id = send_address(gateway, "n", f"{upstream.url}/n.wav")
        assert get_job(gateway, id, wait=15)["status"] == "completed"
        assert get_job(gateway, slow)["status"] == "in_progress"
