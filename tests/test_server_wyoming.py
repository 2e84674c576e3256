"""Home Assistant's protocol, spoken by the official client to a real server."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping
from wyoming.tts import Synthesize

from tests.commands import run_eardrum
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import ROOT, SPEECH_TEXT, Samples, load_speech
from tests.test_server_transcription_upstreams import build_model

pytestmark = pytest.mark.slow

CHUNK = 1024
RATE = 16_000


def find_port(server: ServerUnderTest) -> int:
    server.wait_for_log("(Wyoming)")
    found = re.search(r"Home Assistant: 127\.0\.0\.1 port (\d+)", server.log)
    assert found
    return int(found[1])


@contextmanager
def run_wyoming_server(*arguments: str, **environment: str) -> Iterator[tuple[ServerUnderTest, int]]:
    with run_server("--wyoming", "--wyoming-port", "0", *arguments, **environment) as server:
        yield server, find_port(server)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with run_wyoming_server() as (_, port):
        yield port


@asynccontextmanager
async def connect_client(port: int) -> AsyncIterator[AsyncTcpClient]:
    async with asyncio.timeout(60), AsyncTcpClient("127.0.0.1", port) as client:
        yield client


def encode_pcm(samples: Samples, width: int = 2) -> bytes:
    if width == 1:
        return (np.clip(samples, -1, 1) * 127 + 128).astype(np.uint8).tobytes()
    kinds = {2: np.int16, 4: np.int32}
    return (samples.astype(np.float64) * (np.iinfo(kinds[width]).max - 1)).astype(kinds[width]).tobytes()


async def send_audio(
    client: AsyncTcpClient, audio: bytes, *, rate: int = RATE, width: int = 2, channels: int = 1, stop: bool = True
) -> None:
    await client.write_event(AudioStart(rate, width, channels).event())
    step = CHUNK * width * channels
    for start in range(0, len(audio), step):
        await client.write_event(AudioChunk(rate, width, channels, audio[start : start + step]).event())
    if stop:
        await client.write_event(AudioStop().event())


async def receive_answer(client: AsyncTcpClient) -> list[Event]:
    """Events up to the end of the transcript, or of the connection."""
    events: list[Event] = []
    while event := await client.read_event():
        events.append(event)
        if event.type == "transcript-stop":
            break
    return events


async def receive_until(client: AsyncTcpClient, kind: str) -> None:
    while (event := await client.read_event()) and event.type != kind:
        pass
    assert event


async def receive_text(client: AsyncTcpClient) -> str:
    (transcript,) = [event for event in await receive_answer(client) if event.type == "transcript"]
    return Transcript.from_event(transcript).text


async def test_what_home_assistant_does(port: int) -> None:
    async with connect_client(port) as client:
        await client.write_event(Describe().event())
        event = await client.read_event()
    assert event
    (program,) = Info.from_event(event).asr
    assert [(model.name, model.installed) for model in program.models] == [("moonshine-tiny-en", True)]
    async with connect_client(port) as client:
        await client.write_event(Transcribe(language="en").event())
        await send_audio(client, encode_pcm(load_speech()))
        assert await receive_text(client) == SPEECH_TEXT


async def test_lines_about_utterances_and_texts_have_the_wait_for_their_model() -> None:
    with run_wyoming_server("--log-format", "json") as (server, port):
        async with connect_client(port) as client:
            await send_audio(client, encode_pcm(load_speech()))
            await receive_text(client)
            await client.write_event(Synthesize("Good morning.").event())
            await receive_until(client, "audio-stop")

        def list_lines() -> list[dict[str, Any]]:
            return [json.loads(line) for line in server.output if '"protocol": "wyoming"' in line]

        wait_for(lambda: len(list_lines()) == 2)
        assert [line["model"] for line in list_lines()] == ["moonshine-tiny-en", "hibari-en"]
        assert all(0.0 < line["model_wait_s"] <= line["total_s"] for line in list_lines())


async def test_the_chunks_are_the_transcript(port: int) -> None:
    async with connect_client(port) as client:
        await send_audio(client, encode_pcm(load_speech()))
        events = await receive_answer(client)
    kinds = [event.type for event in events]
    assert (kinds[0], kinds[-2:]) == ("transcript-start", ["transcript", "transcript-stop"])
    chunks = [event.data["text"] for event in events if event.type == "transcript-chunk"]
    assert "".join(chunks) == events[-2].data["text"] == SPEECH_TEXT
    assert events[-2].data["language"] == "en"


async def test_text_comes_while_somebody_speaks(port: int) -> None:
    audio = encode_pcm(load_speech())
    async with connect_client(port) as client:
        first = asyncio.create_task(client.read_event())
        for start in range(0, len(audio), RATE // 5):
            piece = audio[start : start + RATE // 5]
            await client.write_event(AudioChunk(RATE, 2, 1, piece).event())
            await asyncio.sleep(0.1)  # as it is spoken
        assert first.done(), "nothing came before the end of the speech"
        assert first.result().type == "transcript-start"
        await client.write_event(AudioStop().event())
        assert await receive_text(client) == SPEECH_TEXT


@pytest.mark.parametrize(("rate", "width", "channels"), [(48_000, 2, 2), (16_000, 4, 1), (8_000, 2, 1), (16_000, 1, 1)])
async def test_any_audio(port: int, rate: int, width: int, channels: int) -> None:
    samples = load_speech()
    at = np.interp(np.arange(0, len(samples), RATE / rate), np.arange(len(samples)), samples)
    async with connect_client(port) as client:
        await send_audio(client, encode_pcm(np.repeat(at, channels), width), rate=rate, width=width, channels=channels)
        words = (await receive_text(client)).split()
    assert len(set(words) & set(SPEECH_TEXT.split())) > 0.8 * len(set(SPEECH_TEXT.split()))


async def test_several_utterances_on_one_connection_and_silence(port: int) -> None:
    async with connect_client(port) as client:
        for audio, expected in ((load_speech(), SPEECH_TEXT), (np.zeros(RATE, np.float32), ""), (load_speech(), SPEECH_TEXT)):
            await send_audio(client, encode_pcm(audio))
            assert await receive_text(client) == expected
        await send_audio(client, b"")
        assert await receive_text(client) == ""
        await send_audio(client, b"\1\0\2")
        assert await receive_text(client) == ""


async def test_clients_beside_each_other(port: int) -> None:
    async def one() -> str:
        async with connect_client(port) as client:
            await send_audio(client, encode_pcm(load_speech()))
            return await receive_text(client)

    assert await asyncio.gather(*(one() for _ in range(6))) == [SPEECH_TEXT] * 6


async def test_what_the_model_cannot_is_told_and_the_connection_closed(port: int) -> None:
    async with connect_client(port) as client:
        await client.write_event(Transcribe(language="de").event())
        await send_audio(client, encode_pcm(load_speech()))
        (error,) = await receive_answer(client)
    assert (error.type, error.data["code"]) == ("error", "unsupported_feature")
    assert "does not support German" in error.data["text"]


async def test_describe_is_answered_while_the_model_loads() -> None:
    with run_wyoming_server() as (server, port):
        async with connect_client(port) as client:
            await send_audio(client, encode_pcm(load_speech()))
            await asyncio.to_thread(wait_for, server.list_runners)
            (runner,) = server.list_runners()
            runner.suspend()
            async with connect_client(port) as other:
                await other.write_event(Describe().event())
                event = await other.read_event()  # nothing of it waits for the process, which is suspended
                assert event
                assert event.type == "info"
            assert (await asyncio.to_thread(get_health, server))["state"] == "starting"
            runner.resume()
            assert await receive_text(client) == SPEECH_TEXT


async def test_a_model_that_dies_in_the_middle_is_replaced() -> None:
    with run_wyoming_server() as (server, port):
        async with connect_client(port) as client:
            await send_audio(client, encode_pcm(load_speech()), stop=False)
            await asyncio.to_thread(wait_for, lambda: get_health(server)["state"] == "ready")
            (runner,) = server.list_runners()
            runner.kill()
            await client.write_event(AudioStop().event())
            assert await receive_text(client) == SPEECH_TEXT


def get_health(server: ServerUnderTest) -> dict[str, object]:
    (model,) = requests.get(f"{server.address}/health", timeout=10).json()["models"][:1]
    return dict(model)


async def test_a_client_that_leaves_frees_its_model() -> None:
    with run_wyoming_server() as (server, port):
        async with connect_client(port) as client:
            await send_audio(client, encode_pcm(load_speech()), stop=False)
            await asyncio.to_thread(wait_for, lambda: get_health(server)["requests"] == 1)
        await asyncio.to_thread(wait_for, lambda: get_health(server)["requests"] == 0)


async def test_sigterm_ends_a_server_with_idle_clients() -> None:
    with run_wyoming_server() as (server, port):
        async with connect_client(port) as client:
            await client.write_event(Describe().event())
            assert await client.read_event()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.process.wait, 5)
            assert await client.read_event() is None


async def test_sigterm_lets_an_utterance_that_is_over_have_its_answer() -> None:
    with run_wyoming_server() as (server, port):
        async with connect_client(port) as client:
            await send_audio(client, encode_pcm(load_speech()[:RATE]))
            await receive_text(client)  # the model is loaded, which may take longer than the server has for its end
            await send_audio(client, encode_pcm(load_speech()))
            await client.write_event(Ping().event())
            await asyncio.wait_for(receive_until(client, "pong"), 30)  # all of it has arrived
            server.process.send_signal(signal.SIGTERM)
            assert await receive_text(client) == SPEECH_TEXT
            assert await client.read_event() is None
        server.process.wait(5)
        assert "Traceback" not in server.log


async def test_sigterm_in_mid_utterance_is_told_and_no_half_command_given() -> None:
    with run_wyoming_server() as (server, port):
        async with connect_client(port) as client:
            await send_audio(client, encode_pcm(load_speech()), stop=False)
            await asyncio.to_thread(wait_for, lambda: get_health(server)["state"] == "ready")
            server.process.send_signal(signal.SIGTERM)
            events = await receive_answer(client)
        assert (events[-1].type, events[-1].data["code"]) == ("error", "shutting_down")
        assert "transcript" not in [event.type for event in events]
        server.process.wait(5)
        assert "Traceback" not in server.log


def is_refused(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run_eardrum("serve", "--port", "0", "--wyoming-port", str(port))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"Port {port} on 127.0.0.1 is taken" in done.stderr
    assert "--wyoming-port" in done.stderr
    assert "--no-wyoming" in done.stderr


def test_with_keys_or_below_another_server_the_port_is_closed_unless_it_is_wanted() -> None:
    keys = ("--set", 'api_keys=["secret"]')
    with run_server(*keys, prelude="import sys; sys.argv.remove('--no-wyoming')") as server:
        server.wait_for_log("Try it")
        server.wait_for_log("Wyoming is off: its protocol cannot carry API keys")
        assert "(Wyoming)" not in server.log
    with run_server(prelude="import sys; sys.argv.remove('--no-wyoming')", STARTED_BY_EARDRUM="1") as server:
        server.wait_for_log("Try it")
        assert "(Wyoming)" not in server.log
    with run_wyoming_server(*keys) as (server, port):
        server.wait_for_log("Wyoming is open to every client that can connect, at port")
        assert not is_refused(port)


async def test_a_model_of_another_server_gets_the_utterance_as_a_recording(tmp_path: Path) -> None:
    models = {"theirs": build_model("fake_whisper_server", capabilities={"in": ["audio"], "out": ["text"]})}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"models": models, "default_model": "theirs"}))
    with run_wyoming_server("--config", str(config), PYTHONPATH=f"{ROOT}:{ROOT / 'src'}") as (_, port):
        async with connect_client(port) as client:
            for _ in range(2):
                await client.write_event(Transcribe(name="theirs").event())
                await send_audio(client, encode_pcm(load_speech()))
                events = await receive_answer(client)
                assert [event.data["text"] for event in events if event.type == "transcript"] == [SPEECH_TEXT]
                assert [event.type for event in events].count("transcript-chunk") == 1
