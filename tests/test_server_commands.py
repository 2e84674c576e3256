"""A server whose models are commands: they come and go as its own do, and none survives it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.commands import start_eardrum
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_port
from tests.processes import find_children, is_alive
from tests.programs import build_fake_llm_command
from tests.recordings import SPEECH_TEXT, encode_speech

pytestmark = pytest.mark.slow


def build_command(*habits: object, **keys: object) -> dict[str, Any]:
    """An entry of `models:`."""
    port = find_free_port()
    return {"cmd": build_fake_llm_command(port, *habits), "proxy": f"http://127.0.0.1:{port}", **keys}


@contextmanager
def run_server_with(folder: Path, models: dict[str, Any], **settings: object) -> Iterator[ServerUnderTest]:
    config = folder / "config.yaml"
    together = {"all": {"swap": False, "exclusive": False, "members": [*models]}}
    config.write_text(json.dumps({"models": models, "groups": together, **settings}))
    with run_server("--config", str(config)) as server:
        yield server


def post_chat(server: ServerUnderTest, model: str, *, timeout: float = 60) -> requests.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    return requests.post(f"{server.address}/v1/chat/completions", json=body, timeout=timeout)


def read_until_broken(server: ServerUnderTest, body: dict[str, Any]) -> bytes:
    """What comes of a stream that does not end as it should."""
    came = b""
    with requests.post(f"{server.address}/v1/chat/completions", json=body, stream=True, timeout=30) as answer:
        try:
            for piece in answer.iter_content(None):
                came += piece
        except requests.exceptions.ChunkedEncodingError:
            return came
    pytest.fail("it ended as if nothing were wrong")


def list_processes(server: ServerUnderTest) -> dict[str, dict[str, Any]]:
    models = requests.get(f"{server.address}/api/ps", timeout=10).json()["models"]
    return {m["model"].removesuffix(":latest"): m for m in models}


def list_states(server: ServerUnderTest) -> dict[str, str]:
    return {m["id"]: m["state"] for m in requests.get(f"{server.address}/health", timeout=10).json()["models"]}


def unload_model(server: ServerUnderTest, model: str) -> int:
    return requests.delete(f"{server.address}/api/ps/{model}", timeout=60).status_code


def test_a_command_is_loaded_by_its_first_request_and_unloaded_by_hand(tmp_path: Path) -> None:
    with run_server_with(tmp_path, {"llm": build_command()}) as server:
        assert list_states(server)["llm"] == "stopped"
        assert post_chat(server, "llm").json()["choices"][0]["message"]["content"] == "You said: hi"
        status = list_processes(server)["llm"]
        assert (status["engine"], status["state"], status["is_default"]) == ("command", "ready", False)
        assert unload_model(server, "llm") == 200
        assert not is_alive(status["pid"])
        assert list_states(server)["llm"] == "stopped"


def test_a_language_model_is_never_the_default(tmp_path: Path) -> None:
    with run_server_with(tmp_path, {"llm": build_command()}) as server:
        assert requests.get(f"{server.address}/health", timeout=10).json()["default_model"] == "moonshine-tiny-en"
        assert server.post_audio(encode_speech("flac"), model="whisper-1").json()["text"] == SPEECH_TEXT


def test_one_that_is_slow_to_stop_holds_up_nobody(tmp_path: Path) -> None:
    models = {"slow": build_command("--ignore-sigterm", unload_timeout=3), "other": build_command()}
    with run_server_with(tmp_path, models) as server, ThreadPoolExecutor(1) as pool:
        assert [post_chat(server, model).status_code for model in models] == [200, 200]
        began = time.monotonic()
        unloading = pool.submit(unload_model, server, "slow")
        wait_for(lambda: list_states(server)["slow"] == "stopping")
        assert post_chat(server, "other").status_code == 200
        assert not unloading.done()
        assert unloading.result() == 200
        assert time.monotonic() - began >= 3


def test_a_start_can_be_broken_off(tmp_path: Path) -> None:
    with run_server_with(tmp_path, {"llm": build_command("--load-seconds", 60)}) as server:
        with pytest.raises(requests.Timeout):
            post_chat(server, "llm", timeout=1)
        assert list_states(server)["llm"] == "starting"

        def list_programs() -> list[psutil.Process]:
            return find_children(server.process.pid, "fake_llm.py")

        wait_for(list_programs)
        (child,) = list_programs()
        wait_for(lambda: unload_model(server, "llm") == 200 and list_states(server)["llm"] == "stopped")
        assert not is_alive(child.pid)


def test_one_that_dies_in_mid_answer_is_named_with_what_it_said(tmp_path: Path) -> None:
    with run_server_with(tmp_path, {"llm": build_command("--die-after", 1)}) as server:
        assert post_chat(server, "llm").status_code == 200
        came = read_until_broken(server, {"model": "llm", "stream": True, "messages": [{"role": "user", "content": "a b c d"}]})
        assert b"You" in came
        assert b"ended with exit code 139, which means SIGSEGV" in came
        assert b"CUDA error: out of memory" in came
        assert b"[DONE]" not in came


def test_one_that_dies_again_and_again_is_left_alone_for_a_while(tmp_path: Path) -> None:
    with run_server_with(tmp_path, {"llm": build_command("--die-after", 0)}) as server:
        answers = [post_chat(server, "llm") for _ in range(3)]
        assert answers[0].status_code == 502
        last = answers[-1]
        assert last.status_code == 503
        assert int(last.headers["retry-after"]) > 0
        assert "ended with exit code 139" in last.json()["error"]["message"]
        wait_for(lambda: server.log.count("llm ready after") == 3)
        assert post_chat(server, "llm").status_code == 503
    assert server.log.count("llm ready after") == 3


def test_a_start_that_fails_is_told_at_once_and_not_tried_again_at_once(tmp_path: Path) -> None:
    with run_server_with(tmp_path, {"llm": build_command("--say", "no such file: model.gguf", "--exit-code", 1)}) as server:
        began = time.monotonic()
        first = post_chat(server, "llm")
        assert time.monotonic() - began < 50
        assert first.status_code == 500
        assert "ended with exit code 1 before it served. Its last output: no such file: model.gguf" in first.text
        assert post_chat(server, "llm").status_code == 503


def test_two_models_with_one_port_do_not_answer_for_each_other(tmp_path: Path) -> None:
    one, other = build_command("--name", "one"), build_command()
    other = {"cmd": one["cmd"].replace("--name one", "--name other"), "proxy": one["proxy"]}
    with run_server_with(tmp_path, {"one": one, "other": other}) as server:
        assert post_chat(server, "one").status_code == 200
        refused = post_chat(server, "other")
        assert refused.status_code == 500
        assert "already listens on its port" in refused.text
        assert str(list_processes(server)["one"]["pid"]) in refused.text


@contextmanager
def run_killable_gateway(folder: Path, config: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is killed, and its address."""
    with start_eardrum(
        *("serve", "--port", "0", "--no-wyoming", "--config", str(config)),
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        said = next(line for line in process.stdout if "listens on" in line)
        try:
            yield process, said.split("listens on ")[1].split()[0]
        finally:
            process.kill()


def test_a_killed_gateway_leaves_nothing_that_the_next_does_not_end(tmp_path: Path) -> None:
    config, temp = tmp_path / "config.yaml", tmp_path / "temp"
    temp.mkdir()
    config.write_text(json.dumps({"models": {"llm": build_command("--grandchild", tmp_path / "pid", "--detached")}}))
    with run_killable_gateway(temp, config) as (first, address):
        assert requests.post(f"{address}/api/ps/llm", timeout=30).status_code == 200
        pid = requests.get(f"{address}/api/ps", timeout=10).json()["models"][0]["pid"]
        with run_killable_gateway(temp, config) as (second, _):  # one more beside it
            time.sleep(1)
            assert is_alive(pid)
            second.send_signal(signal.SIGTERM)
            second.wait(60)
        assert is_alive(pid)
        first.kill()
        first.wait()
    left = [pid, int((tmp_path / "pid").read_text())]
    assert all(map(is_alive, left))
    with run_killable_gateway(temp, config) as (third, address):
        assert requests.post(f"{address}/api/ps/llm", timeout=30).status_code == 200, "the port is free again"
        assert not any(map(is_alive, left))
        third.send_signal(signal.SIGTERM)
        third.wait(60)
    assert not list(temp.iterdir())


def test_a_gateway_that_is_told_twice_to_end_leaves_no_command(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": {"llm": build_command("--delay", 60)}}))
    with ThreadPoolExecutor(1) as pool, run_killable_gateway(tmp_path, config) as (process, address):
        body = {"model": "llm", "messages": [{"role": "user", "content": "hi"}]}
        asking = pool.submit(requests.post, f"{address}/v1/chat/completions", json=body, timeout=30)
        wait_for(lambda: requests.get(f"{address}/api/ps", timeout=10).json()["models"])
        pid = requests.get(f"{address}/api/ps", timeout=10).json()["models"][0]["pid"]
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        process.wait(60)
        wait_for(lambda: not is_alive(pid))
        assert asking.exception() or asking.result().status_code >= 500


@pytest.mark.parametrize(("whose", "models", "own"), [("proxy", 0, 1), ("upstream", 1, 0), ("both", 1, 1), ("none", 0, 0)])
def test_whose_output_is_shown_is_a_setting(whose: str, models: int, own: int, tmp_path: Path) -> None:
    with run_server_with(tmp_path, {"llm": build_command("--say", "I am an LLM")}, log_to_stdout=whose) as server:
        assert post_chat(server, "llm").status_code == 200
        assert "llm ready after" in requests.get(f"{server.address}/logs", timeout=10).text
        with requests.get(f"{server.address}/logs/stream/llm", stream=True, timeout=10) as kept:
            assert next(kept.iter_lines()) == b"I am an LLM"
    assert server.log.count("llm: I am an LLM") == models
    assert server.log.count("llm ready after") == own


def test_the_server_itself_is_a_command_as_others(tmp_path: Path) -> None:
    port = find_free_port()
    serve = [sys.executable, "-c", "from eardrum.cli.main import main; main()", "serve", "--port", str(port)]
    inner = {"cmd": shlex.join(serve), "proxy": f"http://localhost:{port}", "ttl": 60}
    with run_server_with(tmp_path, {"inner": inner}) as server:
        files = {"file": ("a.flac", encode_speech("flac"))}
        answer = requests.post(f"{server.address}/upstream/inner/v1/audio/transcriptions", files=files, timeout=60)
        assert answer.json()["text"] == SPEECH_TEXT
        pid = list_processes(server)["inner"]["pid"]
        runners = psutil.Process(pid).children()
        assert runners
        assert unload_model(server, "inner") == 200
        assert not any(is_alive(process.pid) for process in runners)
