"""The config of a running server is edited."""

from __future__ import annotations

import signal
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import requests
import yaml

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_ports
from tests.programs import FAKE_LLM

pytestmark = pytest.mark.slow

COMMAND = f"{sys.executable} {FAKE_LLM} --port ${{PORT}}"
TOGETHER = {"all": {"swap": False, "members": ["a", "b", "c"]}}


class EditedServer:
    """A server and its config."""

    def __init__(self, server: ServerUnderTest, file: Path):
        self.server = server
        self.file = file

    def write_config(self, **settings: Any) -> None:
        self.file.write_text(yaml.safe_dump({"start_port": START} | settings), encoding="utf-8")

    def reload_config(self, **settings: Any) -> str:
        """Write it, tell the server, and return what it logged."""
        self.write_config(**settings)
        return self.send_sighup()

    def send_sighup(self) -> str:
        before = len(self.server.output)
        self.server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "The config was" in "".join(self.server.output[before:]))
        return "".join(self.server.output[before:])

    def post_chat(self, model: str, **headers: str) -> requests.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        return requests.post(f"{self.server.address}/v1/chat/completions", json=body, headers=headers, timeout=60)

    def get_pid(self, model: str) -> int:
        return int(self.get_environment(model)["pid"])

    def is_busy(self, model: str) -> bool:
        """Whether a request for it is in progress."""
        rows = requests.get(f"{self.server.address}/health", timeout=20).json()["models"]
        return any(row["id"] == model and row["requests"] for row in rows)

    def get_environment(self, model: str) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{self.server.address}/upstream/{model}/env", timeout=60).json()
        return answer


START = find_free_ports(5)


def build_models(**habits: str) -> dict[str, Any]:
    return {name: {"cmd": f"{COMMAND} {habit}"} for name, habit in habits.items()}


@contextmanager
def run_edited(tmp_path: Path, *arguments: str, **settings: Any) -> Iterator[EditedServer]:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"start_port": START} | settings), encoding="utf-8")
    with run_server("--config", str(file), *arguments) as server:
        yield EditedServer(server, file)


def test_one_changed_model_of_three_under_load_fails_no_request(tmp_path: Path) -> None:
    three = build_models(a="--delay 0.02", b="--delay 0.05", c="--delay 0.02")
    with run_edited(tmp_path, models=three, groups=TOGETHER) as config:
        before = {name: config.get_pid(name) for name in "abc"}
        over = Event()
        answers: list[tuple[str, int]] = []

        def client(name: str) -> None:
            while not over.is_set():
                answers.append((name, config.post_chat(name).status_code))

        def each_has(count: int, since: int = 0) -> bool:
            of = Counter(name for name, _ in answers[since:])
            return min(of[name] for name in "abc") >= count

        with ThreadPoolExecutor(9) as clients:
            hammering = [clients.submit(client, name) for name in "abc" * 3]
            try:
                wait_for(lambda: each_has(10))
                logged = config.reload_config(models=three | build_models(b="--delay 0.05 --name other"), groups=TOGETHER)
                reloaded = len(answers)
                wait_for(lambda: each_has(20, reloaded))
            finally:
                over.set()
        assert "changed: b." in logged
        assert all(task.exception() is None for task in hammering)
        assert {status for _, status in answers} == {200}, Counter(answers)
        assert (config.get_pid("a"), config.get_pid("c")) == (before["a"], before["c"])
        assert config.get_pid("b") != before["b"]
        assert "other" in config.get_environment("b")["argv"]


def test_the_same_config_again_changes_nothing(tmp_path: Path) -> None:
    with run_edited(tmp_path, models=build_models(a="")) as config:
        pid = config.get_pid("a")
        assert "no model has changed" in config.send_sighup()
        answer = requests.post(f"{config.server.address}/api/reload", timeout=20)
        assert answer.json() == {"status": "reloaded", "added": [], "changed": [], "removed": [], "later": []}
        assert config.get_pid("a") == pid


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [
        ("models: [", "YAML"),
        ("models: {a: {cmd: 'x --port ${PROT}'}}", "PROT"),
        ("patience: soon", "patience"),
        ("memory: {cuda: much}", "memory.cuda"),
        ("default_model: nobody-has-this", "nobody-has-this"),
    ],
)
def test_a_config_edited_into_nonsense_is_not_reloaded(tmp_path: Path, nonsense: str, why: str) -> None:
    with run_edited(tmp_path, models=build_models(a="")) as config:
        pid = config.get_pid("a")
        config.file.write_text(nonsense, encoding="utf-8")
        logged = config.send_sighup()
        assert "was not reloaded" in logged
        assert why in logged
        answer = requests.post(f"{config.server.address}/api/reload", timeout=20)
        assert answer.status_code == 400
        assert why in answer.json()["error"]["message"]
        assert config.get_pid("a") == pid
        config.file.unlink()
        assert "was not reloaded" in config.send_sighup()
        assert config.post_chat("a").status_code == 200
        assert "added: b" in config.reload_config(models=build_models(a="", b=""))


