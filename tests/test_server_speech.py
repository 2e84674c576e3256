"""Text to speech of a real server, with the embedded voice, read back by the embedded model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import socket
import wave
from collections.abc import Iterator
from typing import Any

import av
import jiwer
import numpy as np
import openai
import pytest
import requests
from whisper_normalizer.english import EnglishTextNormalizer
from wyoming.audio import AudioChunk, AudioStart
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.info import Describe, Info
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from tests.commands import run_eardrum
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.test_server_metrics import get_value, read_samples

pytestmark = pytest.mark.slow

MODEL, VOICE = "hibari-en", "heart"
RATE = 24_000

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "Please turn off the lights in the kitchen and close the window.",
    "She sells sea shells by the sea shore.",
    "The weather tomorrow will be cloudy with a chance of rain.",
    "I would like a cup of coffee without sugar.",
    "The train to London leaves from platform nine.",
    "He opened the door and walked slowly into the garden.",
    "We have to finish this work before the end of the week.",
    "Could you tell me the way to the nearest station?",
    "My brother bought a new house near the river.",
    "The children played in the park until it was dark.",
    "A good book is the best of friends.",
    "They decided to take the long way home.",
    "Music can change the world because it can change people.",
    "Remember to call your mother on Sunday evening.",
    "The museum opens at ten in the morning.",
    "There are seven days in a week and twelve months in a year.",
    "The price of the ticket is twenty dollars.",
    "Doctor Smith will see you in the afternoon.",
    "Nothing is more beautiful than a clear night sky.",
]
LONG_TEXT = " ".join(SENTENCES * 3)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerUnderTest]:
    with run_server("--wyoming", "--wyoming-port", "0", HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: ServerUnderTest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as made:
        yield made


def post_speech(server: ServerUnderTest, **body: Any) -> requests.Response:
    fields = {"model": "tts-1", "voice": "alloy", "input": "Hello there, how are you?"} | body
    data = json.dumps({name: value for name, value in fields.items() if value is not None})
    return requests.post(f"{server.address}/v1/audio/speech", data=data, headers={"content-type": "application/json"}, timeout=60)


def decode(data: bytes, format: str = "", rate: int = RATE) -> np.ndarray:
    if format == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768
    with av.open(io.BytesIO(data), format={"aac": "aac", "mp3": "mp3"}.get(format)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
        frames = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return np.concatenate([part.to_ndarray()[0] for part in (*frames, *resampler.resample(None))])


def read_back(server: ServerUnderTest, audio: bytes) -> str:
    response = server.post_audio(audio, model="whisper-1")
    assert response.status_code == 200, response.text
    return str(response.json()["text"])


def count_errors(said: list[str], heard: list[str]) -> float:
    normalize = EnglishTextNormalizer()
    return float(jiwer.wer([normalize(text) for text in said], [normalize(text) for text in heard]))


def test_sentences_are_understood(server: ServerUnderTest, client: openai.OpenAI) -> None:
    heard = []
    for sentence in SENTENCES:
        audio = client.audio.speech.create(model="tts-1", voice="alloy", input=sentence).content
        heard.append(read_back(server, audio))
    assert count_errors(SENTENCES, heard) <= 0.05, heard


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_formats_have_the_same_length_and_text(server: ServerUnderTest, format: str) -> None:
    text = SENTENCES[1]
    with wave.open(io.BytesIO(post_speech(server, input=text, response_format="wav").content)) as whole:
        expected = whole.getnframes() / whole.getframerate()
    response = post_speech(server, input=text, response_format=format)
    kinds = {
        "mp3": "audio/mpeg",
        "opus": "audio/ogg",
        "aac": "audio/aac",
        "flac": "audio/flac",
        "wav": "audio/wav",
        "pcm": "audio/pcm",
    }
    assert response.headers["content-type"] == kinds[format]
    assert ("content-length" in response.headers) == (format in ("wav", "flac"))
    samples = decode(response.content, format)
    assert len(samples) / RATE == pytest.approx(expected, abs=0.1)
    audio = io.BytesIO()
    with wave.open(audio, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    assert count_errors([text], [read_back(server, audio.getvalue())]) <= 0.1


def test_joined_mp3s_hold_both_texts(server: ServerUnderTest) -> None:
    parts = [post_speech(server, input=text).content for text in SENTENCES[:2]]
    lengths = [len(decode(part, "mp3")) for part in parts]
    joined = b"".join(parts)
    assert len(decode(joined, "mp3")) == pytest.approx(sum(lengths), abs=0.1 * RATE)
    assert count_errors([" ".join(SENTENCES[:2])], [read_back(server, joined)]) <= 0.1


def test_speed(server: ServerUnderTest) -> None:
    normal, fast, slow = (len(post_speech(server, response_format="pcm", speed=speed).content) for speed in (1, 2, 0.5))
    assert fast < 0.7 * normal
    assert slow > 1.5 * normal


def test_the_same_text_gives_the_same_audio(server: ServerUnderTest) -> None:
    assert post_speech(server, response_format="pcm").content == post_speech(server, response_format="pcm").content


def test_audio_comes_while_the_text_is_spoken(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="nova", input=LONG_TEXT, response_format="pcm"
    ) as response:
        sizes = [len(chunk) for chunk in response.iter_bytes()]
    assert len(sizes) > 10, "many pieces"
    assert sum(sizes) / 2 / RATE > 60


def test_events(server: ServerUnderTest, client: openai.OpenAI) -> None:
    response = client.audio.speech.create(
        model="gpt-4o-mini-tts", voice="nova", input=" ".join(SENTENCES[:3]), response_format="pcm", stream_format="sse"
    )
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    assert len(deltas) >= 3
    assert done["type"] == "speech.audio.done"
    audio = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert done["usage"]["input_tokens"] == sum(map(len, SENTENCES[:3]))
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"]
    assert audio == post_speech(server, input=" ".join(SENTENCES[:3]), response_format="pcm").content


def test_markdown_is_not_read_aloud(server: ServerUnderTest) -> None:
    marked = "# **The train** to [London](https://trains.example.com/x) 🚆\n\n```\nprint(1)\n```\nleaves from *platform* nine."
    heard = read_back(server, post_speech(server, input=marked).content)
    assert count_errors(["The train to London leaves from platform nine."], [heard]) <= 0.12, heard


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": None}, "input", "empty_text"),
        ({"input": "  \n"}, "input", "empty_text"),
        ({"input": "😀👍🏽🎉"}, "input", "empty_text"),
        ({"input": "```\ncode only\n```"}, "input", "empty_text"),
        ({"input": "a" * 20_001}, "input", "invalid_value"),
        ({"input": "<speak>Hello</speak>"}, "input", "invalid_value"),
        ({"input": "你好，世界。今天天气很好。"}, "input", "unspeakable_text"),
        ({"input": f"{SENTENCES[0]} Привет, как дела?"}, "input", "unspeakable_text"),
        ({"input": 3}, "input", "invalid_value"),
        ({"speed": 0}, "speed", "invalid_value"),
        ({"speed": 9}, "speed", "invalid_value"),
        ({"speed": float("nan")}, "speed", "invalid_value"),
        ({"speed": "fast"}, "speed", "invalid_value"),
        ({"voice": "nobody"}, "voice", "invalid_value"),
        ({"voice": ["alloy"]}, "voice", "invalid_value"),
        ({"response_format": "midi"}, "response_format", "invalid_value"),
        ({"stream_format": "ndjson"}, "stream_format", "invalid_value"),
        ({"response_format": "opus", "sample_rate": 44_100}, "sample_rate", "invalid_value"),
        ({"model": "moonshine-tiny-en"}, "model", "unsupported_feature"),
    ],
)
def test_what_cannot_be_spoken_is_an_error(server: ServerUnderTest, body: dict[str, Any], param: str, code: str) -> None:
    response = post_speech(server, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error["message"]
    assert error["type"] == "invalid_request_error"


def test_an_unknown_model(server: ServerUnderTest) -> None:
    response = post_speech(server, model="nothing-like-it")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("text", ["word " * 600, "A" * 700, "x.y.z " * 100, "(" * 500 + "one", "\ud7ff\u0007 one"])
def test_odd_texts_are_spoken(server: ServerUnderTest, text: str) -> None:
    response = post_speech(server, input=text, response_format="wav")
    assert response.status_code == 200, response.text
    assert len(response.content) > 1000


@pytest.mark.parametrize("voice", ["alloy", "shimmer", VOICE, "Heart", {"id": VOICE}, {"id": "cedar"}, "", None, "default"])
@pytest.mark.parametrize("model", ["tts-1", "tts-1-hd", "gpt-4o-mini-tts-2025-12-15", MODEL, None])
def test_names_of_models_and_voices(server: ServerUnderTest, model: str | None, voice: Any) -> None:
    response = post_speech(server, model=model, voice=voice, input="Yes.")
    assert response.status_code == 200, response.text


def test_a_voice_in_place_of_the_model(server: ServerUnderTest) -> None:
    """As LibreChat asks LocalAI."""
    assert post_speech(server, model=VOICE, voice=None, input="Yes.").status_code == 200


def test_fields_without_effect_are_named(server: ServerUnderTest) -> None:
    response = post_speech(server, instructions="Whisper!", lang_code="a", stream=True, input="Yes.")
    assert response.status_code == 200
    assert response.headers["x-eardrum-ignored"] == "instructions, lang_code"


def test_lists(server: ServerUnderTest, client: openai.OpenAI) -> None:
    voices = requests.get(f"{server.address}/v1/audio/voices", timeout=10).json()
    expected = {"id": VOICE, "voice_id": VOICE, "name": VOICE, "object": "audio.voice", "model": MODEL, "language": "en-US"}
    assert expected in voices["voices"]
    assert voices["data"] == voices["voices"]
    assert requests.get(f"{server.address}/v1/audio/voices?model={MODEL}", timeout=10).json()["voices"] == [expected]
    models = requests.get(f"{server.address}/v1/audio/models", timeout=10).json()
    assert models["models"][0]["id"] == MODEL
    described = client.models.retrieve("tts-1").model_dump()
    assert described["capabilities"]["audio_speech"]
    assert described["architecture"]["modality"] == "text->audio"


@pytest.mark.parametrize(
    "path", ["/v1/audio/transcriptions", "/v1/chat/completions", "/v1/embeddings", "/api/chat", "/api/embed"]
)
def test_a_voice_does_nothing_else(server: ServerUnderTest, path: str) -> None:
    if path.endswith("transcriptions"):
        response = server.post_audio(b"RIFF", model=MODEL)
    else:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "input": "Hi"}
        response = requests.post(f"{server.address}{path}", json=body, timeout=10)
    assert response.status_code == 400
    assert "speech" in response.text or "speaks" in response.text


def test_ollama_does_not_list_it(server: ServerUnderTest) -> None:
    tags = requests.get(f"{server.address}/api/tags", timeout=10).json()["models"]
    assert [tag["name"] for tag in tags] == ["moonshine-tiny-en:latest"]


def test_synthesis_stops_when_the_client_is_gone(server: ServerUnderTest) -> None:
    before = get_value(read_samples(server), "eardrum_speech_requests_total", model=MODEL, status="cancelled")
    body = json.dumps({"input": (LONG_TEXT + " ") * 4, "response_format": "pcm", "voice": VOICE, "model": MODEL}).encode()
    with socket.create_connection(server.host) as connection:
        head = (
            f"POST /v1/audio/speech HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_for(
        lambda: get_value(read_samples(server), "eardrum_speech_requests_total", model=MODEL, status="cancelled") == before + 1
    )
    wait_for(lambda: get_value(read_samples(server), "whisper_active_requests", model=MODEL) == 0)


def test_metrics_and_log(server: ServerUnderTest) -> None:
    before = read_samples(server)
    assert post_speech(server, input=SENTENCES[0], response_format="pcm").status_code == 200
    assert post_speech(server, input=SENTENCES[0], voice="nobody").status_code == 400
    after = read_samples(server)

    def count(name: str, **labels: str) -> float:
        old = get_value(before, name, model=MODEL, **labels)
        return get_value(after, name, model=MODEL, **labels) - (0 if np.isnan(old) else old)

    assert count("eardrum_speech_requests_total", status="success") == 1
    assert count("eardrum_speech_characters_total") == len(SENTENCES[0])
    assert 1.5 < count("eardrum_speech_audio_seconds_total") < 6
    assert count("eardrum_first_audio_seconds_count") == 1
    assert count("eardrum_synthesis_seconds_total") > 0
    wait_for(
        lambda: re.search(rf"POST /v1/audio/speech 200 .*model={MODEL} .*characters={len(SENTENCES[0])} audio_s=", server.log)
    )
    assert SENTENCES[0] not in server.log, "what is said is not for logs"


def test_keys() -> None:
    keys = [{"key": "speaker", "scopes": ["speak"], "audio_per_hour": "1s"}, {"key": "listener", "scopes": ["transcribe"]}]
    with run_server("--set", f"api_keys={json.dumps(keys)}") as server:
        url = f"{server.address}/v1/audio"
        for path in ("voices", "models"):
            assert requests.get(f"{url}/{path}", timeout=10).json()[path], "Open WebUI sends no key for lists"
        body = {"model": "tts-1", "voice": "alloy", "input": SENTENCES[0]}

        def ask(key: str) -> requests.Response:
            return requests.post(f"{url}/speech", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60)

        assert ask("listener").status_code == 403
        assert ask("nobody").status_code == 401
        assert ask("speaker").status_code == 200
        assert ask("speaker").json()["error"]["code"] == "rate_limit_exceeded", "the second of audio is used up"


def find_wyoming_port(server: ServerUnderTest) -> int:
    found = re.search(r"Home Assistant: 127\.0\.0\.1 port (\d+)", server.log)
    assert found
    return int(found[1])


async def read_audio(client: AsyncTcpClient, end: str) -> tuple[list[str], bytes, int]:
    kinds, audio, rate = [], b"", 0
    while event := await client.read_event():
        kinds.append(event.type)
        if AudioStart.is_type(event.type):
            rate = AudioStart.from_event(event).rate
        elif AudioChunk.is_type(event.type):
            audio += AudioChunk.from_event(event).audio
        if event.type in (end, "error"):
            break
    return kinds, audio, rate


async def test_wyoming_describes_all_voices_in_one_program(server: ServerUnderTest) -> None:
    async with asyncio.timeout(30), AsyncTcpClient("127.0.0.1", find_wyoming_port(server)) as client:
        await client.write_event(Describe().event())
        info = Info.from_event(await client.read_event())
    (program,) = info.tts
    assert program.supports_synthesize_streaming
    assert (VOICE, ["en-US"]) in [(voice.name, voice.languages) for voice in program.voices]
    assert len(info.asr) == 1


async def test_wyoming_speaks_a_whole_text(server: ServerUnderTest) -> None:
    async with asyncio.timeout(30), AsyncTcpClient("127.0.0.1", find_wyoming_port(server)) as client:
        for voice in (SynthesizeVoice(name=VOICE), SynthesizeVoice(language="en"), None):
            await client.write_event(Synthesize(text=SENTENCES[1], voice=voice).event())
            kinds, audio, rate = await read_audio(client, "audio-stop")
            assert (kinds[0], kinds[-1], rate) == ("audio-start", "audio-stop", RATE)
            assert audio == post_speech(server, input=SENTENCES[1], response_format="pcm").content
        for text in ("", "😀"):
            await client.write_event(Synthesize(text=text).event())
            assert (await read_audio(client, "audio-stop"))[0] == ["audio-start", "audio-stop"]


async def test_wyoming_speaks_while_the_text_is_written(server: ServerUnderTest) -> None:
    text = " ".join(SENTENCES[:2])
    async with asyncio.timeout(30), AsyncTcpClient("127.0.0.1", find_wyoming_port(server)) as client:
        await client.write_event(SynthesizeStart(voice=SynthesizeVoice(name=VOICE)).event())
        for at in range(0, len(text), 5):
            await client.write_event(SynthesizeChunk(text[at : at + 5]).event())
        first = await client.read_event()
        assert first, "audio starts before the text is complete"
        assert first.type == "audio-start"
        await client.write_event(Synthesize(text=text).event())  # for servers that take no pieces
        await client.write_event(SynthesizeStop().event())
        kinds, audio, _ = await read_audio(client, "synthesize-stopped")
        assert kinds[-2:] == ["audio-stop", "synthesize-stopped"]
        assert "audio-start" not in kinds
        assert len(audio) == pytest.approx(len(post_speech(server, input=text, response_format="pcm").content), rel=0.01)
        await client.write_event(Synthesize(text="Once more.").event())
        assert (await read_audio(client, "audio-stop"))[0][0] == "audio-start"


@pytest.mark.parametrize(
    ("text", "voice", "code"),
    [
        ("Hello.", SynthesizeVoice(name="nobody"), "invalid_value"),
        ("你好，世界。", None, "unspeakable_text"),
        ("<speak>Hello.</speak>", None, "invalid_value"),
        ("a" * 20_001, None, "invalid_value"),
    ],
)
async def test_wyoming_errors(server: ServerUnderTest, text: str, voice: SynthesizeVoice | None, code: str) -> None:
    async with asyncio.timeout(30), AsyncTcpClient("127.0.0.1", find_wyoming_port(server)) as client:
        await client.write_event(Synthesize(text=text, voice=voice).event())
        event = await client.read_event()
        assert event
        assert Error.from_event(event).code == code


def test_say(server: ServerUnderTest, tmp_path: Any) -> None:
    for arguments in ([], ["--server", server.address]):
        file = tmp_path / f"said-{len(arguments)}.mp3"
        done = run_eardrum("say", SENTENCES[0], "-o", str(file), *arguments)
        assert done.returncode == 0, done.stderr
        assert read_back(server, file.read_bytes()).split()[:3] == ["The", "quick", "brown"]
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        listed = run_eardrum("say", "--list-voices", *arguments)
        assert re.search(rf"^{VOICE} +en-US +{MODEL}$", listed.stdout, re.MULTILINE), listed.stdout
    refused = run_eardrum("say", "你好。", "-o", str(tmp_path / "no.wav"))
    assert refused.returncode == 1
    assert "cannot read" in refused.stderr
    assert not (tmp_path / "no.wav").exists()


def test_another_server_speaks(server: ServerUnderTest) -> None:
    """A second server, whose voice model is the first one."""
    far = {"proxy": server.address, "use_model_name": MODEL, "voice_names": {"anna": VOICE}, "aliases": ["tts-1"]}
    with run_server("--wyoming", "--wyoming-port", "0", "--set", f"models={json.dumps({'far': far})}") as near:
        there = post_speech(server, input=SENTENCES[0], response_format="mp3").content
        for voice in ("anna", "alloy"):
            assert post_speech(near, input=SENTENCES[0], voice=voice).content == there
        voices = requests.get(f"{near.address}/v1/audio/voices", timeout=10).json()["voices"]
        assert {"anna": "far", VOICE: MODEL}.items() <= {voice["id"]: voice["model"] for voice in voices}.items()
        assert requests.get(f"{near.address}/v1/audio/voices?model=far", timeout=10).json()["voices"][0]["model"] == MODEL

        async def speak() -> tuple[list[str], bytes, int]:
            async with asyncio.timeout(30), AsyncTcpClient("127.0.0.1", find_wyoming_port(near)) as client:
                await client.write_event(Synthesize(text=SENTENCES[0], voice=SynthesizeVoice(name="anna")).event())
                return await read_audio(client, "audio-stop")

        kinds, audio, rate = asyncio.run(speak())
        assert (kinds[0], kinds[-1], rate) == ("audio-start", "audio-stop", RATE)
        assert audio == post_speech(server, input=SENTENCES[0], response_format="pcm").content
