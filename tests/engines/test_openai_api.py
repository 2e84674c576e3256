"""Other servers as engines: options, giving up, and the whole way through a runner."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import numpy as np
import pytest
import requests
import yaml
from aiohttp import web
from pydantic import ValidationError

from eardrum.engines.base import EngineOptions, EngineResult, Window
from eardrum.engines.openai_api import OpenAIApi
from eardrum.errors import ConfigError, UnsupportedFeatureError, UpstreamError
from eardrum.transcription import SpeechTask, TranscriptionRequest
from tests import upstreams
from tests.conftest import run_server, wait_for
from tests.engines.openai_requests import create_window, open_engine, transcribe_with
from tests.ports import find_free_port
from tests.recordings import ROOT, SPEECH_TEXT, encode_speech, load_speech
from tests.upstreams import KEY, Answer, UpstreamCall, fake_upstream

PAGE = (ROOT / "docs" / "reference" / "upstreams.md").read_text(encoding="utf-8")


def test_options_say_what_the_upstream_can() -> None:
    url = "http://127.0.0.1:1"
    with open_engine(url) as loaded:
        assert loaded.capabilities == OpenAIApi.capabilities
    with open_engine(url, languages=["German", "en"], translate=False, words=False, window_seconds=12, pack=True) as loaded:
        can = loaded.capabilities
        assert (can.languages, can.translate, can.words, can.max_window_s, can.fixed_window) == (
            ("de", "en"),
            False,
            False,
            12,
            True,
        )
        for wish in ({"words": True}, {"task": SpeechTask.TRANSLATE}):
            assert loaded.refusal(TranscriptionRequest(**wish))
    with open_engine(url, via="chat_audio_url") as loaded:
        assert not loaded.capabilities.words
        assert not loaded.capabilities.translate
    with open_engine(url, response_format="json") as loaded:
        assert not loaded.capabilities.words


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"key_env": "NO_SUCH_KEY", "key": KEY}, "both set"),
        ({"key": KEY + "\nX-Evil: 1"}, "option key has characters"),
        ({"headers": {"X-Name": "Zoë"}}, "headers.X-Name"),
        ({"headers": {"authorization": f"Basic {KEY}"}, "key": KEY}, r"headers\.Authorization and the option key"),
        ({"via": "chat_audio_url", "words": True}, "option words cannot be combined with via: chat_audio_url"),
        ({"instruction": "Write."}, "option instruction cannot be combined with via: transcriptions"),
        ({"words": True, "response_format": "json"}, "words cannot be combined with response_format: json"),
        ({"via": "chat_input_audio", "audio_format": "flac"}, "audio_format cannot"),
    ],
)
def test_options_that_cannot_work(options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught, open_engine("http://127.0.0.1:1", **options):
        pass
    assert KEY not in caught.value.message


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://me:pw@host/v1", "http://[::1/v1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValidationError, match="it must"):
        OpenAIApi.Options(url=url)


def test_the_key_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), transcribe_with(upstreams.fake_openai, key=KEY):
        assert KEY not in repr(OpenAIApi.Options(url="http://x", key=KEY))
    assert KEY not in caplog.text


def test_the_page_lists_every_option() -> None:
    for name in set(OpenAIApi.Options.model_fields) - set(EngineOptions.model_fields):
        described = OpenAIApi.Options.model_fields[name].description
        assert re.search(rf"^\| `{name}` \|.*\| {re.escape(described)} \|$", PAGE, re.MULTILINE), name


def test_the_examples_of_the_page_are_valid() -> None:
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    models = [model for block in blocks for model in block.get("models", block).values()]
    examples = [OpenAIApi.Options(**model["options"]) for model in models if model.get("engine") == "openai_api"]
    assert len(examples) == 6


async def fake_busy(_: UpstreamCall, __: web.Request) -> web.Response:
    return upstreams.build_busy(retry_after="15")


@pytest.mark.parametrize("answer", [upstreams.fake_hanging, fake_busy])
def test_a_window_that_nobody_wants_any_more_is_given_up(answer: Answer) -> None:
    wanted = create_window()
    with fake_upstream(answer) as fake, open_engine(fake.url, retries=5) as loaded:
        heard: list[EngineResult] = []
        thread = Thread(target=lambda: heard.extend(loaded.transcribe([wanted])))
        thread.start()
        wait_for(lambda: fake.calls)
        began = time.monotonic()
        wanted.cancelled = True
        thread.join(60)
        assert time.monotonic() - began < 13, "it waits for 60 or 15 s"
        assert heard[0].segments == []
        wait_for(lambda: not fake.in_flight)
        assert fake.given_up == (answer is upstreams.fake_hanging)
        assert len(fake.calls) == 1


def test_a_window_that_nobody_wants_is_not_sent() -> None:
    gone, stays = create_window(), create_window()
    gone.cancelled = True
    with transcribe_with(upstreams.fake_whisper_server, gone, stays) as (fake, hearings):
        assert [len(hearing.segments) for hearing in hearings] == [0, 1]
        assert len(fake.calls) == 1


def test_windows_of_several_threads_are_in_flight_together() -> None:
    async def fake_slow(call: UpstreamCall, request: web.Request) -> web.Response:
        wait_until = time.monotonic() + 10
        while fake.most_in_flight < 3 and time.monotonic() < wait_until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return await upstreams.fake_whisper_server(call, request)

    with fake_upstream(fake_slow) as fake, open_engine(fake.url, concurrency=3) as loaded:
        assert (loaded.parallel, loaded.capabilities.max_batch) == (3, 1)
        threads = [Thread(target=loaded.transcribe, args=([create_window()],)) for _ in range(loaded.parallel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert fake.most_in_flight == 3


@contextmanager
def run_runner(**options: object) -> Iterator[str]:
    """A runner of this engine on TCP, and its address."""
    port = find_free_port()
    command = [sys.executable, "-m", "eardrum.runner", "--engine", "openai_api", "--source", "."]
    with subprocess.Popen(
        [*command, "--options", json.dumps(options), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            said = json.loads(process.stdout.readline())
            assert said["ready"]["batch"] == 1
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.mark.slow
def test_a_runner_asks_nothing_before_a_client_does() -> None:
    with fake_upstream(upstreams.fake_openai) as fake, run_runner(url=f"{fake.url}/v1", key=KEY, concurrency=8) as address:
        assert fake.calls == []
        answer = requests.post(f"{address}/transcribe", data=encode_speech("ogg"), timeout=60)
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert lines[-1]["summary"]["language"] == "en"
        assert lines[-1]["summary"]["windows"] == len(fake.calls) > 1
        assert [line["segment"]["text"] for line in lines[1:-1]] == ["Hello there.", "General."] * len(fake.calls)


@pytest.mark.slow
def test_a_runner_passes_the_upstreams_failure_on() -> None:
    refusals = [lambda: upstreams.build_busy(retry_after="70")] * 20
    with (
        fake_upstream(upstreams.fake_after(refusals, upstreams.fake_openai)) as fake,
        run_runner(url=f"{fake.url}/v1", key=KEY) as address,
    ):
        answer = requests.post(f"{address}/transcribe", data=encode_speech("ogg"), timeout=60)
        error = json.loads(answer.text.splitlines()[-1])["error"]
        assert (error["error"], error["retry_after"]) == ("UpstreamError", 70.0)


@pytest.mark.slow
def test_another_eardrum_as_upstream() -> None:
    """A real server with a real model behind the engine."""
    with run_server() as server:
        with open_engine(server.address, model="moonshine-tiny-en", words=False, translate=False) as loaded:
            whole = Window(load_speech(), 0.0, 1.0, (0.0, 18.0), TranscriptionRequest(language="en"))
            heard, empty = loaded.transcribe(
                [whole, Window(np.zeros(16_000, np.float32), 0.0, 0.1, (0.0, 1.0), TranscriptionRequest())]
            )
            assert " ".join(segment.text for segment in heard.segments) == SPEECH_TEXT
            assert len(heard.segments) > 1
            assert all(segment.avg_logprob < 0 for segment in heard.segments)
            assert heard.language == "en"
            assert empty.segments == []
        with open_engine(server.address, model="moonshine-tiny-en") as loaded:
            with pytest.raises(UnsupportedFeatureError, match="gives times per segment but not per word"):
                loaded.transcribe([create_window(words=True)])
            with pytest.raises(UpstreamError, match=r"400.*does not support German"):
                loaded.transcribe([create_window(language="de")])
        with (
            open_engine(server.address, model="no-such") as loaded,
            pytest.raises(UpstreamError, match="404: There is no model 'no-such'"),
        ):
            loaded.transcribe([create_window()])
        with run_runner(url=f"{server.address}/v1") as address:
            answer = requests.post(f"{address}/transcribe", data=encode_speech("mp3"), timeout=60)
            lines = [json.loads(line) for line in answer.text.splitlines()]
            assert " ".join(line["segment"]["text"] for line in lines[1:-1]) == SPEECH_TEXT
