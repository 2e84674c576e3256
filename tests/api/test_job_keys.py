"""Jobs and files of several API keys, their limits, and web pages."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from eardrum.cli.batch import ManifestLine, ManifestRun
from eardrum.cli.processes import call_server
from eardrum.errors import EardrumError
from tests.api.proxy.conftest import GatewayUnderTest, run_gateway

MODELS = {"upstream": {"proxy": "http://127.0.0.1:9"}, "secret": {"proxy": "http://127.0.0.1:9"}}
KEYS: list[Any] = [
    "ann",
    "ben",
    {"key": "few", "max_job_items": 1, "requests_per_minute": 3},
    {"key": "small", "max_file_bytes": 1000},
    {"key": "limited", "models": ["upstream"]},
    {"key": "again", "max_job_items": 1},
    {"key": "lines", "max_job_items": 2},
    {"key": "slow", "max_job_items": 1},
    {"key": "listener", "scopes": ["transcribe"]},
]
ENDPOINT = "/v1/audio/transcriptions"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayUnderTest]:
    folder = tmp_path_factory.mktemp("jobs")
    with run_gateway(models=MODELS, default_model="upstream", api_keys=KEYS, jobs={"dir": folder}) as started:
        yield started


def ask(gateway: GatewayUnderTest, key: str, method: str, path: str, **more: Any) -> requests.Response:
    headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
    return requests.request(method, gateway.url + path, headers=headers, timeout=20, **more)


def send_file(gateway: GatewayUnderTest, key: str, data: bytes = b"audio", purpose: str = "user_data") -> requests.Response:
    return ask(gateway, key, "post", "/v1/files", data={"purpose": purpose}, files={"file": ("a.wav", data)})


def send_job(gateway: GatewayUnderTest, key: str, **fields: str) -> requests.Response:
    return ask(gateway, key, "post", "/api/jobs", data=fields, files={"file": ("a.wav", b"audio")})


def test_a_key_sees_its_own_files_and_jobs_only(gateway: GatewayUnderTest) -> None:
    file = send_file(gateway, "ann").json()["id"]
    job = send_job(gateway, "ann").json()["id"]
    for path in (f"/v1/files/{file}", f"/v1/files/{file}/content", f"/api/jobs/{job}", f"/api/jobs/{job}/result"):
        assert ask(gateway, "ben", "get", path).status_code == 404, path
    for method, path in (("delete", f"/v1/files/{file}"), ("post", f"/api/jobs/{job}/cancel"), ("delete", f"/api/jobs/{job}")):
        assert ask(gateway, "ben", method, path).status_code == 404, path
    assert ask(gateway, "ben", "get", "/v1/files").json()["data"] == []
    assert ask(gateway, "ben", "get", "/api/jobs").json()["data"] == []
    assert [one["id"] for one in ask(gateway, "ann", "get", "/api/jobs").json()["data"]] == [job]
    line = json.dumps({"custom_id": "x", "body": {"file": file}}).encode()
    lines = send_file(gateway, "ben", line, "batch").json()["id"]
    batch = ask(gateway, "ben", "post", "/v1/batches", json={"input_file_id": lines, "endpoint": ENDPOINT}).json()
    end = time.monotonic() + 10
    while batch["status"] != "completed" and time.monotonic() < end:
        time.sleep(0.02)
        batch = ask(gateway, "ben", "get", f"/v1/batches/{batch['id']}").json()
    errors = ask(gateway, "ben", "get", f"/v1/files/{batch['error_file_id']}/content").json()
    assert errors["response"]["status_code"] == 404, "another key's file"
    assert ask(gateway, "ann", "post", f"/api/jobs/{job}/cancel").json()["status"] in ("cancelling", "cancelled", "finalizing")


def test_a_key_has_so_many_recordings_in_jobs(gateway: GatewayUnderTest) -> None:
    job = send_job(gateway, "few").json()["id"]
    refused = send_job(gateway, "few")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "max_job_items" in refused.json()["error"]["message"]
    for _ in range(10):
        assert ask(gateway, "few", "get", f"/api/jobs/{job}").status_code == 200, "asking is no use of a model"
    ask(gateway, "few", "post", f"/api/jobs/{job}/cancel")
    assert ask(gateway, "few", "get", f"/api/jobs/{job}?wait=10").json()["status"] == "cancelled"
    assert send_job(gateway, "few").status_code == 202
    assert send_job(gateway, "few").status_code == 429, "requests_per_minute"


def test_a_batch_has_no_more_recordings_than_its_key_may(gateway: GatewayUnderTest) -> None:
    file = send_file(gateway, "lines").json()["id"]

    def validate_batch(count: int) -> dict[str, Any]:
        lines = "\n".join(json.dumps({"custom_id": str(n), "body": {"file": file}}) for n in range(count))
        wanted = {"input_file_id": send_file(gateway, "lines", lines.encode(), "batch").json()["id"], "endpoint": ENDPOINT}
        batch: dict[str, Any] = ask(gateway, "lines", "post", "/v1/batches", json=wanted).json()
        end = time.monotonic() + 10
        while batch["status"] == "validating" and time.monotonic() < end:
            time.sleep(0.02)
            batch = ask(gateway, "lines", "get", f"/v1/batches/{batch['id']}").json()
        return batch

    refused = validate_batch(3)
    assert (refused["status"], refused["errors"]["data"][0]["code"]) == ("failed", "too_many_tasks")
    assert "max_job_items" in refused["errors"]["data"][0]["message"]
    assert validate_batch(1)["status"] == "in_progress"
    assert validate_batch(2)["status"] == "failed", "one has not ended"
    assert validate_batch(1)["status"] == "in_progress"


def test_recordings_that_arrive_side_by_side_are_counted(gateway: GatewayUnderTest) -> None:
    other: list[requests.Response] = []

    def send_while_another_arrives() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + bytes(1 << 20)
        other.append(send_job(gateway, "slow"))
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    late = ask(gateway, "slow", "post", "/api/jobs", data=send_while_another_arrives(), headers=headers)
    assert other[0].status_code == 202
    assert (late.status_code, "max_job_items" in late.text) == (429, True)


def test_a_request_that_is_repeated_is_within_the_limits(gateway: GatewayUnderTest) -> None:
    file = send_file(gateway, "again").json()["id"]
    with_file: dict[str, Any] = {"files": {"file": ("a.wav", b"audio")}}
    for more in (with_file, {"json": {"file": file}}):
        answers = [ask(gateway, "again", "post", "/api/jobs", headers={"idempotency-key": "k"}, **more) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert len({answer.json()["id"] for answer in answers}) == 1
    assert send_job(gateway, "again").status_code == 429


def test_a_command_without_a_valid_key_ends_and_no_recording_has_failed(gateway: GatewayUnderTest, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"audio")
    output = tmp_path / "results"
    run = ManifestRun([ManifestLine(n, str(n), str(tmp_path / "a.wav")) for n in range(3)], output, {}, 2)
    with run, pytest.raises(EardrumError, match="key"):
        asyncio.run(call_server(gateway.url, "wrong", None, run.run))
    assert output.read_text() == ""


def test_a_keys_files_have_so_many_bytes(gateway: GatewayUnderTest) -> None:
    first = send_file(gateway, "small", bytes(900)).json()["id"]
    refused = send_file(gateway, "small", bytes(200))
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
    assert "max_file_bytes" in refused.json()["error"]["message"]
    assert ask(gateway, "small", "delete", f"/v1/files/{first}").status_code == 200
    assert send_file(gateway, "small", bytes(200)).status_code == 200


def test_a_key_uses_its_models_only(gateway: GatewayUnderTest) -> None:
    refused = send_job(gateway, "limited", model="secret")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert send_job(gateway, "limited", model="upstream").status_code == 202


def test_a_batch_of_speech_needs_the_right_to_speak(gateway: GatewayUnderTest) -> None:
    wanted = {"input_file_id": "file-x", "endpoint": "/v1/audio/speech"}
    refused = ask(gateway, "listener", "post", "/v1/batches", json=wanted)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_scope")
    assert "`speak`" in refused.json()["error"]["message"]
    assert ask(gateway, "ann", "post", "/v1/batches", json=wanted).status_code == 404
    assert ask(gateway, "listener", "post", "/v1/batches", json={**wanted, "endpoint": ENDPOINT}).status_code == 404


def test_web_pages_of_other_origins_have_no_files(tmp_path: Path) -> None:
    with run_gateway(models=MODELS, default_model="upstream", jobs={"dir": tmp_path}) as open_to_all:
        for path in ("/v1/files", "/v1/batches", "/api/jobs"):
            page = requests.get(open_to_all.url + path, headers={"origin": "https://evil.example"}, timeout=20)
            assert (page.status_code, page.json()["error"]["code"]) == (403, "forbidden_origin")
            assert requests.get(open_to_all.url + path, timeout=20).status_code == 200


def test_a_folder_that_cannot_be_used_costs_jobs_only(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with run_gateway(models=MODELS, default_model="upstream", jobs={"dir": blocked}) as started:
        failed = requests.get(f"{started.url}/v1/files", timeout=20)
        assert (failed.status_code, "Set jobs.dir" in failed.json()["error"]["message"]) == (500, True)
        assert requests.get(f"{started.url}/v1/models", timeout=20).status_code == 200


def test_the_disk_is_never_filled(tmp_path: Path) -> None:
    jobs = {"dir": tmp_path, "free_bytes": 1 << 60}
    with run_gateway(models=MODELS, default_model="upstream", jobs=jobs) as started:
        refused = requests.post(f"{started.url}/api/jobs", files={"file": b"x"}, timeout=20)
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
    with run_gateway(models=MODELS, default_model="upstream", jobs={"dir": tmp_path, "disk_bytes": 100}) as started:
        refused = requests.post(f"{started.url}/api/jobs", files={"file": bytes(200)}, timeout=20)
        assert "disk_bytes" in refused.json()["error"]["message"]


def test_nothing_is_on_disk_before_the_first_job(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    with run_gateway(models=MODELS, default_model="upstream", jobs={"dir": folder}) as started:
        assert requests.get(f"{started.url}/v1/models", timeout=20).status_code == 200
        assert not folder.exists()
        assert requests.get(f"{started.url}/api/jobs", timeout=20).json()["data"] == []
        assert folder.exists()


@pytest.mark.slow
def test_jobs_of_a_key_and_of_a_model_that_are_gone_end(tmp_path: Path) -> None:
    jobs = {"dir": tmp_path}
    with run_gateway(models=MODELS, api_keys=["ann", "ben"], default_model="upstream", jobs=jobs) as before:
        mine = send_job(before, "ann", model="secret").json()["id"]
        withdrawn = send_job(before, "ben", model="upstream").json()["id"]
    renamed = {"other": MODELS["secret"], "upstream": MODELS["upstream"]}
    with run_gateway(models=renamed, api_keys=["ann"], default_model="upstream", jobs=jobs) as after:
        ended = ask(after, "ann", "get", f"/api/jobs/{mine}?wait=15").json()
        assert (ended["status"], ended["error"]["code"]) == ("failed", "model_not_found")
    with run_gateway(models=renamed, api_keys=["ann", "ben"], default_model="upstream", jobs=jobs) as again:
        ended = ask(again, "ben", "get", f"/api/jobs/{withdrawn}").json()
        assert (ended["status"], ended["error"]["code"]) == ("failed", "invalid_api_key")
