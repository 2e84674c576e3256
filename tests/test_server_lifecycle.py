"""Processes that die, at every moment, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.ports import find_free_port, find_free_ports, is_in_use
from tests.processes import read_command
from tests.recordings import SPEECH_TEXT, encode_announcements, encode_speech
from tests.test_server_uploads import END, FILE, build_field, open_wire

pytestmark = pytest.mark.slow


def kill_runner(server: ServerUnderTest) -> None:
    (runner,) = server.list_runners()
    runner.kill()


def test_a_killed_runner_is_replaced_without_a_word() -> None:
    with run_server() as server:
        server.post_audio(encode_speech("wav"))
        answers: list[requests.Response] = []
        before = server.count_windows()
        asking = Thread(target=lambda: answers.append(server.post_audio(encode_announcements(120))))
        asking.start()
        wait_for(lambda: server.count_windows() > before)
        kill_runner(server)
        asking.join(90)
        assert answers[0].status_code == 200
        assert len(answers[0].json()["text"]) > 500
        server.wait_for_log("was ended by SIGKILL")
        assert server.post_audio(encode_speech("wav")).json()["text"] == SPEECH_TEXT


def test_a_later_server_knows_what_an_earlier_one_has_timed(tmp_path: Path) -> None:
    batches = []
    for _ in range(2):
        with run_server(XDG_CACHE_HOME=str(tmp_path)) as server:
            server.post_audio(encode_speech("wav"))
            wait_for(lambda: any(tmp_path.rglob("timings.json")), 400)  # it is measured in idle time
            (runner,) = server.list_runners()
            command = read_command(runner)
            batches.append(int(command[command.index("--batch") + 1]))
    assert batches[0] == 0
    assert batches[1] > 0


def test_a_stream_that_has_begun_fails_visibly() -> None:
    with run_server() as server:
        with open_wire(server) as client:
            client.send_bytes(
                build_field("model", "whisper-1") + build_field("stream", "true") + FILE + encode_announcements(600) + END
            )
            client.end_body()
            client.receive_until(b"transcript.text.delta")
            kill_runner(server)
            client.receive_until(b"event: error")
            received = client.receive_until(b'"code"')
            assert b"was ended by SIGKILL" in received
            assert b"transcript.text.done" not in received
        assert server.post_audio(encode_speech("wav")).json()["text"] == SPEECH_TEXT


def test_a_request_that_kills_two_runners_is_given_up() -> None:
    with run_server() as server:
        server.post_audio(encode_speech("wav"))
        answers: list[requests.Response] = []
        asking = Thread(target=lambda: answers.append(server.post_audio(encode_announcements(300))))
        asking.start()
        for deaths in (1, 2):
            wait_for(lambda: server.list_runners() and is_ready(server) and server.count_windows() > 3)
            kill_runner(server)
            wait_for(lambda deaths=deaths: server.log.count("ran out). Its") >= deaths)
        asking.join(60)
        assert answers[0].status_code == 500
        assert answers[0].json()["error"]["code"] == "model_crashed"
        assert answers[0].headers["x-should-retry"] == "false"


def is_ready(server: ServerUnderTest) -> bool:
    (model,) = requests.get(f"{server.address}/health", timeout=10).json()["models"][:1]
    return model["state"] == "ready"


def test_shutdown_in_the_middle_of_a_request() -> None:
    with run_server() as server, open_wire(server) as client:
        client.send_bytes(build_field("model", "whisper-1") + FILE + encode_speech("mp3")[:4000])
        wait_for(server.list_runners)
        runners = server.list_runners()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        assert not psutil.wait_procs(runners, timeout=60)[1]


def test_requests_that_outlast_the_shutdown_are_told() -> None:
    with run_server("--set", "shutdown_timeout=1") as server:
        long = encode_announcements(600)
        answers: list[requests.Response] = []
        asking = Thread(target=lambda: answers.append(server.post_audio(long, model="whisper-1")))
        with open_wire(server) as client:
            client.send_bytes(build_field("model", "whisper-1") + build_field("stream", "true") + FILE + long + END)
            client.end_body()
            client.receive_until(b"transcript.text.delta")
            asking.start()
            wait_for(lambda: len(server.list_open_files()) == 2)
            server.process.send_signal(signal.SIGTERM)
            client.receive_until(b"event: error")
            assert b"shutting down" in client.receive_until(b'"code"')
        asking.join(60)
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "shutting_down")
        assert "retry-after" in answers[0].headers
        server.process.wait(60)
        assert "Traceback" not in server.log


def test_a_process_that_hangs_does_not_delay_the_end() -> None:
    with run_server("--set", "shutdown_timeout=1") as server:
        assert server.post_audio(encode_speech("wav")).status_code == 200
        answers: list[requests.Response] = []
        asking = Thread(target=lambda: answers.append(server.post_audio(encode_announcements(600), model="whisper-1")))
        asking.start()
        wait_for(lambda: len(server.list_open_files()) == 1)
        (runner,) = server.list_runners()
        runner.suspend()
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        assert time.monotonic() - began < 30, "it is suspended for ever"
        asking.join(60)
        assert (answers[0].status_code, answers[0].json()["error"]["code"]) == (503, "shutting_down")
        assert not runner.is_running()
        assert "Traceback" not in server.log


STUBBORN = """
start_port: {start_port}
shutdown_timeout: 1
unload_timeout: 60
models:
  stubborn:
    cmd: {python} {llm} --port ${{PORT}} --ignore-sigterm --word-delay 0.1
  silent:
    cmd: {python} {llm} --port ${{PORT}} --ignore-sigterm --delay 99
  elsewhere:
    proxy: {address}
  starting:
    cmd: {python} {llm} --port ${{PORT}} --ignore-sigterm --unhealthy-seconds 99
