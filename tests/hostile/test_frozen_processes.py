"""A model's process that stands still costs its clients the documented time, and no more."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import RunningServer, running, wait_for
from tests.ports import free_port
from tests.programs import fake_llm
from tests.recordings import SPEECH_TEXT, spoken

pytestmark = pytest.mark.slow

M = "moonshine-tiny-en"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running("--set", "answer_seconds=2") as server:
        yield server


def health(server: RunningServer) -> dict[str, object]:
    found: dict[str, object] = requests.get(f"{server.address}/health", timeout=5).json()
    return found


def freeze(server: RunningServer) -> int:
    assert server.post(spoken("flac")).json()["text"] == SPEECH_TEXT
    (runner,) = server.runners()
    runner.send_signal(signal.SIGSTOP)
    return int(runner.pid)


def test_requests_of_a_stopped_process_are_served_by_the_next_one(server: RunningServer) -> None:
    frozen = freeze(server)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(server.post, spoken("flac")) for _ in range(2)]
        wait_for(lambda: health(server)["status"] == "degraded", 10)
        assert "no sign of life" in str(health(server)["reason"])
        assert [answer.result(30).json()["text"] for answer in answers] == [SPEECH_TEXT] * 2
    assert [runner.pid for runner in server.runners()] != [frozen]
    assert f"The process of {M} hangs: it gave no sign of life for 2 s (answer_seconds)" in server.log
    assert health(server)["status"] == "ok"


def test_a_stopped_process_can_be_unloaded(server: RunningServer) -> None:
    freeze(server)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, spoken("flac"))
        gone = requests.delete(f"{server.address}/api/ps/{M}", timeout=15)
        assert gone.status_code == 200
        assert answer.result(30).json()["text"] == SPEECH_TEXT


def test_a_process_that_stops_while_nobody_asks_is_noticed(server: RunningServer) -> None:
    freeze(server)
    wait_for(lambda: not server.runners(), 15)
    assert server.post(spoken("flac")).json()["text"] == SPEECH_TEXT


def test_requests_of_a_stopped_command_are_served_by_the_next_one(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    port = free_port()
    llm = {"cmd": fake_llm(port), "proxy": f"http://127.0.0.1:{port}"}
    config.write_text(json.dumps({"answer_seconds": 2, "models": {"llm": llm}}))
    with running("--config", str(config)) as server:

        def ask() -> int:
            body = {"model": "llm", "messages": [{"role": "user", "content": "?"}]}
            return requests.post(f"{server.address}/v1/chat/completions", json=body, timeout=30).status_code

        assert ask() == 200
        (command,) = (child for child in psutil.Process(server.process.pid).children() if "fake_llm" in " ".join(child.cmdline()))
        command.suspend()
        assert ask() == 200
        assert not command.is_running()
        assert "The command of llm hangs: it was stopped (SIGSTOP) for 2 s (answer_seconds) and was killed." in server.log
