"""Clients of every protocol. Each sends something, reads to the end, and sees whether the answer is right."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import aiohttp
import numpy as np
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.info import Describe, Info

from bench.chats import CHAT
from bench.client import MODEL, build_form
from bench.live_client import PATH
from bench.live_recording import load_announcements
from bench.recordings import Samples
from bench.soak_answers import WrongAnswerError, check_error, check_ollama_lines, check_status, check_text, parse_event_data
from bench.whispers import NAME as WHISPER
from eardrum.transcription import SAMPLE_RATE
from tests.models import tiny_whisper
from tests.recordings import encode

CONTAINERS = ("wav", "flac", "mp3", "m4a", "ogg", "webm", "mp4", "mkv", "aiff")
FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
COMMAND, ELSEWHERE = "command", "elsewhere"
"""Models that a command, and a server at an address, serve."""

AAC_FRAME = 1024
"""FFmpeg's encoder stumbles over some shorter last ones."""

PIECE_S = 0.1
FASTER = 5
"""Than speech: so fast do live clients send."""

SLOW_PIECE, SLOW_PAUSE_S = 8192, 0.02


@dataclass(frozen=True, slots=True)
class SpokenRecording:
    """A recording, what is said in it, and the model that knows it."""

    samples: Samples
    text: str
    model: str

    @property
    def pcm(self) -> bytes:
        """As s16le."""
        return (self.samples * 32767).astype("<i2").tobytes()

    @property
    def base64(self) -> str:
        """As a WAV file."""
        return base64.b64encode(encode(self.samples, "wav")).decode()


@dataclass(frozen=True, slots=True)
class SoakTarget:
    """Where the clients go, and what they choose by."""

    port: int
    wyoming: int
    http: aiohttp.ClientSession
    chance: random.Random

    def build_address(self, path: str) -> str:
        """Of a route."""
        return f"http://127.0.0.1:{self.port}{path}"

    def choose_recording(self) -> SpokenRecording:
        """A recording of those that the server's models hear right."""
        return self.chance.choice(load_recordings())


Client = Callable[[SoakTarget], Awaitable[None]]


@cache
def load_recordings() -> Sequence[SpokenRecording]:
    """Announcements, alone and two together, and utterances for the Whisper that knows a few words."""
    pairs = zip(load_announcements()[::2], load_announcements()[1::2], strict=False)
    phone = [SpokenRecording(one.samples, one.text, MODEL) for one in load_announcements() if len(one.text) > 40]
    phone += [
        SpokenRecording(cast(Samples, np.concatenate([a.samples, b.samples])), f"{a.text} {b.text}", MODEL) for a, b in pairs
    ]
    heard = [clip for clip in tiny_whisper.load_clips() if clip.language == "en" and len(clip.text.split()) > 4]
    return [*phone, *(SpokenRecording(clip.samples, clip.text, WHISPER) for clip in heard)]


@cache
def _encode_recording(number: int, container: str) -> bytes:
    samples = load_recordings()[number].samples
    whole = cast(Samples, np.pad(samples, (0, -len(samples) % AAC_FRAME)))
    return encode(whole, container, rate=SAMPLE_RATE if container in ("m4a", "mp4") else None)


async def upload(server: SoakTarget) -> None:
    """A file in some container for an answer in some format; every fourth comes slowly."""
    number = server.chance.randrange(len(load_recordings()))
    spoken, format = load_recordings()[number], server.chance.choice(FORMATS)
    status, body = await _post_form(
        server, spoken, _encode_recording(number, server.chance.choice(CONTAINERS)), response_format=format
    )
    check_status(status, body)
    check_text(_extract_text(body.decode(), format), spoken.text)


async def stream(server: SoakTarget) -> None:
    """A file whose segments come as events."""
    number = server.chance.randrange(len(load_recordings()))
    spoken = load_recordings()[number]
    status, body = await _post_form(server, spoken, _encode_recording(number, "mp3"), stream="true")
    check_status(status, body)
    events = parse_event_data(body)
    if not events:
        raise WrongAnswerError("a stream without events")
    if "error" in events[-1]:
        check_error(events[-1]["error"])
    deltas = "".join(event["delta"] for event in events if event["type"] == "transcript.text.delta")
    if events[-1]["type"] != "transcript.text.done" or events[-1]["text"] != deltas:
        raise WrongAnswerError(f"{deltas!r} ends in {events[-1]}")
    check_text(deltas, spoken.text)


async def chat_with_audio(server: SoakTarget) -> None:
    """A chat with a recording in it."""
    spoken = server.choose_recording()
    part = {"type": "input_audio", "input_audio": {"data": spoken.base64, "format": "wav"}}
    status, body = await _post(server, "/v1/chat/completions", _build_chat(spoken.model, [part]))
    check_status(status, body)
    check_text(json.loads(body)["choices"][0]["message"]["content"], spoken.text)


