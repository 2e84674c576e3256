"""Chats with speech models: audio in, the transcript as the assistant's message."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import openai
import pytest
import requests

from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import SPEECH_TEXT, encode_pcm, encode_speech, load_speech

pytestmark = pytest.mark.slow

MODEL = "moonshine-tiny-en"


def encode_base64() -> str:
    """The recording in base64."""
    return base64.b64encode(encode_speech("mp3")).decode()


def build_input_audio(data: str, form: str = "mp3") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": form}}


def build_audio_url(url: str) -> dict[str, Any]:
    return {"type": "audio_url", "audio_url": {"url": url}}


def post_chat(server: ServerUnderTest, *parts: dict[str, Any], **fields: object) -> requests.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": list(parts)}], **fields}
    return requests.post(f"{server.address}/v1/chat/completions", json=body, timeout=60)


def get_reply(answer: requests.Response) -> str:
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(lambda: build_input_audio(encode_base64()), id="input_audio"),
        pytest.param(lambda: build_input_audio(f"data:audio/mp3;base64,{encode_base64()}"), id="input_audio as data URL"),
        pytest.param(lambda: build_input_audio(base64.b64encode(encode_pcm(load_speech())).decode(), "pcm16"), id="headerless"),
        pytest.param(lambda: build_audio_url(f"data:audio/mpeg;base64,{encode_base64()}"), id="audio_url"),
        pytest.param(lambda: {"type": "audio_url", "audio_url": f"data:;base64,{encode_base64()}"}, id="audio_url as a string"),
    ],
)
def test_the_transcript_is_the_answer(server: ServerUnderTest, part) -> None:
    answer = post_chat(server, part(), {"type": "text", "text": "Transcribe this."}, temperature=0.7)
    assert get_reply(answer) == SPEECH_TEXT
    assert answer.json()["model"] == MODEL
    assert answer.json()["object"] == "chat.completion"


def test_openais_client_reads_it_whole_and_in_a_stream(server: ServerUnderTest) -> None:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="x") as client:
        messages: Any = [
            {"role": "system", "content": "You are a transcriber."},
            {"role": "user", "content": [build_input_audio(encode_base64())]},
        ]
        whole = client.chat.completions.create(model=MODEL, messages=messages)
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (SPEECH_TEXT, "stop")
        chunks = list(client.chat.completions.create(model=MODEL, messages=messages, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SPEECH_TEXT
        assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 3, "a piece for each segment"
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_last_message_with_audio_counts_and_each_recording_has_a_line(server: ServerUnderTest) -> None:
    silent = build_input_audio(base64.b64encode(bytes(32_000)).decode(), "pcm16")
    messages = [
        {"role": "user", "content": [silent]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [build_input_audio(encode_base64()), build_input_audio(encode_base64())]},
        {"role": "user", "content": "And?"},
    ]
    body = {"model": MODEL, "messages": messages}
    answer = requests.post(f"{server.address}/v1/chat/completions", json=body, timeout=60)
    assert get_reply(answer) == f"{SPEECH_TEXT}\n{SPEECH_TEXT}"
    streamed = requests.post(f"{server.address}/v1/chat/completions", json=body | {"stream": True}, timeout=60)
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(pieces) == f"{SPEECH_TEXT}\n{SPEECH_TEXT}"
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ([{"type": "text", "text": "Who are you?"}], 400, "turns speech into text: send audio as an `input_audio`"),
        ([build_input_audio("***")], 400, "input_audio.data is not valid base64"),
        ([{"type": "input_audio"}], 400, "An input_audio part must hold"),
        ([build_audio_url("data:audio/wav")], 400, "needs a comma before its content"),
        ([{"type": "audio_url", "audio_url": {}}], 400, "An audio_url part must hold"),
        ([build_input_audio(base64.b64encode(b"no audio" * 99).decode())], 400, "decode"),
        ([build_audio_url("https://files.example.com/a.wav")], 400, "does not fetch from files.example.com: list it"),
        ([build_audio_url("file:///etc/passwd")], 400, "must be a data: URL, or an address with http"),
    ],
)
def test_what_is_no_recording_is_refused(server: ServerUnderTest, parts: list, status: int, message: str) -> None:
    for stream in (False, True):
        answer = post_chat(server, *parts, stream=stream)
        assert answer.status_code == status
        assert message in answer.json()["error"]["message"]


@pytest.fixture
def files() -> Iterator[str]:
    """A server with one recording; its address."""
    data = encode_speech("mp3")

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.mp3" else 404)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_recording_from_a_host_that_the_config_allows(files: str) -> None:
    with run_server("--set", 'limits.fetch_hosts=["127.0.0.1"]') as server:
        assert get_reply(post_chat(server, build_audio_url(f"{files}/a.mp3"))) == SPEECH_TEXT
        refused = post_chat(server, build_audio_url(f"{files}/b.mp3"))
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "audio_url")
        assert refused.json()["error"]["message"].endswith("/b.mp3 cannot be fetched: it answered 404.")
        wait_for(lambda: not [file for file in server.list_open_files() if "(deleted)" in file])  # what was fetched is gone
