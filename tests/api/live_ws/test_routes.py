"""WS /v1/audio/transcriptions/stream against a real server, with the embedded model."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import requests
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.api.live_ws.stream_client import StreamClient, open_stream
from tests.conftest import ServerUnderTest, run_server, wait_for
from tests.recordings import SPEECH_TEXT, create_silence, encode, encode_pcm, load_speech, resample

pytestmark = pytest.mark.slow

FIRST = SPEECH_TEXT.split(". Had")[0] + "."
"""The first sentence of the recording, which is over before 7.5 s."""


def load_sentence() -> bytes:
    return encode_pcm(load_speech()[: int(7.5 * 16_000)])


async def transcribe_at_once(session: StreamClient, audio: bytes) -> str:
    """The text of audio sent at once."""
    await session.push_audio(audio)
    await session.send_message(type="finish")
    assert await session.wait_for_close() == 1000, session.heard
    return session.text


def count_held(server: ServerUnderTest) -> int:
    """Requests that models hold."""
    return sum(model["requests"] for model in requests.get(f"{server.address}/health", timeout=5).json()["models"])


def load_model(server: ServerUnderTest) -> None:
    requests.post(f"{server.address}/api/ps/whisper-1", timeout=60).raise_for_status()


async def test_text_comes_while_somebody_speaks(server: ServerUnderTest) -> None:
    load_model(server)  # what is late is left out
    async with open_stream(server, model="whisper-1", language="en") as session:
        ready = await session.wait_for_message("ready")
        assert (ready["model"], ready["language"], ready["sample_rate"]) == ("moonshine-tiny-en", "en", 16_000)
        began = await session.push_audio(load_sentence(), speed=1.0)
        final = await session.wait_for_message("final")
        assert final["text"] == FIRST
        assert 0.0 <= final["start"] < 0.5
        assert 6.5 < final["end"] < 7.5
        assert final["language"] == "en"
        assert 0.8 < final["confidence"] < 1.0
        assert [message["type"] for _, message in session.heard[1:2]] == ["speech_started"]
        partials = [(at - began, message) for at, message in session.heard if message["type"] == "partial"]
        assert partials[0][0] < 6.0  # a machine with much to do leaves some out, and the first is the easiest
        stable = [message["stable"] for _, message in partials]
        assert all(later.startswith(earlier) for earlier, later in pairwise(stable))
        assert final["text"].startswith(stable[-1])
        await session.send_message(type="finish")
        assert (await session.wait_for_message("done"))["duration"] == pytest.approx(7.5, abs=0.01)
        assert await session.wait_for_close() == 1000


async def test_as_fast_as_can_be_is_the_same_text(server: ServerUnderTest) -> None:
    async with open_stream(server) as session:
        assert await transcribe_at_once(session, encode_pcm(load_speech())) == SPEECH_TEXT
        assert session.list_messages("done")[0]["duration"] == pytest.approx(len(load_speech()) / 16_000, abs=0.01)
        assert [final["utterance"] for final in session.list_messages("final")] == [1, 2, 3]


async def test_one_byte_a_message_is_the_same_text(server: ServerUnderTest) -> None:
    audio = load_sentence()[-3 * 32_000 :]
    async with open_stream(server, partials="false") as session:
        at_once = await transcribe_at_once(session, audio)
    async with open_stream(server, partials="false") as session:
        for byte in audio:
            await session.socket.send(bytes([byte]))
        assert await transcribe_at_once(session, b"") == at_once
    assert at_once


@pytest.mark.parametrize(
    ("query", "audio"),
    [
        ({"encoding": "f32le"}, lambda samples: samples.astype("<f4").tobytes()),
        ({"encoding": "pcm16", "channels": "2"}, lambda samples: np.repeat((samples * 32767).astype("<i2"), 2).tobytes()),
        ({"encoding": "audio/webm;codecs=opus"}, lambda samples: encode(samples, "webm")),
        ({"format": "ogg"}, lambda samples: encode(samples, "ogg")),
    ],
)
async def test_audio_comes_in_many_ways(server: ServerUnderTest, query: dict[str, str], audio: Any) -> None:
    async with open_stream(server, partials="false", **query) as session:
        assert await transcribe_at_once(session, audio(load_speech()[: int(7.5 * 16_000)])) == FIRST


async def test_settings_come_in_the_first_message_too(server: ServerUnderTest) -> None:
    async with open_stream(server) as session:
        await session.send_message(
            type="config", model="whisper-1", language="English", partials=False, encoding="f32le", vad=False
        )
        ready = await session.wait_for_message("ready")
        assert (ready["language"], ready["encoding"], ready["partials"], ready["vad"]) == ("en", "f32le", False, None)
        await session.push_audio(load_speech()[: int(7.5 * 16_000)].astype("<f4").tobytes())
        await session.send_message(type="commit")
        assert (await session.wait_for_message("final"))["text"] == FIRST
        assert not session.list_messages("speech_started")
        assert not session.list_messages("partial")


async def test_agent_clis_clients_are_understood(server: ServerUnderTest) -> None:
    async with open_stream(server, model="whisper-1") as session:
        await session.push_audio(load_sentence())
        await session.socket.send(b"EOS")
        final = await session.wait_for_message("final")
        assert (final["text"], final["is_final"], final["language"]) == (FIRST, True, "en")
        assert await session.wait_for_close() == 1000


async def test_a_session_without_audio_is_a_session(server: ServerUnderTest) -> None:
    async with open_stream(server) as session:
        await session.send_message(type="finish")
        assert await session.wait_for_close() == 1000
    assert [message for _, message in session.heard] == [{"type": "done", "duration": 0.0, "language": None}]
    async with open_stream(server, model="whisper-1") as session:
        await session.send_message(type="finish")
        assert await session.wait_for_close() == 1000
    assert [message["type"] for _, message in session.heard] == ["ready", "done"]


async def test_silence_is_no_text(server: ServerUnderTest) -> None:
    async with open_stream(server) as session:
        assert not await transcribe_at_once(session, encode_pcm(create_silence(60)))
        assert [message["type"] for _, message in session.heard] == ["ready", "done"]


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ({"model": "nope"}, "model_not_found", "model"),
        ({"language": "de"}, "unsupported_feature", "language"),
        ({"language": "klingon"}, "invalid_value", "language"),
        ({"task": "translate"}, "unsupported_feature", "model"),
        ({"words": "true"}, "unsupported_feature", "timestamp_granularities"),
        ({"modell": "x"}, "invalid_value", "modell"),
        ({"sample_rate": "0"}, "invalid_value", "sample_rate"),
    ],
)
async def test_a_session_that_cannot_be_is_refused_by_name(
    server: ServerUnderTest, query: dict[str, str], code: str, param: str
) -> None:
    async def refused(session: StreamClient) -> None:
        assert await session.wait_for_close() == 1008
        (error,) = session.errors
        assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
        assert session.socket.close_reason
        assert error["message"].startswith(session.socket.close_reason[:100])

    async with open_stream(server, **query) as session:
        if "model" not in query:
            with suppress(ConnectionClosed):  # what is wrong in itself is refused at once
                await session.socket.send(b"\0\0")  # else nobody knows whether a config follows
        await refused(session)
    async with open_stream(server) as session:
        await session.send_message(type="config", **query)
        await refused(session)


async def test_what_makes_no_sense_is_answered_and_the_session_goes_on(server: ServerUnderTest) -> None:
    async with open_stream(server, model="whisper-1") as session:
        await session.push_audio(load_sentence()[:64_000])
        for message, code, param in [
            ("hello", "invalid_value", None),
            ("[1]", "invalid_value", None),
            ('{"type": "input_audio_buffer.append"}', "invalid_value", "type"),
            ('{"type": "config", "sample_rate": 8000}', "invalid_value", "encoding"),
            ('{"type": "config", "colour": "red"}', "invalid_value", "colour"),
            ('{"type": "config", "language": "de"}', "unsupported_feature", "language"),
            ('{"type": "config", "model": "nope"}', "model_not_found", "model"),
        ]:
            before = len(session.errors)
            await session.socket.send(message)
            await session.wait_for_message("error", before + 1)
            assert (session.errors[-1]["code"], session.errors[-1]["param"]) == (code, param), message
        await session.send_message(type="config", language="en", silence_duration_ms=400)
        assert (await session.wait_for_message("configured"))["vad"]["silence_duration_ms"] == 400
        assert await transcribe_at_once(session, load_sentence()[64_000:]) == FIRST


@pytest.mark.parametrize(
    ("encoding", "change", "code"),
    [("webm", {"diarize": True}, "unsupported_feature"), ("s16le", {"audio_track": 2}, "invalid_value")],
)
async def test_a_change_that_the_session_refuses_leaves_the_settings_as_they_are(
    server: ServerUnderTest, encoding: str, change: dict[str, Any], code: str
) -> None:
    async with open_stream(server, model="whisper-1", encoding=encoding) as session:
        await session.send_message(type="config", **change)
        await session.wait_for_message("error")
        await session.send_message(type="config", language="en")
        configured = await session.wait_for_message("configured")
        assert ("diarize" in configured, configured["language"]) == (False, "en")
        await session.send_message(type="finish")
        await session.wait_for_close()
        assert [(error["code"], error["param"]) for error in session.errors] == [(code, *change)]


@pytest.mark.parametrize("rate", [4000, 192_000])
async def test_every_rate_that_the_settings_take_is_transcribed(server: ServerUnderTest, rate: int) -> None:
    async with open_stream(server, partials="false", sample_rate=str(rate)) as session:
        assert await transcribe_at_once(session, encode_pcm(resample(load_speech()[: int(7.5 * 16_000)], rate)))
        assert not session.errors


async def test_commits_and_clears_are_answered(server: ServerUnderTest) -> None:
    async with open_stream(server, vad="false", partials="false") as session:
        await session.send_message(type="commit")
        await session.wait_for_message("error")
        assert "0.1 s" in session.errors[0]["message"]
        await session.push_audio(load_sentence())
        await session.send_message(type="commit")
        await session.send_message(type="commit")
        assert (await session.wait_for_message("final"))["text"] == FIRST
        await session.wait_for_message("error", 2)
        await session.push_audio(load_sentence())
        await session.send_message(type="clear")
        await session.wait_for_message("cleared")
        await session.send_message(type="finish")
        assert await session.wait_for_close() == 1000
        assert session.text == FIRST


async def test_half_a_sample_at_the_end_is_told(server: ServerUnderTest) -> None:
    async with open_stream(server) as session:
        assert await transcribe_at_once(session, load_sentence() + b"\0") == FIRST
        assert session.errors[0]["code"] == "invalid_audio"
        assert session.list_messages("done")


async def test_a_message_too_large_ends_the_session(server: ServerUnderTest) -> None:
    async with open_stream(server) as session:
        await session.socket.send(bytes(5 << 20))
        assert await session.wait_for_close() == 1009
        assert session.errors[0]["code"] == "request_too_large"


async def test_a_client_that_vanishes_leaves_nothing(server: ServerUnderTest) -> None:
    async with open_stream(server, model="whisper-1") as session:
        await session.push_audio(load_sentence())
        await session.wait_for_message("speech_started")
        assert count_held(server) == 1
        session.socket.transport.abort()
        await asyncio.to_thread(wait_for, lambda: count_held(server) == 0)


async def test_a_client_that_hangs_up_before_the_model_is_there_leaves_nothing() -> None:
    with run_server() as server:
        async with open_stream(server, model="whisper-1") as session:
            await session.push_audio(load_sentence())
        await asyncio.to_thread(wait_for, lambda: count_held(server) == 0)


async def test_a_client_that_never_reads_is_hung_up_on() -> None:
    with run_server("--set", "limits.stall_timeout=1") as server:
        address = f"ws{server.address.removeprefix('http')}/v1/audio/transcriptions/stream?model=whisper-1"
        began = time.monotonic()
        with pytest.raises(ConnectionClosed):
            await _flood_server(address)
        assert time.monotonic() - began < 30
        await asyncio.to_thread(wait_for, lambda: count_held(server) == 0)
        server.wait_for_log("The client read nothing")


async def _flood_server(address: str) -> None:
    """Everything sent gets an answer, and none is read: more than the system keeps for a connection."""
    async with connect(address, max_queue=1, ping_interval=None) as socket:
        for _ in range(20_000):
            await asyncio.wait_for(socket.send(json.dumps({"type": "config", "x" * 3500: 1})), 30)


async def test_a_server_that_ends_gives_the_last_text_before() -> None:
    with run_server("--set", "shutdown_timeout=60") as server:
        async with open_stream(server, model="whisper-1") as session:
            await session.push_audio(load_sentence()[: 6 * 32_000])
            await session.wait_for_message("speech_started")
            server.process.send_signal(signal.SIGTERM)
            assert await session.wait_for_close() == 1012
            assert FIRST.startswith(session.text[:60])
            assert [message["type"] for _, message in session.heard[-2:]] == ["final", "error"]
            assert session.errors[0]["code"] == "shutting_down"


async def test_whoever_runs_the_server_may_end_a_session(server: ServerUnderTest) -> None:
    async with open_stream(server, model="whisper-1") as session:
        ready = await session.wait_for_message("ready")
        ended = await asyncio.to_thread(requests.post, f"{server.address}/api/inflight/{ready['session']}/cancel", timeout=10)
        assert ended.ok
        assert await session.wait_for_close() == 1001
        assert "cancelled" in (session.socket.close_reason or "")
    await asyncio.to_thread(wait_for, lambda: count_held(server) == 0)


async def test_hints_that_the_model_cannot_take_are_named(server: ServerUnderTest) -> None:
    async with open_stream(server, model="whisper-1", prompt="Austen", hotwords="Dashwood") as session:
        assert (await session.wait_for_message("ready"))["ignored"] == ["prompt", "hotwords"]


async def test_one_session_too_many_is_to_come_again_and_keys_are_asked_for() -> None:
    with run_server("--set", "live.max_sessions=1", "--set", "api_keys=[sk-one]") as server:
        address = f"ws{server.address.removeprefix('http')}/v1/audio/transcriptions/stream?model=whisper-1"
        with pytest.raises(InvalidStatus) as refused:
            async with connect(address):
                pass
        assert refused.value.response.status_code == 401
        offered: Any = ["eardrum", "openai-insecure-api-key.sk-one"]
        async with connect(address, subprotocols=offered) as first, connect(address, subprotocols=offered) as second:
            assert first.subprotocol == "eardrum"
            assert json.loads(await first.recv())["type"] == "ready"
            assert json.loads(await second.recv())["error"]["code"] == "busy"
            with pytest.raises(ConnectionClosed):
                await second.recv()
            assert second.close_code == 1013


async def test_pages_in_browsers_get_one_of_the_subprotocols_they_offer(server: ServerUnderTest) -> None:
    address = f"ws{server.address.removeprefix('http')}/v1/audio/transcriptions/stream"
    async with connect(address, subprotocols=["eardrum"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "eardrum"


def test_it_is_no_page(server: ServerUnderTest) -> None:
    answer = requests.get(f"{server.address}/v1/audio/transcriptions/stream", timeout=5)
    assert (answer.status_code, json.loads(answer.text)["error"]["code"]) == (405, "method_not_allowed")
