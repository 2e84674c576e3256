"""WS /ws/realtime against a real server, with the embedded model, as TingWu's own clients use it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
import requests
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from eardrum.api.tingwu.realtime import CHUNK_BYTES
from tests.conftest import ServerUnderTest, wait_for
from tests.recordings import SPEECH_TEXT, encode_pcm, load_speech

pytestmark = pytest.mark.slow

FIRST = SPEECH_TEXT.split(". Had")[0] + "."
AUDIO = 7 * 32_000


@asynccontextmanager
async def open_socket(server: ServerUnderTest, **query: str) -> AsyncIterator[ClientConnection]:
    address = f"ws{server.address.removeprefix('http')}/ws/realtime?{urlencode(query)}"
    async with connect(address, subprotocols=["binary"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "binary"
        yield socket


async def receive_message(socket: ClientConnection, seconds: float = 30.0) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await asyncio.wait_for(socket.recv(), seconds))
    return message


async def receive_until_final(socket: ClientConnection) -> list[dict[str, Any]]:
    told = [await receive_message(socket)]
    while not told[-1].get("is_final"):
        told.append(await receive_message(socket))
    return told


async def push_audio(socket: ClientConnection, audio: bytes, speed: float = 0.0) -> None:
    began = time.monotonic()
    for start in range(0, len(audio), CHUNK_BYTES):
        await socket.send(audio[start : start + CHUNK_BYTES])
        if speed:
            await asyncio.sleep(max(0.0, began + (start + CHUNK_BYTES) / 32_000 / speed - time.monotonic()))


async def test_text_comes_twice_and_the_second_is_the_last(server: ServerUnderTest) -> None:
    await asyncio.to_thread(requests.post, f"{server.address}/api/ps/whisper-1", timeout=60)  # what is late is left out
    async with open_socket(server) as socket:
        greeting = await receive_message(socket)
        assert greeting["type"] == "connected"
        assert greeting["config"]["chunk_size"] == CHUNK_BYTES
        assert greeting["connection_id"]
        await socket.send(json.dumps({"is_speaking": True, "mode": "2pass", "chunk_interval": 10}))
        await push_audio(socket, encode_pcm(load_speech())[:AUDIO], speed=1.5)
        await socket.send(json.dumps({"is_speaking": False}))
        told = await receive_until_final(socket)
        assert {message["mode"] for message in told[:-1]} == {"2pass-online"}
        assert len(told) > 1
        assert told[-1] == {"mode": "2pass-offline", "text": FIRST, "is_final": True}


async def test_what_comes_after_the_end_is_heard_and_the_next_recording_too(server: ServerUnderTest) -> None:
    async with open_socket(server) as socket:
        await receive_message(socket)
        await push_audio(socket, encode_pcm(load_speech())[:AUDIO])  # its own page sends audio before it says anything
        await socket.send(json.dumps({"is_speaking": False}))
        await socket.send(bytes(CHUNK_BYTES))
        await socket.send(json.dumps({"is_speaking": False}))
        assert (await receive_until_final(socket))[-1]["text"] == FIRST
        await socket.send(json.dumps({"is_speaking": True, "mode": "offline"}))
        await push_audio(socket, encode_pcm(load_speech())[:AUDIO])
        await socket.send(json.dumps({"is_speaking": False}))
        while (told := await receive_message(socket))["text"] != FIRST:
            assert not told["text"]
        assert told["mode"] == "offline"


@pytest.mark.parametrize("mode", ["online", "offline"])
async def test_a_client_gets_the_text_it_wants(server: ServerUnderTest, mode: str) -> None:
    async with open_socket(server, model="whisper-1", language="en") as socket:
        await receive_message(socket)
        await socket.send(json.dumps({"is_speaking": True, "mode": mode, "hotwords": "Dashwood"}))
        await push_audio(socket, encode_pcm(load_speech())[:AUDIO], speed=2.0)
        await socket.send(json.dumps({"is_speaking": False}))
        told = await receive_until_final(socket)
        assert {message["mode"] for message in told} == {mode}
        assert (len(told) > 1) == (mode == "online")
        assert told[-1]["text"] == FIRST


async def test_questions_are_answered_and_nonsense_is_warned_of(server: ServerUnderTest) -> None:
    async with open_socket(server) as socket:
        await receive_message(socket)
        await socket.send('{"type": "ping"}')
        assert await receive_message(socket) == {"type": "pong"}
        await socket.send('{"type": "pong"}')
        await socket.send('{"type": "cancel_llm"}')
        await socket.send("hello")
        assert "JSON" in (await receive_message(socket))["warning"]
        await socket.send('{"mode": "3pass"}')
        warning = await receive_message(socket)
        assert "2pass" in warning["warning"]
        assert warning["backend"] == "moonshine"


@pytest.mark.parametrize(
    ("query", "message", "code"),
    [
        ({"model": "nope"}, None, 1008),
        ({"language": "xx"}, None, 1008),
        ({"language": "de"}, '{"is_speaking": true}', 1008),
        ({}, b"x" * (5 << 20), 1009),
    ],
)
async def test_a_session_that_cannot_be_ends_with_a_reason(
    server: ServerUnderTest, query: dict[str, str], message: str | bytes | None, code: int
) -> None:
    async with open_socket(server, **query) as socket:
        warning = await receive_message(socket)
        if message:
            assert warning["type"] == "connected"
            await socket.send(message)
            warning = await receive_message(socket)
        assert warning["warning"]
        with pytest.raises(ConnectionClosed):
            await receive_message(socket)
        assert socket.close_code == code
        assert warning["warning"].startswith((socket.close_reason or "?")[:100])


async def test_a_page_that_nobody_speaks_to_holds_no_model(server: ServerUnderTest) -> None:
    def held() -> int:
        return sum(model["requests"] for model in requests.get(f"{server.address}/health", timeout=5).json()["models"])

    async with open_socket(server) as socket:
        await receive_message(socket)
        assert held() == 0
        await socket.send(bytes(CHUNK_BYTES))
        await asyncio.to_thread(wait_for, lambda: held() == 1)
    await asyncio.to_thread(wait_for, lambda: held() == 0)
