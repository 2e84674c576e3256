"""Ollama's API as raw HTTP: what Open WebUI and others send, and what goes wrong."""

from __future__ import annotations

import base64
import json
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from aiohttp import web

from tests import gguf_files
from tests.commands import run_eardrum
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.fake_chat import WORDS, fake_chat
from tests.ports import find_free_ports
from tests.recordings import SPEECH_TEXT, encode_speech
from tests.upstreams import Answer, FakeUpstream, UpstreamCall, fake_upstream

pytestmark = pytest.mark.slow

M = "moonshine-tiny-en"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def llm() -> Iterator[FakeUpstream]:
    with fake_upstream(fake_chat) as started:
        yield started


@pytest.fixture(scope="module")
def server(llm: FakeUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    config = tmp_path_factory.mktemp("ollama") / "config.yaml"
    models = {
        "chatty": {"proxy": llm.url},
        "narrow": {"proxy": llm.url, "max_requests": 1},
        "gone": {"proxy": "http://127.0.0.1:9"},
    }
    config.write_text(json.dumps({"models": models, "limits": {"json_bytes": 4 << 20}}))
    with run_server("--config", str(config), "--set", f"default_model={M}") as started:
        yield started


def create_refusing(status: int) -> Answer:
    """An upstream that refuses everything for a while."""

    async def refuse(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        error = {"error": {"code": status, "message": "come back later", "type": "unavailable_error"}}
        return web.json_response(error, status=status, headers={"retry-after": "7"})

    return refuse


def send_request(server: ServerUnderTest, path: str, body: Any = None, method: str = "POST", **more: Any) -> requests.Response:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    return requests.request(method, f"{server.address}{path}", data=data, timeout=60, **more)


def parse_lines(answer: requests.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.content.endswith(b"\n")
    return [json.loads(line) for line in answer.content.splitlines()]


def test_the_root_greets_ollamas_clients_and_shows_people_the_page(server: ServerUnderTest) -> None:
    assert send_request(server, "/", method="GET").text == "Ollama is running"
    assert send_request(server, "/", method="HEAD").status_code == 200
    browser = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    assert "<!doctype html>" in send_request(server, "/", method="GET", headers=browser).text


@pytest.mark.parametrize("path", ["/api/version", "/api/tags"])
def test_what_is_asked_with_get_is_there_with_head(server: ServerUnderTest, path: str) -> None:
    head = send_request(server, path, method="HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert send_request(server, path, method="GET").json()


def test_the_version_is_numbers(server: ServerUnderTest) -> None:
    """Open WebUI compares it part by part."""
    version = send_request(server, "/api/version", method="GET").json()["version"]
    assert [int(part) for part in version.split(".")] >= [0, 6, 4]


def test_open_webui_chats(server: ServerUnderTest, llm: FakeUpstream) -> None:
    """It takes the list, adds the tag, chats in lines and unloads with an empty prompt."""
    listed = send_request(server, "/api/tags", method="GET").json()["models"]
    assert {"chatty:latest", f"{M}:latest"} < {model["model"] for model in listed}
    assert all(model["name"] == model["model"] and len(model["digest"]) == 64 for model in listed)
    payload = {"model": "chatty:latest", "messages": HI, "options": {}, "stream": True, "keep_alive": "5m", "metadata": {"a": 1}}
    got = parse_lines(send_request(server, "/api/chat", payload))
    assert "".join(line["message"]["content"] for line in got) == "".join(WORDS)
    assert [line["done"] for line in got] == [False] * len(WORDS) + [True]
    assert all(line["model"] == "chatty:latest" and datetime.fromisoformat(line["created_at"]) for line in got)
    assert got[-1]["eval_count"] == 7
    assert "metadata" not in llm.calls[-1].json
    (status,) = [m for m in send_request(server, "/api/ps", method="GET").json()["models"] if m["model"] == "chatty:latest"]
    assert 270 < (datetime.fromisoformat(status["expires_at"]) - datetime.now(UTC)).total_seconds() < 301


def test_lines_are_the_default_of_every_route_that_has_them(server: ServerUnderTest) -> None:
    assert len(parse_lines(send_request(server, "/api/chat", {"model": "chatty", "messages": HI}))) == len(WORDS) + 1
    got = parse_lines(send_request(server, "/api/generate", {"model": "chatty", "prompt": "x"}))
    assert [line["response"] for line in got] == [*WORDS, ""]
    whole = send_request(server, "/api/generate", {"model": "chatty", "prompt": "x", "stream": False})
    assert whole.headers["content-type"] == "application/json; charset=utf-8"
    assert whole.json()["response"] == "".join(WORDS)


def test_a_line_is_sent_when_its_event_has_come(server: ServerUnderTest, llm: FakeUpstream) -> None:
    body = {"model": "chatty", "messages": [{"role": "user", "content": "linger"}]}
    with requests.post(f"{server.address}/api/chat", json=body, stream=True, timeout=30) as answer:
        began = time.monotonic()
        came = answer.iter_lines()
        assert [json.loads(next(came))["message"]["content"] for _ in range(2)] == WORDS[:2]
        assert time.monotonic() - began < 40
    wait_for(lambda: not llm.in_flight)


def test_a_speech_model_is_loaded_listed_and_unloaded(server: ServerUnderTest) -> None:
    loaded = send_request(server, "/api/generate", {"model": M, "keep_alive": -1}).json()
    assert (loaded["done"], loaded["done_reason"], loaded["response"]) == (True, "load", "")
    (status,) = [m for m in send_request(server, "/api/ps", method="GET").json()["models"] if m["id"] == M]
    assert status["model"] == status["name"] == f"{M}:latest"
    assert (status["state"], status["requests"], status["engine"], status["ttl_remaining"]) == ("ready", 0, "moonshine", None)
    assert status["size"] > 20_000_000
    assert datetime.fromisoformat(status["expires_at"]).year > 2300
    assert M in run_eardrum("ps", "--server", server.address, check=True).stdout
    unloaded = send_request(server, "/api/generate", {"model": f"{M}:latest", "prompt": "", "keep_alive": 0}).json()
    assert unloaded["done_reason"] == "unload"
    assert M not in [model["id"] for model in send_request(server, "/api/ps", method="GET").json()["models"]]
    again = send_request(server, "/api/chat", {"model": M, "messages": [], "keep_alive": "0s"}).json()
    assert (again["message"], again["done_reason"]) == ({"role": "assistant", "content": ""}, "unload")


def test_a_transcript_streams_by_the_sentence(server: ServerUnderTest) -> None:
    images = [base64.b64encode(encode_speech("mp3")).decode()] * 2
    body = {"model": "whisper-1", "messages": [{"role": "user", "images": images}, {"role": "user", "content": "now"}]}
    got = parse_lines(send_request(server, "/api/chat", body))
    assert "".join(line["message"]["content"] for line in got) == f"{SPEECH_TEXT}\n{SPEECH_TEXT}"
    assert len(got) > 4
    assert got[-1]["done_reason"] == "stop"
    assert got[-1]["total_duration"] > 0


def encode_wav(seconds: int) -> str:
    return base64.b64encode(b"RIFF" + bytes(4) + b"WAVE" + bytes(seconds)).decode()


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/api/chat", b"", 400, "missing request body"),
        ("/api/chat", b"{", 400, "not valid JSON"),
        ("/api/chat", b"[" * 100_000, 400, "nested more than"),
        ("/api/chat", b'{"model": NaN}', 400, "NaN is not a number"),
        ("/api/chat", b"\xff\xfe", 400, "not valid JSON"),
        ("/api/chat", [1], 400, "must be a JSON object"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/chat", {"model": 3}, 400, "model must be a string, not 3"),
        ("/api/show", {"name": "nobody"}, 404, "model 'nobody' not found"),
        ("/api/show", {"model": "nobody:latest"}, 404, "model 'nobody:latest' not found"),
        ("/api/chat", {"model": M, "messages": [{"role": "user", "images": ["not base64!"]}]}, 400, "illegal base64"),
        ("/api/chat", {"model": M, "messages": [{"role": "user", "images": [encode_wav(100)]}]}, 400, "decoded"),
        ("/api/chat", {"model": M, "messages": [{"role": "user", "images": ["aGVsbG8gd29ybGQ="]}]}, 400, "decoded"),
        ("/api/chat", {"model": M, "messages": "x"}, 400, "does not support chat"),
        ("/api/embed", {"model": "chatty", "input": 3}, 400, "invalid input type"),
        ("/api/generate", {"model": "chatty", "prompt": "x", "template": "y"}, 400, "template"),
        ("/api/copy", {"source": "chatty"}, 400, "source and destination are required"),
        ("/api/chat", {"model": "gone", "messages": HI}, 502, "127.0.0.1:9"),
        ("/api/chat", {"model": "chatty", "pad": "x" * (5 << 20)}, 413, "limits.json_bytes"),
        ("/api/create", {"model": "x"}, 501, "not implemented"),
        ("/api/blobs/sha256:0", b"x", 501, "not implemented"),
        ("/api/tags", {}, 405, "/api/tags does not take POST"),
        ("/api/me", {}, 404, "nothing at /api/me"),
    ],
)
def test_errors_are_a_status_and_a_string(server: ServerUnderTest, path: str, body: Any, status: int, message: str) -> None:
    answer = send_request(server, path, body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]


@pytest.mark.parametrize("status", [401, 403, 408, 413, 422, 429, 501, 503, 504, 529])
@pytest.mark.parametrize(
    "body",
    [{"messages": HI}, {"messages": HI, "stream": False}, {"prompt": "x"}, {"input": "x"}],
    ids=["chat", "whole", "generate", "embed"],
)
def test_a_status_that_says_what_to_do_is_kept(
    server: ServerUnderTest, llm: FakeUpstream, status: int, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/api/chat" if "messages" in body else "/api/embed" if "input" in body else "/api/generate"
    monkeypatch.setattr(llm, "answer", create_refusing(status))
    answer = send_request(server, path, {"model": "chatty", **body})
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "7")
    assert "come back later" in answer.json()["error"]


@pytest.mark.parametrize("status", [404, 405, 500, 502])
def test_a_status_that_would_be_wrong_of_this_server_is_not(
    server: ServerUnderTest, llm: FakeUpstream, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "answer", create_refusing(status))
    answer = send_request(server, "/api/chat", {"model": "chatty", "messages": HI})
    assert (answer.status_code, answer.headers["retry-after"]) == (502, "7")
    assert "come back later" in answer.json()["error"]


def test_a_prompt_goes_on_from_the_last_ones_context(server: ServerUnderTest, llm: FakeUpstream) -> None:
    first = send_request(
        server, "/api/generate", {"model": "chatty", "prompt": "Why?", "system": "Be short.", "stream": False}
    ).json()
    assert all(isinstance(number, int) for number in first["context"])
    (*_, last) = parse_lines(
        send_request(server, "/api/generate", {"model": "chatty", "prompt": "And?", "context": first["context"]})
    )
    sent = [("system", "Be short."), ("user", "Why?"), ("assistant", "".join(WORDS)), ("user", "And?")]
    assert [(message["role"], message["content"]) for message in llm.calls[-1].json["messages"]] == sent
    assert len(last["context"]) > len(first["context"])
    other = send_request(
        server, "/api/generate", {"model": "chatty", "prompt": "x", "context": [1, 2], "options": {"num_ctx": 4}}
    )
    assert (other.status_code, other.headers["x-eardrum-ignored"]) == (200, "num_ctx, context")
    assert (
        "context" not in parse_lines(send_request(server, "/api/generate", {"model": "chatty", "prompt": "x", "raw": True}))[-1]
    )


@pytest.mark.parametrize("name", [M, f"{M}:latest", "whisper-1", "chatty:latest"])
def test_to_pull_what_is_here_is_a_success(server: ServerUnderTest, name: str) -> None:
    assert send_request(server, "/api/pull", {"model": name, "stream": False}).json() == {"status": "success"}
    steps = [line["status"] for line in parse_lines(send_request(server, "/api/pull", {"name": name}))]
    assert (steps[0], steps[-1]) == ("pulling manifest", "success")


def test_other_routes_keep_their_shape(server: ServerUnderTest) -> None:
    for method, path in (("POST", "/api/ps/nobody"), ("POST", "/api/pull/no-such-model"), ("GET", "/v1/nothing")):
        assert send_request(server, path, method=method).json()["error"]["code"] in ("model_not_found", "not_found")


def test_an_error_after_the_first_line_is_the_last_line(server: ServerUnderTest) -> None:
    for said in ("die", "break"):
        answer = send_request(server, "/api/chat", {"model": "chatty", "messages": [{"role": "user", "content": said}]})
        got = parse_lines(answer)
        assert answer.status_code == 200
        assert [line["message"]["content"] for line in got[:-1]] == WORDS[:2]
        assert list(got[-1]) == ["error"]


def test_a_full_model_is_busy(server: ServerUnderTest, llm: FakeUpstream) -> None:
    body = json.dumps({"model": "narrow", "messages": [{"role": "user", "content": "wait"}]})
    with socket.create_connection(server.host) as waiting:
        waiting.sendall(f"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: llm.in_flight == 1)
        answer = send_request(server, "/api/chat", {"model": "narrow", "messages": HI})
        assert answer.status_code == 503
        assert answer.json() == {"error": "server busy, please try again.  maximum pending requests exceeded"}
        assert int(answer.headers["retry-after"]) >= 1
    wait_for(lambda: not llm.in_flight)


def test_tokens_are_counted_for_whoever_runs_the_server(server: ServerUnderTest) -> None:
    assert send_request(server, "/api/chat", {"model": "chatty", "messages": HI}).status_code == 200

    def counted() -> list[tuple[int, int]]:
        rows = send_request(server, "/api/metrics/activity?limit=5", method="GET").json()["data"]
        chats = [row["tokens"] for row in rows if (row["req_path"], row["model"]) == ("/api/chat", "chatty")]
        return [(tokens["input_tokens"], tokens["output_tokens"]) for tokens in chats]

    wait_for(lambda: (11, 7) in counted())


def test_what_has_no_effect_is_logged_once(server: ServerUnderTest) -> None:
    for _ in range(3):
        send_request(server, "/api/chat", {"model": "chatty", "messages": HI, "options": {"num_ctx": 4096}})
    server.wait_for_log("'num_ctx' has no effect on model chatty")
    assert server.log.count("'num_ctx' has no effect on model chatty") == 1


def test_the_configs_filters_count_here_too(tmp_path: Path, llm: FakeUpstream) -> None:
    filters = {"strip_params": "top_k", "set_params": {"seed": 4}, "set_params_by_id": {"wild": {"temperature": 2}}}
    models = {"chatty": {"proxy": llm.url, "use_model_name": "vendor/chatty-1", "filters": filters, "aliases": ["wild"]}}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": models}))
    body = {"model": "wild:latest", "messages": HI, "options": {"top_k": 3}, "stream": False}
    with run_server("--config", str(config), "--set", f"default_model={M}") as server:
        assert send_request(server, "/api/chat", body, headers={"authorization": "Bearer own"}).status_code == 200
        sent = {"model": "vendor/chatty-1", "messages": HI, "stream": False, "seed": 4, "temperature": 2}
        assert llm.calls[-1].json == sent
        assert llm.calls[-1].headers["authorization"] == "Bearer own"
        assert send_request(server, "/api/embed", body | {"input": "x"}).status_code == 200
        assert llm.calls[-1].json["model"] == "vendor/chatty-1"


def test_keys_are_asked_for_in_ollamas_shape_and_stay_here(tmp_path: Path, llm: FakeUpstream) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": {"chatty": {"proxy": llm.url}}, "api_keys": ["secret"]}))
    with run_server("--config", str(config), "--set", f"default_model={M}") as server:
        refused = send_request(server, "/api/chat", {"model": "chatty", "messages": HI})
        assert (refused.status_code, type(refused.json()["error"])) == (401, str)
        assert send_request(server, "/", method="GET").text == "Ollama is running"
        key = {"authorization": "Bearer secret"}
        assert send_request(server, "/api/chat", {"model": "chatty", "messages": HI}, headers=key).status_code == 200
        assert "authorization" not in llm.calls[-1].headers


def test_commands_that_fail_say_how_in_ollamas_shape(tmp_path: Path) -> None:
    program = f"{sys.executable} {Path(__file__).parent / 'programs' / 'fake_llm.py'} --port ${{PORT}}"
    models = {
        "unable": {"cmd": f"{program} --say no-such-device --exit-code 3"},
        "mortal": {"cmd": f"{program} --die-after 1", "aliases": ["doomed"]},
    }
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": models}))
    with run_server("--config", str(config), "--set", f"default_model={M}") as server:
        unable = send_request(server, "/api/chat", {"model": "unable", "messages": HI})
        assert unable.status_code >= 500
        assert "exit code 3" in unable.json()["error"]
        assert "no-such-device" in unable.json()["error"]
        got = parse_lines(send_request(server, "/api/chat", {"model": "mortal", "messages": HI}))
        assert "".join(line["message"]["content"] for line in got) == "You said: Hi"
        got = parse_lines(send_request(server, "/api/chat", {"model": "doomed:latest", "messages": HI}))
        assert [line["message"]["content"] for line in got[:-1]] == ["You"]
        assert "mortal" in got[-1]["error"]
        assert "CUDA error: out of memory" in got[-1]["error"]
        answer = send_request(server, "/api/generate", {"model": "mortal", "prompt": "again", "stream": False})
        assert answer.json()["response"] == "You said: again", "it was not started again"


def test_speech_models_behind_commands_answer_audio_too(tmp_path: Path) -> None:
    """A whisper-server is known by its command; of a vLLM the config has to say what it takes."""
    programs = Path(__file__).parent / "programs"
    whisper = f"{sys.executable} {programs}/fake_whisper_server.py --port ${{PORT}} --inference-path /v1/audio/transcriptions"
    vllm = f"{sys.executable} {programs}/fake_vllm.py --port ${{PORT}} --name vllm"
    models = {"whisper": {"cmd": whisper}, "vllm": {"cmd": vllm, "capabilities": {"in": ["audio"], "out": ["text"]}}}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": models, "start_port": find_free_ports(len(models))}))
    images = [base64.b64encode(encode_speech("wav")).decode()]
    root = Path(__file__).parent.parent
    with run_server("--config", str(config), "--set", f"default_model={M}", PYTHONPATH=f"{root}:{root / 'src'}") as server:
        for name in models:
            assert send_request(server, "/api/show", {"model": name}).json()["capabilities"] == ["audio"]
            body = {"model": name, "messages": [{"role": "user", "content": "", "images": images}]}
            got = parse_lines(send_request(server, "/api/chat", body))
            assert "".join(line["message"]["content"] for line in got) == SPEECH_TEXT
            assert send_request(server, "/api/chat", body | {"stream": False}).json()["message"]["content"] == SPEECH_TEXT


LLAMA_SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

PROPS = {{"default_generation_settings": {{"n_ctx": 8192}}, "chat_template": "{{{{ tools }}}}", "modalities": {{"vision": True}}}}

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content = json.dumps(PROPS if self.path == "/props" else {{"status": "ok"}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def test_a_plain_llama_server_is_shown_by_its_weights_and_once_it_runs_by_itself(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(LLAMA_SERVER.format(python=sys.executable))
    program.chmod(0o755)
    gguf_files.write_gguf(tmp_path / "x.gguf")
    models = {
        "plain": {"cmd": f"{program} --port ${{PORT}} -m {tmp_path}/x.gguf"},
        "fetched": {"cmd": f"{program} --port ${{PORT}} -hf org/gemma-3-4b-GGUF"},
    }
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": models, "start_port": find_free_ports(len(models))}))
    with run_server("--config", str(config), "--set", f"default_model={M}") as server:
        shown = send_request(server, "/api/show", {"model": "plain:latest"}).json()
        assert shown["capabilities"] == ["completion", "tools"]
        assert shown["model_info"]["qwen3.context_length"] == 40960
        assert send_request(server, "/api/show", {"model": "fetched"}).json()["capabilities"] == ["completion"]
        assert send_request(server, "/running", method="GET").json()["running"] == [], "it was started to be shown"
        assert send_request(server, "/api/generate", {"model": "fetched", "stream": False}).json()["done_reason"] == "load"
        shown = send_request(server, "/api/show", {"model": "fetched"}).json()
        assert shown["capabilities"] == ["completion", "tools", "vision"]
        assert shown["model_info"]["gemma3.context_length"] == 8192
        tags = {tag["name"]: tag for tag in send_request(server, "/api/tags", method="GET").json()["models"]}
        assert tags["fetched:latest"]["details"]["context_length"] == 8192
        assert tags["plain:latest"]["details"]["quantization_level"] == "Q4_K_M"


def test_a_server_elsewhere_is_let_go_and_found_again(server: ServerUnderTest) -> None:
    for _ in range(2):
        assert send_request(server, "/api/chat", {"model": "chatty", "messages": HI}).status_code == 200
        assert send_request(server, "/api/chat", {"model": "chatty", "keep_alive": 0}).json()["done_reason"] == "unload"
        assert "chatty" not in [model["id"] for model in send_request(server, "/api/ps", method="GET").json()["models"]]


def test_a_request_without_keep_alive_gets_what_the_config_says(tmp_path: Path, llm: FakeUpstream) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": {"chatty": {"proxy": llm.url, "ttl": 600}}}))
    with run_server("--config", str(config), "--set", f"default_model={M}") as server:

        def left() -> float:
            (status,) = send_request(server, "/api/ps", method="GET").json()["models"]
            return (datetime.fromisoformat(status["expires_at"]) - datetime.now(UTC)).total_seconds()

        send_request(server, "/api/generate", {"model": "chatty", "prompt": "x", "keep_alive": 30})
        assert 15 < left() < 31
        send_request(server, "/api/generate", {"model": "chatty", "prompt": "x"})
        assert 570 < left() < 601