async def ollama_speech(server: SoakTarget) -> None:
    """A recording as an image, for Ollama's two routes."""
    spoken, streamed = server.choose_recording(), server.chance.random() < 0.5
    path, request = server.chance.choice(
        [
            ("/api/chat", {"messages": [{"role": "user", "content": "", "images": [spoken.base64]}]}),
            ("/api/generate", {"prompt": "Transcribe.", "images": [spoken.base64]}),
        ]
    )
    lines = check_ollama_lines(*await _post(server, path, {"model": spoken.model, "stream": streamed, **request}))
    check_text("".join(line["response"] if "response" in line else line["message"]["content"] for line in lines), spoken.text)


async def ollama_chat(server: SoakTarget) -> None:
    """A chat with a language model, for Ollama's clients."""
    request = _build_chat(_choose_language_model(server), "What became of the hare?") | {"stream": server.chance.random() < 0.5}
    lines = check_ollama_lines(*await _post(server, "/api/chat", request))
    _check_story("".join(line["message"]["content"] for line in lines))
    if not lines[-1]["done"]:
        raise WrongAnswerError(f"the last line is {lines[-1]}")


async def forwarded(server: SoakTarget) -> None:
    """A chat that goes to another server, whole or in events."""
    streamed = server.chance.random() < 0.5
    request = CHAT | {"model": _choose_language_model(server)} | ({"stream": True} if streamed else {})
    status, body = await _post(server, "/v1/chat/completions", request)
    check_status(status, body)
    if not streamed:
        _check_story(json.loads(body)["choices"][0]["message"]["content"])
        return
    events = parse_event_data(body)
    for event in events:
        if event and "error" in event:
            check_error(event["error"])
    if not events or events[-1] is not None:
        raise WrongAnswerError(f"a stream broken off without an error: {body[-200:]!r}")
    _check_story("".join(event["choices"][0]["delta"]["content"] for event in events[:-1]))


async def live(server: SoakTarget) -> None:
    """A live session over the plain WebSocket."""
    spoken, texts = server.choose_recording(), []
    url = server.build_address(f"{PATH}?model={spoken.model}")
    async with server.http.ws_connect(url) as socket:
        speaking = asyncio.create_task(_send_pcm(socket, spoken.pcm))
        try:
            async for message in socket:
                said = json.loads(message.data)
                if said["type"] == "error":
                    check_error(said["error"])
                if said["type"] == "final":
                    texts.append(said["text"])
                if said["type"] == "done":
                    check_text(" ".join(texts), spoken.text)
                    return
        finally:
            await _await_sender(speaking)
    raise WrongAnswerError(f"a live session closed with {socket.close_code} before it was done")


async def realtime(server: SoakTarget) -> None:
    """A session of OpenAI's Realtime API in which the client commits."""
    spoken = server.choose_recording()
    transcription = {"model": spoken.model, "language": "en"}
    heard = {"format": {"type": "audio/pcm", "rate": SAMPLE_RATE}, "transcription": transcription, "turn_detection": None}
    async with server.http.ws_connect(server.build_address("/v1/realtime?intent=transcription")) as socket:
        await socket.send_json({"type": "session.update", "session": {"type": "transcription", "audio": {"input": heard}}})
        speaking = asyncio.create_task(_append_audio(socket, spoken.pcm))
        try:
            async for message in socket:
                said = json.loads(message.data)
                if said["type"] == "error" or said["type"].endswith(".failed"):
                    check_error(said["error"])
                if said["type"].endswith(".completed"):
                    check_text(said["transcript"], spoken.text)
                    return
        finally:
            await _await_sender(speaking)
    raise WrongAnswerError(f"a Realtime session closed with {socket.close_code} before its transcript")


async def wyoming(server: SoakTarget) -> None:
    """Home Assistant: asks what there is, then sends an utterance."""
    spoken = server.choose_recording()
    async with AsyncTcpClient("127.0.0.1", server.wyoming) as client:
        await client.write_event(Describe().event())
        told = await client.read_event()
        if not told or MODEL not in [model.name for model in Info.from_event(told).asr[0].models]:
            raise WrongAnswerError(f"Wyoming describes {told}")
        await client.write_event(Transcribe(name=spoken.model, language="en").event())
        await client.write_event(AudioStart(SAMPLE_RATE, 2, 1).event())
        for piece in _split_pcm(spoken.pcm):
            await client.write_event(AudioChunk(SAMPLE_RATE, 2, 1, piece).event())
            await asyncio.sleep(PIECE_S / FASTER)
        await client.write_event(AudioStop().event())
        while event := await client.read_event():
            if event.type == "error":
                check_error({"message": event.data["text"], "code": event.data["code"]})
            if event.type == "transcript":
                check_text(Transcript.from_event(event).text, spoken.text)
                return
    raise WrongAnswerError("Wyoming hung up before the transcript")


