"""Requests that clients of other speech servers make, one after another, against one server.

Bazarr's are in `test_server_asr.py`, TingWu's in `test_server_tingwu.py`; programs that are published as packages run
themselves in `test_server_client_programs.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import requests
from openai import OpenAI

from tests.conftest import ServerUnderTest, run_server
from tests.fake_hub import FakeHub, FakeRepository, fake_hub
from tests.recordings import SPEECH_TEXT, encode_speech
from tests.weights import read_moonshine_files

pytestmark = pytest.mark.slow

NAME = "someone/moon-en"


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with fake_hub(someone__moon_en=FakeRepository(read_moonshine_files())) as hub:
        hub.repositories[NAME] = hub.repositories.pop("someone/moon_en")
        yield hub


@pytest.fixture(scope="module")
def server(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    store = tmp_path_factory.mktemp("store")
    options = ("--set", "default_model=moonshine-tiny-en")
    with run_server(*options, HF_HUB_CACHE=str(store), **hub.environment) as started:
        yield started


def test_requests_of_speaches_command(server: ServerUnderTest) -> None:
    """`registry ls`, `model download`, `model ls` and `model rm` of speaches-cli 0.1.0, which wants Python 3.12 or newer."""
    with httpx2.Client(base_url=server.address, timeout=httpx2.Timeout(None)) as client:
        registry = client.get("/v1/registry", params={"task": "automatic-speech-recognition"})
        assert registry.headers["content-type"] == "application/json"  # it prints anything else as text
        assert "Systran/faster-whisper-small" in [model["id"] for model in registry.json()["data"]]
        assert NAME not in [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert client.post(f"/v1/models/{NAME}").text == f"Model '{NAME}' downloaded"
        listed = client.get("/v1/models", params={"task": "automatic-speech-recognition"}).json()["data"]
        (model,) = [model for model in listed if model["id"] == NAME]
        assert (model["object"], model["task"], model["language"]) == ("model", "automatic-speech-recognition", ["en"])
        voices = client.get("/v1/models", params={"task": "text-to-speech"}).json()["data"]
        assert {voice["task"] for voice in voices} == {"text-to-speech"}
        assert client.get("/v1/models", params={"task": "no-task"}).json()["data"] == []
        assert client.get("/api/ps").json()["models"] == []
        assert client.post(f"/api/ps/{NAME}").status_code in (200, 201)
        assert [running["id"] for running in client.get("/api/ps").json()["models"]] == [NAME]
        assert client.delete(f"/api/ps/{NAME}").status_code == 200
        assert client.delete(f"/v1/models/{NAME}").json()["detail"] == f"Model '{NAME}' deleted"


@pytest.mark.parametrize("response_format", ["text", "json", "verbose_json", "srt", "vtt"])
def test_requests_of_speaches_page(server: ServerUnderTest, tmp_path: Path, response_format: str) -> None:
    """The tab for recordings: a list for the menu, then one request, streamed or not."""
    models = OpenAI(base_url=f"{server.address}/v1", api_key="cant-be-empty", max_retries=0).models.list().data
    chosen = models[0].id
    recording = tmp_path / "recording.wav"
    recording.write_bytes(encode_speech("wav"))
    form = {"model": chosen, "response_format": response_format, "temperature": 0.0}
    with httpx2.Client(base_url=server.address, timeout=httpx2.Timeout(timeout=180)) as client:
        with recording.open("rb") as file:
            answer = client.post("/v1/audio/transcriptions", files={"file": file}, data=form)
        answer.raise_for_status()
        assert "Norland" in answer.text or "Dashwood" in answer.text
        with recording.open("rb") as file:
            fields = form | {"stream": True}
            with client.stream("POST", "/v1/audio/transcriptions", files={"file": file}, data=fields) as streamed:
                assert streamed.headers["content-type"].startswith("text/event-stream")
                lines = [line.removeprefix("data: ") for line in streamed.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line) for line in lines]
    assert "".join(event["delta"] for event in events if event["type"] == "transcript.text.delta").strip() == SPEECH_TEXT
    assert events[-1]["text"] == SPEECH_TEXT


def test_requests_of_clients_of_subgen(server: ServerUnderTest) -> None:
    """subgen's own parameters beside those of whisper-asr-webservice, as its `/asr` and `/detect-language` declare them."""
    sound = {"audio_file": ("film.mkv", encode_speech("mkv"))}
    assert requests.get(f"{server.address}/status", timeout=5).json()["version"]
    found = requests.post(
        f"{server.address}/detect-language",
        params={"encode": "true", "video_file": "/films/film.mkv", "detect_lang_length": 30, "detect_lang_offset": 0},
        files=sound,
        timeout=60,
    ).json()
    assert found.keys() >= {"detected_language", "language_code"}
    subtitle = requests.post(
        f"{server.address}/asr",
        params={
            "task": "transcribe",
            "language": "en",
            "video_file": "/films/film.mkv",
            "initial_prompt": "",
            "encode": "true",
            "output": "srt",
            "word_timestamps": "false",
        },
        files=sound,
        timeout=60,
    )
    assert subtitle.status_code == 200
    assert subtitle.text.startswith("1\n00:00:00,")
    assert subtitle.headers["content-type"] == "text/plain; charset=utf-8"
