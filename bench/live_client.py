"""Somebody who speaks into a WebSocket at the speed of speech and notes when which text comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import aiohttp

from bench.client import MODEL
from bench.live_delays import TimedMessage
from eardrum.transcription import SAMPLE_RATE

PATH = "/v1/audio/transcriptions/stream"
PIECE_S = 0.05
"""A microphone gives so much at a time."""

ENDS_S = 60
"""How long the last texts may take."""


@dataclass(slots=True)
class TalkResult:
    """What came of a session."""

    messages: list[TimedMessage] = field(default_factory=list)
    late_s: float = 0.0
    """How far behind its clock the speaker was at the worst: then the machine had no time for the speaker."""

    @property
    def text(self) -> str:
        """All finals."""
        return " ".join(message.body["text"] for message in self.messages if message.body["type"] == "final")


async def run_talk(
    port: int,
    pcm: bytes,
    *,
    model: str = MODEL,
    language: str = "",
    marks: dict[float, Callable[[], Any]] | None = None,
) -> TalkResult:
    """Say all of it. At the `marks`, seconds of the recording, functions are called.

    Raises:
        RuntimeError: the session failed, or did not end.
    """
    done = TalkResult()
    query = urlencode({"model": model} | ({"language": language} if language else {}))
    url = f"ws://127.0.0.1:{port}{PATH}?{query}"
    async with aiohttp.ClientSession() as http, http.ws_connect(url, max_msg_size=0) as socket:
        ready = json.loads(await socket.receive_str())
        if ready["type"] != "ready":
            raise RuntimeError(f"The session does not begin: {ready}")
        began = asyncio.get_running_loop().time()
        speaking = asyncio.create_task(_send_audio(socket, pcm, began, done, marks or {}))
        try:
            async with asyncio.timeout(len(pcm) / 2 / SAMPLE_RATE + ENDS_S):
                await _read_events(socket, began, done)
        except TimeoutError:
            raise RuntimeError("The session did not end.") from None
        finally:
            speaking.cancel()
            with suppress(asyncio.CancelledError):
                await speaking
    return done


async def _send_audio(
    socket: aiohttp.ClientWebSocketResponse, pcm: bytes, began: float, done: TalkResult, marks: dict[float, Callable[[], Any]]
) -> None:
    clock = asyncio.get_running_loop().time
    size = int(PIECE_S * SAMPLE_RATE) * 2
    waiting = sorted(marks)
    for at in range(0, len(pcm), size):
        due = began + min(at + size, len(pcm)) / 2 / SAMPLE_RATE  # a piece can be sent when it has been spoken
        await asyncio.sleep(due - clock())
        done.late_s = max(done.late_s, clock() - due)
        await socket.send_bytes(pcm[at : at + size])
        while waiting and clock() - began >= waiting[0]:
            marks[waiting.pop(0)]()
    await socket.send_str('{"type": "finish"}')


async def _read_events(socket: aiohttp.ClientWebSocketResponse, began: float, done: TalkResult) -> None:
    clock = asyncio.get_running_loop().time
    async for message in socket:
        body = json.loads(message.data)
        done.messages.append(TimedMessage(clock() - began, body))
        if body["type"] == "error":
            raise RuntimeError(f"The session failed: {body}")
        if body["type"] == "done":
            return
    raise RuntimeError("The session broke off.")
