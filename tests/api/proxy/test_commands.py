"""What clients see of commands that die, come back, or take their time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.api.proxy.conftest import run_gateway
from tests.ports import find_free_port

CHAT = "/v1/chat/completions"

MORTAL = """
import http.server, os, sys, time
port, fuse, start = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
time.sleep(start)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if fuse == "always" or (fuse and not os.path.exists(fuse)):
            open(fuse, "w").close() if fuse != "always" else None
            print("ggml: out of memory", flush=True)
            os._exit(3)
        body = b'data: {"said": 1}\\n\\n'
        self.send_response(200); self.send_header("content-type", "text/event-stream"); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
"""A model's server that takes seconds to start and dies of requests: of each, or only of its first one."""


@pytest.fixture
def command(tmp_path: Path) -> Any:
    program = tmp_path / "mortal.py"
    program.write_text(MORTAL)

    def entry(port: int, fuse: str = "", start: float = 0.0, **more: Any) -> dict[str, Any]:
        line = f"{sys.executable} {program} {port} '{fuse}' {start}"
        return {"models": {"m": {"cmd": line, "proxy": f"http://127.0.0.1:{port}", "check_endpoint": "/", **more}}}

    return entry


@pytest.mark.slow
def test_a_command_that_dies_of_a_request_is_named_with_its_exit_code_and_last_words(command: Any) -> None:
    with run_gateway(**command(find_free_port(), "always")) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "m"}, timeout=30)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (502, "upstream_died")
    assert "exit code 3" in error["message"]
    assert "out of memory" in error["message"]


@pytest.mark.slow
def test_a_command_that_died_once_is_started_again_and_asked_again(command: Any, tmp_path: Path) -> None:
    with run_gateway(**command(find_free_port(), str(tmp_path / "fuse"))) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "m"}, timeout=30)
    assert (response.status_code, response.text) == (200, 'data: {"said": 1}\n\n')


@pytest.mark.slow
@pytest.mark.parametrize("told", [True, False])
def test_a_streaming_chat_is_told_that_its_model_is_being_loaded(command: Any, told: bool) -> None:
    with run_gateway(**command(find_free_port(), start=1.2, send_loading_state=told)) as gateway:
        body = {"model": "m", "stream": True}
        first = requests.post(f"{gateway.url}{CHAT}", json=body, timeout=30)
        again = requests.post(f"{gateway.url}{CHAT}", json=body, timeout=30)
    events = [json.loads(line.removeprefix("data: ")) for line in first.text.splitlines() if line]
    assert events[-1] == {"said": 1}
    assert (len(events) > 2) is told
    if told:
        text = "".join(event["choices"][0]["delta"]["reasoning_content"] for event in events[:-1])
        assert "m is being loaded" in text
        assert "m is loaded" in text
    assert again.text == 'data: {"said": 1}\n\n', "nothing is loaded any more"


@pytest.mark.slow
def test_a_load_that_fails_after_the_stream_began_is_said_in_the_stream() -> None:
    line = f'{sys.executable} -c "import time; time.sleep(1.2); raise SystemExit(7)"'
    entry = {"cmd": line, "proxy": f"http://127.0.0.1:{find_free_port()}", "send_loading_state": True}
    with run_gateway(models={"m": entry}) as gateway:
        response = requests.post(f"{gateway.url}{CHAT}", json={"model": "m", "stream": True}, stream=True, timeout=30)
        assert response.status_code == 200
        lines = response.iter_lines()
        said = next(line for line in lines if b"error" in line)
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            list(lines)
    assert said.startswith(b'data: {"error": {"message": ')
    assert b"exit code 7" in said
