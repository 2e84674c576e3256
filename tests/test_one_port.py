"""examples/one-port: text, vision and speech behind one port, and the Telegram bot in front of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import openai
import pytest
import requests

from tests.bot.bots import run_bot_command
from tests.conftest import ServerUnderTest, run_server
from tests.fake_telegram import TOKEN
from tests.ports import find_free_ports
from tests.programs.one_port_commands import install_commands
from tests.recordings import ROOT, SPEECH_TEXT, encode_speech

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "one-port" / "config.yaml"


@pytest.fixture(scope="module")
def one_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    path = install_commands(tmp_path_factory.mktemp("bin"))
    with run_server("--config", str(EXAMPLE), "--set", f"start_port={find_free_ports(3)}", PATH=path) as server:
        yield server


@pytest.fixture
def client(one_port: ServerUnderTest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{one_port.address}/v1", api_key="x") as client:
        yield client


def draw_picture(red: int, green: int, blue: int) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as output:
        stream = output.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), (red, green, blue), np.uint8), format="rgb24")
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def build_url(content: bytes, media_type: str) -> dict[str, str]:
    return {"url": f"data:{media_type};base64,{base64.b64encode(content).decode()}"}


def ask(client: openai.OpenAI, model: str, *parts: Any) -> tuple[str, str]:
    """The answer, whole and joined from a stream."""
    messages: Any = [{"role": "user", "content": list(parts)}]
    whole = client.chat.completions.create(model=model, messages=messages)
    stream = client.chat.completions.create(model=model, messages=messages, stream=True)
    return whole.choices[0].message.content or "", "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


@pytest.mark.parametrize("model", ["qwen", "chat", "gpt-4o-mini"])
def test_text(client: openai.OpenAI, model: str) -> None:
    assert ask(client, model, {"type": "text", "text": "hello"}) == ("You said: hello",) * 2


@pytest.mark.parametrize("model", ["qwen-vl", "vision", "ocr"])
def test_vision(client: openai.OpenAI, model: str) -> None:
    picture = {"type": "image_url", "image_url": build_url(draw_picture(200, 20, 20), "image/png")}
    answer = "You said: What is it? I see a red picture of 64 by 48."
    assert ask(client, model, {"type": "text", "text": "What is it?"}, picture) == (answer, answer)


def test_speech_in_a_chat(client: openai.OpenAI) -> None:
    recording = {"type": "audio_url", "audio_url": build_url(encode_speech("mp3"), "audio/mpeg")}
    assert ask(client, "asr", recording) == (SPEECH_TEXT, SPEECH_TEXT)


@pytest.mark.parametrize("model", ["transcription", "whisper-1"])
def test_transcriptions(client: openai.OpenAI, model: str) -> None:
    assert client.audio.transcriptions.create(model=model, file=encode_speech("mp3")).text == SPEECH_TEXT


def test_speech(client: openai.OpenAI) -> None:
    spoken = "The old man walked slowly to the river and waited for the boat."
    speech = client.audio.speech.create(model="tts-1", voice="alloy", input=spoken).read()
    assert client.audio.transcriptions.create(model="whisper-1", file=("speech.mp3", speech)).text == spoken


def test_language_models_take_turns_and_speech_models_stay(one_port: ServerUnderTest, client: openai.OpenAI) -> None:
    client.audio.transcriptions.create(model="qwen-asr", file=encode_speech("flac"))
    for model in ("qwen", "qwen-vl"):
        ask(client, model, {"type": "text", "text": "hello"})
        listed = requests.get(f"{one_port.address}/api/ps", timeout=10).json()["models"]
        loaded = {each["model"].removesuffix(":latest") for each in listed if each["state"] == "ready"}
        assert loaded & {"qwen", "qwen-vl", "qwen-asr"} == {model, "qwen-asr"}


async def test_the_bot_writes_down_answers_speaks_and_looks(one_port: ServerUnderTest, tmp_path: Path) -> None:
    models = ("--model", "asr", "--chat-model", "chat", "--vision-model", "vision", "--speak", "voice")
    async with run_bot_command(one_port, tmp_path, *models) as (telegram, output):
        await telegram.push(telegram.record_voice(encode_speech("ogg")))
        await telegram.wait_for_text(f"You said: {SPEECH_TEXT}", seconds=60)
        assert telegram.list_texts()[0] == SPEECH_TEXT
        await telegram.wait_for(lambda: telegram.list_calls("sendVoice"), 60)
        (voice,) = telegram.list_calls("sendVoice")
        assert int(voice.fields["duration"]) > 10
        heard = await asyncio.to_thread(one_port.post_audio, voice.files["voice"], response_format="text")
        assert heard.text.startswith("You said")
        assert heard.text.rstrip().endswith("amiable himself.")
        photo = [telegram.store(draw_picture(20, 20, 200)) | {"width": 64, "height": 48}]
        await telegram.push(telegram.write("And this?", photo=photo))
        await telegram.wait_for_text("And this?", "I see a blue picture of 64 by 48.", seconds=60)
        await telegram.push(telegram.write("/model"))
        await telegram.wait_for_text("speech: asr", "qwen-vl")
    assert "listens to Telegram" in output[0]
    assert TOKEN.partition(":")[2] not in output[0]
    assert os.listdir(tmp_path) == [], "the bot has written something"  # noqa: PTH208


async def test_the_embedded_model_streams_and_subtitles_follow(one_port: ServerUnderTest, tmp_path: Path) -> None:
    async with run_bot_command(one_port, tmp_path) as (telegram, _):
        await telegram.push(telegram.record_voice(encode_speech("ogg")))
        await telegram.wait_for_text(SPEECH_TEXT, seconds=60)
        assert not json.dumps(telegram.list_texts()).count("You said")
        await telegram.push(telegram.record_voice(b"no audio", seconds=0))
        await telegram.wait_for_text("That did not work", seconds=30)