def test_a_removed_model_finishes_and_its_port_is_not_given_to_another(tmp_path: Path) -> None:
    with run_edited(tmp_path, models=build_models(b="--delay 2")) as config, ThreadPoolExecutor(1) as client:
        first = config.get_environment("b")["argv"]
        asking = client.submit(config.post_chat, "b")
        wait_for(lambda: config.is_busy("b"))
        logged = config.reload_config(models=build_models(c=""))
        assert "added: c; removed: b." in logged
        assert config.post_chat("b").status_code == 404
        second = config.get_environment("c")["argv"]
        assert second[second.index("--port") + 1] != first[first.index("--port") + 1]
        assert asking.result().status_code == 200


def test_what_is_said_of_a_model_counts_at_once_and_does_not_end_it(tmp_path: Path) -> None:
    entry = build_models(a="")["a"]
    with run_edited(tmp_path, models={"a": entry}) as config:
        pid = config.get_pid("a")
        logged = config.reload_config(
            models={"a": entry | {"aliases": ["other"], "ttl": 1, "concurrency_limit": 3}}, api_keys=["sesame"]
        )
        assert "no model has changed" in logged
        assert config.post_chat("other").status_code == 401
        assert config.post_chat("other", authorization="Bearer sesame").status_code == 200
        up = requests.get(f"{config.server.address}/upstream/a/env", headers={"x-api-key": "sesame"}, timeout=20)
        assert up.json()["pid"] == pid
        wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_a_model_can_be_unloaded_by_force(tmp_path: Path) -> None:
    with run_edited(tmp_path, models=build_models(a="--delay 60")) as config, ThreadPoolExecutor(1) as client:
        config.get_pid("a")
        asking = client.submit(config.post_chat, "a")
        wait_for(lambda: config.is_busy("a"))
        assert requests.delete(f"{config.server.address}/api/ps/a?force=true", timeout=20).status_code == 200
        answer = asking.result()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_unloaded"


def test_a_removed_model_is_shown_until_it_has_ended_and_can_be_unloaded_by_force(tmp_path: Path) -> None:
    with run_edited(tmp_path, models=build_models(a="--delay 60", b="")) as config, ThreadPoolExecutor(1) as client:
        pid = config.get_pid("a")
        asking = client.submit(config.post_chat, "a")
        wait_for(lambda: config.is_busy("a"))
        config.reload_config(models=build_models(b=""))
        address = config.server.address
        [shown] = requests.get(f"{address}/api/ps", timeout=20).json()["models"]
        assert [shown[name] for name in ("id", "pid", "state", "requests", "reason")] == ["a", pid, "draining", 1, "reload"]
        [running] = requests.get(f"{address}/running", timeout=20).json()["running"]
        assert (running["model"], running["state"]) == ("a", "stopping")
        assert config.is_busy("a")
        assert "a" not in [row["id"] for row in requests.get(f"{address}/v1/models", timeout=20).json()["data"]]
        assert requests.delete(f"{address}/api/ps/a?force=true", timeout=20).status_code == 200
        assert asking.result().status_code == 503
        assert requests.get(f"{address}/api/ps", timeout=20).json()["models"] == []
        assert "a" not in [row["id"] for row in requests.get(f"{address}/health", timeout=20).json()["models"]]
        assert requests.delete(f"{address}/api/ps/a", timeout=20).status_code == 404


def test_settings_that_are_read_at_the_start_are_named(tmp_path: Path) -> None:
    with run_edited(tmp_path, models=build_models(a="")) as config:
        assert "takes effect at the next start: limits" in config.reload_config(models=build_models(a=""), limits={"requests": 3})


def test_a_watched_config_is_read_when_it_has_changed(tmp_path: Path) -> None:
    with run_edited(tmp_path, "--watch-config", models=build_models(a="")) as config:
        pid = config.get_pid("a")
        config.write_config(models=build_models(a="", b=""))
        config.server.wait_for_log("added: b")
        config.file.write_text("models: [", encoding="utf-8")
        config.server.wait_for_log("was not reloaded")
        config.write_config(models=build_models(a=""))
        config.server.wait_for_log("removed: b")
        assert config.get_pid("a") == pid


def test_a_model_that_changes_again_and_again_ends_up_as_it_was_last_written(tmp_path: Path) -> None:
    with run_edited(tmp_path, models=build_models(a="--name n0 --stop-seconds 0.3")) as config, ThreadPoolExecutor(4) as clients:
        config.get_pid("a")
        asking = []
        for n in range(1, 6):
            config.reload_config(models=build_models(a=f"--name n{n} --stop-seconds 0.3"))
            asking.append(clients.submit(config.post_chat, "a"))
        assert {task.result().status_code for task in asking} == {200}
        assert "n5" in config.get_environment("a")["argv"]
