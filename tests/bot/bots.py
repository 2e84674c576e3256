"""Bots under test: in this process between two fake servers, Telegram and one of models, or as a command before a real server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from msgspec.structs import replace

from eardrum.bot.chats import ChatMode, ChatSettings
from eardrum.bot.telegram_bot import BotOptions, run_bot
from eardrum.bot.telegram_output import EditIntervals
from tests.commands import start_eardrum
from tests.conftest import ServerUnderTest
from tests.fake_telegram import ANN, TOKEN, FakeTelegram, open_fake_telegram
from tests.upstreams import FakeUpstream, UpstreamCall, build_error, fake_upstream

QUICK = EditIntervals(0.05, 0.05)
WORDS = "And Mr. John Dashwood had then leisure to consider."

PICTURE = b"\xff\xd8\xff\xe0 a photo \xff\xd9"


@dataclass
class FakeModelServer:
    """A server with OpenAI's API whose models say what a test tells them to."""

    deltas: list[str] = field(default_factory=lambda: [WORDS])
    """The deltas of a transcript."""
    segments: list[dict[str, Any]] | None = None
    """Times in the last event."""
    answer: str = "It is **blue**."
    answers: dict[str, str] = field(default_factory=dict)
    """Answers of the language model, by a part of the question."""
    speech: dict[str, bytes] = field(default_factory=lambda: {"opus": b"", "mp3": b"ID3 mp3"})
    delay: float = 0.0
    """Seconds before each piece of a stream."""
    chat_delay: float = 0.0
    """Seconds before an answer of the language model."""
    speech_delay: float = 0.0
    """Seconds before speech."""
    refusal: web.Response | None = None
    """Answer to everything."""
    upstream: FakeUpstream | None = None

    @property
    def calls(self) -> list[UpstreamCall]:
        assert self.upstream
        return self.upstream.calls

    def list_calls(self, path: str) -> list[UpstreamCall]:
        return [call for call in self.calls if call.path.startswith(path)]

    async def handle(self, call: UpstreamCall, request: web.Request) -> web.StreamResponse:  # noqa: PLR0911 -- one for each route
        if self.refusal:
            return build_error(self.refusal.status, self.refusal.text or "")
        match call.path:
            case "/v1/audio/transcriptions":
                if not call.file:
                    return build_error(400, "The audio file is empty.")
                return await self._transcribe(request)
            case "/v1/chat/completions":
                await asyncio.sleep(self.chat_delay)
                return await self._chat(call.json, request)
            case "/v1/audio/speech":
                await asyncio.sleep(self.speech_delay)
                return web.Response(body=self.speech[call.json["response_format"]], content_type="audio/ogg")
            case "/v1/models":
                return web.json_response({"object": "list", "data": LISTED})
            case "/v1/audio/voices":
                return web.json_response({"voices": [{"id": "heart", "name": "Heart"}, "emma"]})
        return build_error(404, f"Nothing is at {call.path}.")

    async def _transcribe(self, request: web.Request) -> web.StreamResponse:
        events: list[Any] = [{"type": "transcript.text.delta", "delta": delta} for delta in self.deltas]
        done: dict[str, Any] = {"type": "transcript.text.done", "text": "".join(self.deltas)}
        return await self._stream(request, [*events, done | ({"segments": self.segments} if self.segments else {})])

    async def _chat(self, body: dict[str, Any], request: web.Request) -> web.StreamResponse:
        content = body["messages"][-1]["content"]
        said = content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
        answer = next((answer for part, answer in self.answers.items() if part in said), self.answer)
        half = len(answer) // 2
        events: list[Any] = [{"choices": [{"delta": {"content": part}}]} for part in (answer[:half], answer[half:])]
        return await self._stream(request, [*events, {"choices": [{"delta": {}, "finish_reason": "stop"}]}, "[DONE]"])

    async def _stream(self, request: web.Request, events: list[Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await asyncio.sleep(self.delay)
            data = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {data}\n\n".encode())
        return response


LISTED = [
    {"id": "turbo", "aliases": ["whisper-1"], "architecture": {"input_modalities": ["audio"], "output_modalities": ["text"]}},
    {"id": "qwen"},
    {"id": "qwen-vl", "architecture": {"input_modalities": ["text", "image"], "output_modalities": ["text"]}},
]


@dataclass
class BotUnderTest:
    """A running bot, and both of its servers."""

    telegram: FakeTelegram
    server: FakeModelServer
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def hear(self, *messages: dict[str, Any]) -> None:
        await self.telegram.push(*messages)

    async def ask(self, text: str, **more: Any) -> None:
        """Let Ann write something."""
        await self.telegram.push(self.telegram.write(text, **more))

    async def command(self, text: str, *expected: str) -> str:
        """Let Ann write a command, and wait for the reply."""
        before = len(self.telegram.list_texts())
        await self.ask(text)
        await self.telegram.wait_for(lambda: len(self.telegram.list_texts()) > before)
        reply = self.telegram.list_texts()[before]
        assert all(part in reply for part in expected), reply
        return reply


@asynccontextmanager
async def open_bot(
    server: FakeModelServer | None = None,
    telegram: FakeTelegram | None = None,
    settings: dict[str, Any] | None = None,
    address: str = "",
    **options: Any,
) -> AsyncIterator[BotUnderTest]:
    """Run a bot that lets Ann in. `settings` are the choices of a chat, `options` those of the bot."""
    server = server or FakeModelServer()
    defaults = replace(ChatSettings(mode=ChatMode.TRANSCRIBE, chat_model="qwen"), **(settings or {}))
    stop = asyncio.Event()
    async with _open_telegram(telegram) as fake:
        with fake_upstream(server.handle) as upstream:
            server.upstream = upstream
            chosen: dict[str, Any] = {
                "token": TOKEN,
                "allowed": frozenset({ANN["id"]}),
                "server": address or upstream.url,
                "telegram_api": fake.url,
                "defaults": defaults,
                "edit_intervals": QUICK,
            }
            bot = BotUnderTest(fake, server, stop, asyncio.create_task(run_bot(BotOptions(**chosen | options), stop)))
            try:
                await fake.wait_for(lambda: fake.list_calls("getUpdates") or bot.task.done())
                yield bot
            finally:
                stop.set()
                await bot.task


@asynccontextmanager
async def _open_telegram(given: FakeTelegram | None) -> AsyncIterator[FakeTelegram]:
    if given:
        yield given
        return
    async with open_fake_telegram() as fake:
        yield fake


@asynccontextmanager
async def run_bot_command(
    server: ServerUnderTest, folder: Path, *arguments: str
) -> AsyncIterator[tuple[FakeTelegram, list[str]]]:
    """The command, in a process of its own; its output is in the list once it has ended."""
    output: list[str] = []
    async with open_fake_telegram() as telegram:
        environment = {
            "EARDRUM_TELEGRAM_TOKEN": TOKEN,
            "EARDRUM_TELEGRAM_ALLOW": f"5, {ANN['id']}",
            "EARDRUM_TELEGRAM_API": telegram.url,
            "EARDRUM_SERVER": server.address,
        }
        process = start_eardrum(
            *("bot", "telegram", "--log-level", "debug", *arguments),
            env=dict(os.environ) | environment | {"TMPDIR": str(folder), "HOME": str(folder)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            await telegram.wait_for(lambda: telegram.list_calls("getUpdates"), 30)
            yield telegram, output
        finally:
            process.terminate()
            output.append(await asyncio.to_thread(lambda: process.communicate(timeout=60)[0]))
    assert process.returncode == 0, output
