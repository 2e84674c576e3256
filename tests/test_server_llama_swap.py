"""A llama-swap config as people have it: two language models that swap, and speech models that stay."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import ServerUnderTest, run_server
from tests.models import build
from tests.models.tiny_whisper import get_clip
from tests.ports import find_free_ports
from tests.recordings import encode, encode_speech

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent / "programs"

CONFIG = """
healthCheckTimeout: 120
logLevel: info
startPort: {port}
macros:
  llm: {python} {programs}/fake_llm.py --port ${{PORT}}
  whisper: |
    {python} {programs}/fake_whisper_server.py
    --port ${{PORT}} --inference-path /v1/audio/transcriptions
models:
  qwen:
    cmd: ${{llm}} --name ${{MODEL_ID}}
    aliases: [gpt-4o-mini]
    ttl: 300
  llama:
    cmd: |
      # slow to load, as large ones are
      ${{llm}} --name ${{MODEL_ID}} \\
        --load-seconds 1
  whisper:
    cmd: ${{whisper}}
    checkEndpoint: /health
  whisper-large:
    cmd: ${{whisper}}
    checkEndpoint: /health
  eardrum:
    cmd: {python} -c "from eardrum.cli.main import main; main()" serve --port ${{PORT}} --set models.small.source={model}
    env: [EARDRUM_DEFAULT_MODEL=small]
    useModelName: small
groups:
  speech:
    persistent: true
    swap: false
    exclusive: false
    members: [whisper, whisper-large, eardrum]
hooks:
  on_startup:
    preload: [whisper]
"""


@pytest.fixture(scope="module")
def swap_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    folder = tmp_path_factory.mktemp("swap")
    model = build("faster_whisper", folder / "small")
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(python=sys.executable, programs=PROGRAMS, model=model, port=find_free_ports(5)))
    with run_server("--config", str(file)) as server:
        yield server


def post_chat(server: ServerUnderTest, model: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    response = requests.post(f"{server.address}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def list_loaded(server: ServerUnderTest) -> set[str]:
    return {model["model"] for model in requests.get(f"{server.address}/running", timeout=10).json()["running"]}


def test_language_models_swap_and_speech_stays(swap_server: ServerUnderTest) -> None:
    said = get_clip("u15")
    heard = swap_server.post_audio(encode(said.samples, "wav"), model="eardrum", response_format="text")
    assert heard.text.strip() == said.text, heard.text
    assert swap_server.post_audio(encode_speech("mp3"), model="whisper").status_code == 200
    for model, other in (("qwen", "llama"), ("llama", "qwen"), ("gpt-4o-mini", "llama")):
        assert post_chat(swap_server, model)["choices"][0]["message"]["content"] == "You said: hello"
        assert list_loaded(swap_server) >= {"whisper", "eardrum"}
        assert other not in list_loaded(swap_server)


def test_speech_answers_while_language_models_swap(swap_server: ServerUnderTest) -> None:
    audio, over = encode(get_clip("u15").samples, "wav"), threading.Event()
    waits: list[float] = []

    def speak() -> None:
        while not over.is_set():
            began = time.monotonic()
            assert swap_server.post_audio(audio, model="eardrum").status_code == 200
            waits.append(time.monotonic() - began)

    speaking = threading.Thread(target=speak)
    swap_server.post_audio(audio, model="eardrum")
    began = time.monotonic()
    speaking.start()
    for model in ("llama", "qwen", "llama", "qwen"):
        post_chat(swap_server, model)
    swaps = time.monotonic() - began
    over.set()
    speaking.join()
    assert len(waits) > 3
    assert max(waits) < swaps / 2, "a swap held speech up"


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac"])
def test_a_whisper_server_answers_in_every_format(swap_server: ServerUnderTest, kind: str) -> None:
    audio = encode_speech(kind)
    answers = {
        form: swap_server.post_audio(audio, model="whisper", response_format=form)
        for form in ("json", "text", "srt", "vtt", "verbose_json")
    }
    assert {form: answer.status_code for form, answer in answers.items()} == dict.fromkeys(answers, 200)
    text = answers["json"].json()["text"]
    assert "Dashwood" in text
    assert answers["text"].text.strip() == text
    assert "-->" in answers["srt"].text
    assert answers["vtt"].text.startswith("WEBVTT")
    assert answers["verbose_json"].json()["segments"]
