"""A runner that hears numbers: samples of the value 7 are the word "7", and samples of 0 are silence.

It speaks a runner's live protocol over a unix socket, so that tests can say of every sample whether it was heard, and can have it
die in the middle. Its habits:

    load_s      seconds until it is ready
    decode_s    seconds a final text takes
    dies_at     a word whose hearing kills it, but only where the file `mark` does not exist yet; it is created first
    dies_always the same, each time
    fails_at    a word for which there is no text

A recording of such samples (`POST /transcribe`) is answered with its words in one segment, after `decode_s` seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from aiohttp import web

from eardrum import live
from eardrum.errors import EardrumError, InvalidRequestError, ModelLoadError
from eardrum.live import LiveEvent, SessionSettings
from eardrum.transcription import Capabilities, Segment, TranscriptionSummary

STEP_S = 0.02


@dataclass
class FakeLiveSession:
    """One session: what is heard, and how far."""

    settings: SessionSettings
    habits: dict[str, Any]
    say: asyncio.Queue[live.LiveEvent]
    audio: bytearray = field(default_factory=bytearray)
    heard: int = 0
    ended: int = 0
    begin: float = 0.0
    words: list[str] = field(default_factory=list)
    silent: float = 0.0
    speaking: bool = False
    decoding: asyncio.Queue[live.FinalTranscript | live.UtteranceFailed] = field(default_factory=asyncio.Queue)

    @property
    def rate(self) -> int:
        return self.settings.format.rate

    @property
    def now(self) -> float:
        return self.heard / self.rate

    @property
    def utterance(self) -> int:
        return self.ended + 1

    def feed(self, audio: bytes) -> None:
        self.audio += audio
        step = int(STEP_S * self.rate)
        while len(self.audio) >= 2 * step:
            self._advance(step)

    def _advance(self, count: int) -> None:
        (value,) = struct.unpack_from("<h", self.audio, count // 2 * 2)
        del self.audio[: 2 * count]
        before, self.heard = self.now, self.heard + count
        rules = self.settings.endpointing
        if value:
            if not self.speaking and rules:
                self._begin_utterance(max(self.begin, before - rules.prefix_s))
            self.speaking, self.silent = True, 0.0
            self._add_word(str(value))
        else:
            self.silent += STEP_S
            if self.speaking and rules and self.silent >= rules.silence_s:
                self.say.put_nowait(live.SpeechStopped(self.utterance, self.now - self.silent))
                self._end_utterance(self.now)

    def _begin_utterance(self, at: float) -> None:
        self.begin = at
        self.say.put_nowait(live.SpeechStarted(self.utterance, at))

    def _add_word(self, word: str) -> None:
        if self.words and self.words[-1] == word:
            return
        if word == str(self.habits.get("dies_always")) or (
            word == str(self.habits.get("dies_at")) and _is_first_start(self.habits)
        ):
            os.kill(os.getpid(), signal.SIGKILL)
        self.words.append(word)
        if self.settings.partials:
            stable = " ".join(self.words[:-1])
            self.say.put_nowait(
                live.PartialTranscript(self.utterance, stable, f" {word}" if stable else word, self.begin, self.now)
            )

    def _end_utterance(self, end: float) -> None:
        number, text = self.utterance, " ".join(self.words)
        self.say.put_nowait(live.UtteranceCommitted(number, self.begin, end))
        if str(self.habits.get("fails_at")) in self.words:
            self.decoding.put_nowait(live.UtteranceFailed(number, ModelLoadError(f"This model cannot hear {text}.")))
        else:
            segments = (Segment(self.begin, end, text),) if text else ()
            self.decoding.put_nowait(live.FinalTranscript(number, self.begin, end, text, segments, "en"))
        self.ended += 1
        self.begin, self.words, self.speaking, self.silent = end, [], False, 0.0

    def commit(self) -> None:
        self._go_idle()
        if self.now <= self.begin:
            self.say.put_nowait(live.CommandRefused(InvalidRequestError("There is no audio to commit.")))
            return
        self._end_utterance(self.now)

    def clear(self) -> None:
        self._go_idle()
        self.say.put_nowait(live.UtteranceCleared(self.utterance if self.speaking else 0))
        self.begin, self.words, self.speaking = self.now, [], False

    def finish(self) -> None:
        self._go_idle()
        if self.speaking or (not self.settings.endpointing and self.now > self.begin):
            self.commit()

    def _go_idle(self) -> None:
        if count := len(self.audio) // 2:
            self._advance(count)


def _is_first_start(habits: dict[str, Any]) -> bool:
    mark = Path(habits["mark"])
    if mark.exists():
        return False
    mark.touch()
    return True


class FakeRunner:
    """The program."""

    def __init__(self, habits: dict[str, Any]):
        self._habits = habits

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"windows": 0})

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        audio = await request.read()
        words: list[str] = []
        for (value,) in struct.iter_unpack("<h", audio[: len(audio) & ~1]):
            if value and str(value) not in words[-1:]:
                words.append(str(value))
        await asyncio.sleep(self._habits.get("decode_s", 0.0) / 2)
        if str(self._habits.get("dies_always")) in words:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(self._habits.get("decode_s", 0.0) / 2)
        seconds = len(audio) / 2 / 16_000
        for line in (
            {"segment": Segment(0.0, seconds, " ".join(words)).to_json()},
            {"summary": TranscriptionSummary("en", seconds).to_json()},
        ):
            await response.write(json.dumps(line).encode() + b"\n")
        return response

    async def cancel(self, _: web.Request) -> web.Response:
        return web.Response(status=204)

    async def live(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        events: asyncio.Queue[live.LiveEvent] = asyncio.Queue()
        hearing = FakeLiveSession(SessionSettings.from_json(json.loads(request.headers["x-eardrum-live"])), self._habits, events)
        telling = asyncio.create_task(self._send_events(response, events))
        decoding = asyncio.create_task(self._decode_audio(hearing))
        try:
            await self._read_messages(request, hearing)
            hearing.finish()
            await hearing.decoding.join()
            events.put_nowait(live.SessionEnded(hearing.now, "en"))
            await events.join()
        except EardrumError as error:
            await response.write(json.dumps({"error": error.to_json()}).encode() + b"\n")
        finally:
            for task in (telling, decoding):
                task.cancel()
            await asyncio.gather(telling, decoding, return_exceptions=True)
        return response

    async def _read_messages(self, request: web.Request, hearing: FakeLiveSession) -> None:
        messages = live.MessageDecoder()
        async for data in request.content.iter_any():
            for message in messages.feed(data):
                match message:
                    case bytes():
                        hearing.feed(message)
                    case live.ConfigureCommand():
                        hearing.settings = message.settings
                    case live.CommitCommand():
                        hearing.commit()
                    case live.ClearCommand():
                        hearing.clear()
                    case live.FinishCommand():
                        return

    async def _decode_audio(self, hearing: FakeLiveSession) -> None:
        while True:
            text = await hearing.decoding.get()
            await asyncio.sleep(self._habits.get("decode_s", 0.0))
            hearing.say.put_nowait(text)
            hearing.decoding.task_done()

    async def _send_events(self, response: web.StreamResponse, events: asyncio.Queue[LiveEvent]) -> None:
        while True:
            event = await events.get()
            await response.write(live.encode_event(event))
            events.task_done()


async def serve(socket: str, habits: dict[str, Any]) -> None:
    app = web.Application()
    runner = FakeRunner(habits)
    app.router.add_get("/health", runner.health)
    app.router.add_post("/live", runner.live)
    app.router.add_post("/transcribe", runner.transcribe)
    app.router.add_delete("/transcribe/{name}", runner.cancel)
    served = web.AppRunner(app, shutdown_timeout=0.2)
    await served.setup()
    await web.UnixSite(served, socket).start()
    ready = {"capabilities": Capabilities(detects_language=True).to_json(), "batch": 1, "measured": {}}
    print(json.dumps({"ready": ready}), flush=True)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    Thread(target=_follow_parent, args=(loop, ended), daemon=True).start()
    await ended.wait()
    await served.cleanup()


def _follow_parent(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    loop.call_soon_threadsafe(ended.set)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--habits", type=json.loads)
    arguments, _ = parser.parse_known_args()
    habits = arguments.habits
    time.sleep(habits.get("load_s", 0.0))
    asyncio.run(serve(arguments.socket, habits))


main()