async def lists(server: SoakTarget) -> None:
    """What there is, in the words of three protocols."""
    path = server.chance.choice(["/v1/models", "/api/tags", "/api/ps", "/running", "/health", "/api/metrics/activity"])
    async with server.http.get(server.build_address(path)) as answer:
        if answer.status != 200:
            raise WrongAnswerError(f"{path}: {answer.status}")
        await answer.json()


async def mistakes(server: SoakTarget) -> None:
    """What has one right answer: an error."""
    kind = server.chance.choice(["audio", "model", "format", "json"])
    spoken = SpokenRecording(np.zeros(0, np.float32), "", MODEL)
    if kind == "audio":
        expected, (status, body) = (400, "invalid_audio"), await _post_form(server, spoken, b"nothing that plays " * 500)
    elif kind == "model":
        expected = (404, "model_not_found")
        status, body = await _post(server, "/v1/chat/completions", CHAT | {"model": "nobody"})
    elif kind == "format":
        expected, (status, body) = (400, "invalid_value"), await _post_form(server, spoken, b"RIFF", response_format="poem")
    else:
        async with server.http.post(server.build_address("/v1/embeddings"), data=b'{"model": [', headers=JSON) as answer:
            expected, (status, body) = (400, "invalid_value"), (answer.status, await answer.read())
    error = json.loads(body)["error"]
    if (status, error["code"]) != expected:
        check_error(error, status)  # its model may have been killed, too


CLIENTS: dict[Client, int] = {
    upload: 6,
    stream: 4,
    live: 3,
    realtime: 3,
    wyoming: 3,
    ollama_speech: 3,
    ollama_chat: 3,
    chat_with_audio: 1,
    forwarded: 4,
    lists: 2,
    mistakes: 2,
}
"""How often each comes, in proportion."""

JSON = {"content-type": "application/json"}


def _choose_language_model(server: SoakTarget) -> str:
    return server.chance.choice([COMMAND, ELSEWHERE])


def _build_chat(model: str, content: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}]}


def _check_story(text: str) -> None:
    if not text.startswith(("Then the tortoise", " tortoise")):
        raise WrongAnswerError(f"the model says {text[:100]!r}")


async def _post(server: SoakTarget, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
    async with server.http.post(server.build_address(path), json=body) as answer:
        return answer.status, await _read_answer(answer)


async def _post_form(server: SoakTarget, spoken: SpokenRecording, audio: bytes, **fields: str) -> tuple[int, bytes]:
    body = build_form(audio, model=spoken.model, **fields)
    headers = {"content-type": body.headers.split(": ", 1)[1].strip()}
    whole = b"".join(body.pieces)
    data = _send_slowly(whole) if server.chance.random() < 0.25 else whole
    async with server.http.post(server.build_address("/v1/audio/transcriptions"), data=data, headers=headers) as answer:
        return answer.status, await _read_answer(answer)


async def _send_slowly(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), SLOW_PIECE):
        yield body[at : at + SLOW_PIECE]
        await asyncio.sleep(SLOW_PAUSE_S)


async def _read_answer(answer: aiohttp.ClientResponse) -> bytes:
    """All of it. One that breaks off may: where its last event is an error, that says why."""
    data = bytearray()
    try:
        async for piece in answer.content.iter_any():
            data += piece
    except aiohttp.ClientPayloadError:
        for event in parse_event_data(bytes(data)):
            if event and "error" in event:
                check_error(event["error"])
        raise WrongAnswerError(f"an answer broken off without an error: {bytes(data[-200:])!r}") from None
    return bytes(data)


def _extract_text(body: str, format: str) -> str:
    """The text of an answer."""
    if "json" in format:
        return str(json.loads(body)["text"])
    if format == "text":
        return body
    lines = body.splitlines()
    return " ".join(line for line in lines if "-->" not in line and not line.strip().isdigit() and line != "WEBVTT")


def _split_pcm(pcm: bytes) -> list[bytes]:
    size = int(PIECE_S * SAMPLE_RATE) * 2
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


async def _send_pcm(socket: aiohttp.ClientWebSocketResponse, pcm: bytes) -> None:
    for piece in _split_pcm(pcm):
        await socket.send_bytes(piece)
        await asyncio.sleep(PIECE_S / FASTER)
    await socket.send_json({"type": "finish"})


async def _append_audio(socket: aiohttp.ClientWebSocketResponse, pcm: bytes) -> None:
    for piece in _split_pcm(pcm):
        await socket.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(piece).decode()})
        await asyncio.sleep(PIECE_S / FASTER)
    await socket.send_json({"type": "input_audio_buffer.commit"})


async def _await_sender(task: asyncio.Task[None]) -> None:
    """What it could not send any more is told by what was read."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