groups:
  all:
    swap: false
    members: [stubborn, silent, elsewhere, starting]
"""
"""Commands that have time, whatever they are told."""

LATEST_S = 30
"""Far less than the commands take: requests have a second, and the commands two after SIGTERM."""


def test_commands_that_do_not_end_are_no_reason_to_outlast_the_shutdown(tmp_path: Path) -> None:
    llm, port = Path(__file__).parent / "programs" / "fake_llm.py", find_free_port()
    file = tmp_path / "config.yaml"
    ports = find_free_ports(3)
    file.write_text(STUBBORN.format(python=sys.executable, llm=llm, address=f"http://127.0.0.1:{port}", start_port=ports))
    asked = {"messages": [{"role": "user", "content": "word " * 1000}], "stream": True}
    begun: set[str] = set()
    ended: dict[str, tuple[float, int, str]] = {}

    another = subprocess.Popen([sys.executable, llm, "--port", str(port), "--word-delay", "0.1"])
    with end_process(another), run_server("--config", str(file)) as server:
        wait_for(lambda: is_in_use(port))

        def ask(model: str, path: str) -> None:
            answer = requests.post(f"{server.address}{path}", json={"model": model, **asked}, timeout=60, stream=True)
            body = b""
            with suppress(requests.exceptions.ChunkedEncodingError):  # nobody takes it for whole
                for piece in answer.iter_content(None):
                    body += piece
                    begun.add(f"{model} {path}")
            ended[f"{model} {path}"] = time.monotonic(), answer.status_code, body.decode()[-200:]

        streams = {
            "stubborn /v1/chat/completions": "data: {",
            "stubborn /api/chat": "{",
            "stubborn /upstream/stubborn/v1/chat/completions": "data: {",
            "elsewhere /v1/chat/completions": "data: {",
        }
        untold = ["silent /v1/chat/completions", "starting /v1/chat/completions"]
        asking = [Thread(target=ask, args=one.split()) for one in (*streams, *untold)]
        for thread in asking:
            thread.start()
        wait_for(lambda: len(wait_for_state(server, "ready")) == 3 and len(wait_for_state(server, "starting")) == 1)
        wait_for(lambda: begun == set(streams))
        wait_for(lambda: count_requests(server) == len(asking))
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        took = time.monotonic() - began
        for thread in asking:
            thread.join(60)
        assert "Traceback" not in server.log
    for name, start in streams.items():
        at, status, said = ended[name]
        assert (status, at - began < LATEST_S) == (200, True), name
        last = said.strip().splitlines()[-1]
        assert last.startswith(start), name
        assert "shutting down" in last, name
    for name in untold:
        at, status, said = ended[name]
        assert (status, at - began < LATEST_S) == (503, True), name
        assert "shutting_down" in said
    assert took < LATEST_S


def count_requests(server: ServerUnderTest) -> int:
    models = requests.get(f"{server.address}/health", timeout=60).json()["models"]
    return sum(model["requests"] for model in models)


def wait_for_state(server: ServerUnderTest, state: str) -> list[dict[str, Any]]:
    models = requests.get(f"{server.address}/health", timeout=10).json()["models"]
    return [model for model in models if model["state"] == state]


@contextmanager
def end_process(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits"])
def test_an_upload_that_has_not_named_its_model_is_told_too(path: str) -> None:
    with run_server("--set", "shutdown_timeout=1") as server, open_wire(server, path) as client:
        client.send_bytes(FILE + b"x" * (2 << 20))
        wait_for(lambda: len(server.list_open_files()) == 1)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        client.receive_until(b" 503 ")
        client.receive_until(b"shutting_down")
        assert 0.9 < time.monotonic() - began < LATEST_S
        client.socket.close()
        server.process.wait(60)
        assert time.monotonic() - began < LATEST_S
        assert "Traceback" not in server.log


def test_no_runner_outlives_a_killed_gateway() -> None:
    with tempfile.TemporaryDirectory() as temp:
        command = [
            sys.executable,
            "-c",
            "from eardrum.cli.main import main; main()",
            "serve",
            "--port",
            "0",
            "--no-wyoming",
            "--sample",
        ]
        environment = os.environ | {"TMPDIR": temp, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as gateway:
            assert gateway.stdout
            for line in gateway.stdout:
                if "himself." in line:
                    break
            runners = psutil.Process(gateway.pid).children()
            assert runners
            gateway.kill()
        assert not psutil.wait_procs(runners, timeout=60)[1]
        wait_for(lambda: not list(Path(temp).iterdir()))


def test_a_model_that_cannot_load_says_why_and_can_be_repaired(tmp_path: Path) -> None:
    spec = find_spec("moonshine_voice")
    assert spec
    assert spec.submodule_search_locations
    good = Path(spec.submodule_search_locations[0]) / "assets" / "tiny-en"
    broken = tmp_path / "mine-en"
    broken.mkdir()
    for file in good.iterdir():
        (broken / file.name).symlink_to(file)
    decoder = broken / "decoder_model_merged.ort"
    decoder.unlink()
    decoder.write_bytes(b"\0" * 1000)
    with run_server("--set", f"models.mine.source={broken}") as server:
        audio = encode_speech("wav")
        failed = server.post_audio(audio, model="mine")
        assert failed.status_code == 500
        assert str(broken) in failed.json()["error"]["message"]
        cooling = server.post_audio(audio, model="mine")
        assert cooling.status_code == 503
        assert int(cooling.headers["retry-after"]) <= 5
        assert server.post_audio(audio, model="moonshine-tiny-en").json()["text"] == SPEECH_TEXT
        decoder.unlink()
        decoder.symlink_to(good / decoder.name)
        wait_for(lambda: server.post_audio(audio, model="mine").status_code == 200)
