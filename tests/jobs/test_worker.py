"""The work on jobs when something is wrong with the server itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from eardrum.jobs import database, items, manager, worker
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway
from tests.conftest import wait_for
from tests.upstreams import fake_saying, fake_upstream


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
        assert 'eardrum_job_recordings_total{model="m"' not in scrape(gateway)


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
        wait_for(lambda: "Jobs are not worked on" in caplog.text)
        assert "Jobs are kept in" not in caplog.text
        other.close()
        wait_for(lambda: "Jobs are kept in" in caplog.text)
        assert caplog.text.count("Jobs are not worked on") == 1, "the same reason is logged once"
