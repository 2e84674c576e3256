"""The log of a real server: one id for each request, in both processes, and nothing of what people say."""

from __future__ import annotations

import json
from typing import Any

import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import encode_speech

pytestmark = pytest.mark.slow

KEY, PROMPT, FILE_NAME = "sk-secret-of-the-test", "Zanzibar Quixote", "diagnosis-of-mrs-smith.wav"


def transcribe(server: ServerUnderTest, audio: bytes, **headers: str) -> requests.Response:
    return requests.post(
        f"{server.address}/v1/audio/transcriptions",
        data={"prompt": PROMPT, "hotwords": PROMPT},
        files={"file": (FILE_NAME, audio)},
        headers={"authorization": f"Bearer {KEY}", **headers},
        timeout=120,
    )


def find_lines(server: ServerUnderTest, id: str) -> list[dict[str, Any]]:
    """The lines about a request, once its own is there, which is written after the response."""
    lines: list[dict[str, Any]] = []

    def is_logged() -> bool:
        lines[:] = [json.loads(line) for line in server.output if line.startswith("{")]
        lines[:] = [line for line in lines if line.get("request") == id]
        return any("status" in line for line in lines)

    wait_for(is_logged)
    return lines


@pytest.mark.parametrize("level", ["info", "debug"])
def test_the_log_names_requests_and_holds_no_text(level: str) -> None:
    with run_server("--log-format", "json", "--log-level", level, "--set", f'api_keys=["{KEY}"]') as server:
        answer = transcribe(server, encode_speech("wav"), **{"x-request-id": "client-1"})
        assert answer.status_code == 200
        assert answer.headers["x-request-id"] == "client-1"
        if level == "debug":
            server.wait_for_log("Transcribed 1")  # the runner's lines take a way of their own
        lines = find_lines(server, "client-1")
        assert ("runner" in " ".join(line.get("message", "") for line in lines)) is (level == "debug")
        refused = transcribe(server, b"no audio at all")
        assert refused.status_code == 400
        assert find_lines(server, refused.headers["x-request-id"])[-1]["status"] == 400
        loading = [
            line for line in map(json.loads, filter(lambda line: line[0] == "{", server.output)) if "ready after" in str(line)
        ]
        assert loading, "a model was loaded"
        assert "request" not in loading[0], "a process serves many requests"
        text = answer.json()["text"]
        assert len(text) > 100
        for secret in (KEY, PROMPT, FILE_NAME, *(text[at : at + 15] for at in range(0, len(text) - 15, 5))):
            assert secret not in server.log


def test_text_for_people_names_the_request_too() -> None:
    with run_server("--log-level", "debug", "--set", f'api_keys=["{KEY}"]') as server:
        id = transcribe(server, encode_speech("wav")).headers["x-request-id"]
        server.wait_for_log(f"POST /v1/audio/transcriptions 200 request={id}")
        server.wait_for_log("Transcribed 1")  # the runner's lines take a way of their own
        (said,) = (line for line in server.output if "Transcribed 1" in line)
        assert said.endswith(f"request={id}\n")
        assert "DEBUG" in said


@pytest.mark.parametrize("value", ["a" * 129, "two words", "ä", "line%0abreak/"])
def test_an_unusable_id_is_replaced(server: ServerUnderTest, value: str) -> None:
    answer = requests.get(f"{server.address}/health", headers={"x-request-id": value.encode()}, timeout=20)
    assert answer.headers["x-request-id"].startswith("req_")
