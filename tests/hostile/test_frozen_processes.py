"""A model's process that stands still costs its clients the documented time, and no more."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_port
from tests.processes import find_children
from tests.programs import build_fake_llm_command
from tests.recordings import SPEECH_TEXT, encode_speech

pytestmark = [pytest.mark.slow, pytest.mark.hostile]

M = "moonshine-tiny-en"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUnderTest]:
    with run_server("--set", "liveness_timeout=2") as server:
        yield server


def get_health(server: ServerUnderTest) -> dict[str, object]:
    found: dict[str, object] = requests.get(f"{server.address}/health", timeout=5).json()
    return found


def freeze_runner(server: ServerUnderTest) -> int:
    assert server.post_audio(encode_speech("flac")).json()["text"] == SPEECH_TEXT
    (runner,) = server.list_runners()
    runner.send_signal(signal.SIGSTOP)
    return int(runner.pid)


def test_requests_of_a_stopped_process_are_served_by_the_next_one(server: ServerUnderTest) -> None:
    frozen = freeze_runner(server)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(server.post_audio, encode_speech("flac")) for _ in range(2)]
        wait_for(lambda: get_health(server)["status"] == "degraded")
        assert "not answered liveness checks" in str(get_health(server)["reason"])
        assert [answer.result(30).json()["text"] for answer in answers] == [SPEECH_TEXT] * 2
    assert [runner.pid for runner in server.list_runners()] != [frozen]
    server.wait_for_log(f"The process of {M} hangs: it did not answer liveness checks for 2 s (liveness_timeout)")
    assert get_health(server)["status"] == "ok"


def test_a_stopped_process_can_be_unloaded(server: ServerUnderTest) -> None:
    freeze_runner(server)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post_audio, encode_speech("flac"))
        gone = requests.delete(f"{server.address}/api/ps/{M}", timeout=15)
        assert gone.status_code == 200
        assert answer.result(30).json()["text"] == SPEECH_TEXT


def test_a_process_that_stops_while_nobody_asks_is_noticed(server: ServerUnderTest) -> None:
    freeze_runner(server)
    wait_for(lambda: not server.list_runners())
    assert server.post_audio(encode_speech("flac")).json()["text"] == SPEECH_TEXT


def test_requests_of_a_stopped_command_are_served_by_the_next_one(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    port = find_free_port()
    llm = {"cmd": build_fake_llm_command(port), "proxy": f"http://127.0.0.1:{port}"}
    config.write_text(json.dumps({"liveness_timeout": 2, "models": {"llm": llm}}))
    with run_server("--config", str(config)) as server:

        def ask() -> int:
            body = {"model": "llm", "messages": [{"role": "user", "content": "?"}]}
            return requests.post(f"{server.address}/v1/chat/completions", json=body, timeout=30).status_code

        assert ask() == 200
        (command,) = find_children(server.process.pid, "fake_llm.py")
        command.suspend()
        assert ask() == 200
        assert not command.is_running()
        server.wait_for_log("The command of llm hangs: it was stopped (SIGSTOP) for 2 s (liveness_timeout) and was killed.")
