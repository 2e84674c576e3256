"""A runner on its own, without a gateway: the small web service on TCP."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import pytest
import requests

from eardrum.gateway.upstreams.runner import RunnerUpstream
from eardrum.runner_access import RUNNER_IDLE_S
from tests.ports import find_free_port
from tests.recordings import SPEECH_TEXT, encode_speech

pytestmark = pytest.mark.slow


def find_embedded() -> Path:
    spec = find_spec("moonshine_voice")
    assert spec
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "assets" / "tiny-en"


@contextmanager
def run_runner(*arguments: str, log: IO[str] | int = subprocess.DEVNULL) -> Iterator[tuple[subprocess.Popen[str], dict]]:
    """A runner and the first line it says."""
    command = [sys.executable, "-m", "eardrum.runner", "--engine", "moonshine", "--source", str(find_embedded()), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def parse_lines(answer: requests.Response) -> list[dict]:
    return [json.loads(line) for line in answer.text.splitlines()]


def test_audio_in_lines_out(tmp_path: Path) -> None:
    port = find_free_port()
    with run_runner("--port", str(port), "--batch", "2") as (_, said):
        assert said["ready"]["batch"] == 2
        address = f"http://127.0.0.1:{port}"
        events = parse_lines(requests.post(f"{address}/transcribe", data=encode_speech("mp3"), timeout=60))
        assert [next(iter(event)) for event in events] == ["opened", "segment", "segment", "segment", "summary"]
        assert " ".join(event["segment"]["text"] for event in events[1:4]) == SPEECH_TEXT
        assert (events[-1]["summary"]["windows"], events[-1]["summary"]["language"]) == (3, "en")
        (failed,) = parse_lines(requests.post(f"{address}/transcribe", data=b"not audio", timeout=60))
        assert failed["error"]["error"] == "AudioError"
        bad = requests.post(f"{address}/transcribe", headers={"x-eardrum-request": '{"task": "sing"}'}, timeout=60)
        assert "not a request in JSON" in parse_lines(bad)[0]["error"]["message"]
        assert requests.delete(f"{address}/transcribe/nobody", timeout=60).status_code == 204
        health = requests.get(f"{address}/health", timeout=60).json()
        assert (health["windows"], health["capabilities"]["languages"]) == (3, ["en"])


async def test_a_connection_outlasts_its_pause_at_the_gateway(tmp_path: Path) -> None:
    """Otherwise a request may be sent on a connection that the runner is closing."""
    path = str(tmp_path / "socket")
    connection = HTTPConnection("runner", timeout=20)
    connection.auto_open = 0
    with run_runner("--socket", path, "--batch", "1"), socket.socket(socket.AF_UNIX) as connection.sock:
        connection.sock.connect(path)
        for pause in (0, 6):  # longer than uvicorn's own timeout
            await asyncio.sleep(pause)
            connection.request("GET", "/health")
            assert json.loads(connection.getresponse().read())["status"] == "ok"
    for upstream in (RunnerUpstream(path), RunnerUpstream(address="http://127.0.0.1:9")):
        assert upstream._session.connector
        assert upstream._session.connector._keepalive_timeout < RUNNER_IDLE_S
        await upstream.close()


def test_a_live_session_that_rests_ends_with_it_and_is_no_error(tmp_path: Path) -> None:
    """A client may say nothing for hours; whoever unloads its model waits for nobody and reads of no failure."""
    port = find_free_port()
    with (tmp_path / "log").open("w+") as log, run_runner("--port", str(port), "--batch", "1", log=log) as (process, said):
        assert "ready" in said
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(b"POST /live HTTP/1.1\r\nhost: runner\r\ntransfer-encoding: chunked\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            assert client.recv(4096).endswith(b"0\r\n\r\n"), "the answer has its end"
        log.seek(0)
        assert [line for line in log if "ERROR" in line or "Traceback" in line] == []


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    directory = tmp_path / "private"
    directory.mkdir()
    own = ["--own-folder", str(directory)]
    with run_runner("--socket", str(directory / "runner.sock"), *own, "--parent", "--batch", "1") as (process, said):
        assert "ready" in said
        assert process.stdin
        process.stdin.close()
        process.wait(60)
    assert not directory.exists()


def test_it_takes_nothing_with_it_that_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket may lie in the system's folder for temporary files, beside those of everybody else."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "somebody's").mkdir()
    (tmp_path / "somebody's" / "file").touch()
    with run_runner("--socket", str(tmp_path / "runner.sock"), "--parent", "--batch", "1") as (process, said):
        assert "ready" in said
        assert process.stdin
        process.stdin.close()
        process.wait(60)
    assert [path.name for path in tmp_path.iterdir()] == ["somebody's"]
    assert (tmp_path / "somebody's" / "file").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--options", '{"thread": 2}'], "moonshine has no option thread"),
        (["--options", '{"compute_type": "int8"}'], "compute_type 'int8' is not available"),
        (["--options", '{"device": "cuda"}'], "device is cuda"),
        (["--source", "/nowhere"], "encoder_model.ort is missing"),
        (["--batch", "1000"], "batch is 1000, but this engine decodes at most 4"),
        (["--engine", "parrot"], "There is no engine 'parrot'. Engines: faster_whisper, ggml, hibari, kokoro, moonshine"),
    ],
)
def test_why_it_cannot_start(arguments: list[str], says: str) -> None:
    with run_runner(*arguments) as (process, said):
        assert says in said["failed"]["message"]
        assert process.wait(60) == 1
