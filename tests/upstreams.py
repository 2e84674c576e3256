"""Fake upstreams: real HTTP servers on loopback that speak as servers and clouds do which tests cannot have.

Each `fake_...` is an answer to one request. What they say was taken from the sources or the documentation of the real ones.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

from aiohttp import web
from python_multipart import parse_form
from python_multipart.multipart import Field, File

KEY = "sk-very-secret-0123456789"


@dataclass
class UpstreamCall:
    """A request that reached a fake."""

    path: str
    headers: dict[str, str]
    """By lower-case name."""
    fields: dict[str, list[str]] = field(default_factory=dict)
    file: bytes = b""
    file_name: str = ""
    json: Any = None

    def get_value(self, name: str) -> str | None:
        return self.fields[name][-1] if name in self.fields else None


@dataclass
class FakeUpstream:
    """A running fake."""

    answer: Answer
    url: str = ""
    calls: list[UpstreamCall] = field(default_factory=list)
    given_up: int = 0
    """Requests whose client hung up before it had an answer."""
    in_flight: int = 0
    most_in_flight: int = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        call = UpstreamCall(request.raw_path, {name.lower(): value for name, value in request.headers.items()})
        if request.content_type == "application/json":
            call.json = await request.json()
        elif request.content_type == "multipart/form-data":
            _read_form(call, await request.read())
        self.calls.append(call)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self.answer(call, request)
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            self.in_flight -= 1


def _read_form(call: UpstreamCall, body: bytes) -> None:
    def on_field(part: Field) -> None:
        call.fields.setdefault(part.field_name.decode(), []).append(part.value.decode())

    def on_file(part: File) -> None:
        part.file_object.seek(0)
        call.file, call.file_name = part.file_object.read(), part.file_name.decode()
        part.close()

    headers = {"Content-Type": call.headers["content-type"].encode()}
    parse_form(headers, io.BytesIO(body), on_field, on_file)


Answer = Callable[[UpstreamCall, web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def fake_upstream(answer: Answer) -> Iterator[FakeUpstream]:
    """Serve the fake on a free port, in a thread of its own that ends with it."""
    fake = FakeUpstream(answer)
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="fake-upstream")
    thread.start()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(_close_all(runner), loop).result(10)
        asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()
        assert not thread.is_alive()


async def _close_all(runner: web.AppRunner) -> None:
    """Close everything, also connections that the server has not heard of yet, or whose client reads no more.

    They would outlive their loop, and be complained of in the middle of another test.
    """
    loop = asyncio.get_running_loop()
    for site in runner.sites:
        for listening in site._server.sockets:
            loop.remove_reader(listening.fileno())  # asyncio forgets to close what comes in while it stops to listen
    await asyncio.sleep(0.01)
    await runner.cleanup()
    for transport in list(loop._transports.values()):  # type: ignore[attr-defined]
        transport.abort()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.sleep(0.01)  # what is closed is gone after a turn of the loop or two


def build_error(status: int, message: str, **headers: str) -> web.Response:
    """A refusal in OpenAI's shape."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return web.json_response(body, status=status, headers=headers)


def build_busy(status: int = 429, **headers: str) -> web.Response:
    """A refusal that may pass; headers with `_` for `-`."""
    return build_error(status, "Rate limit reached.", **{name.replace("_", "-"): value for name, value in headers.items()})


async def fake_whisper_server(call: UpstreamCall, _: web.Request) -> web.Response:
    """whisper.cpp's server: names of languages, tokens for words inside the segments, errors in plain text."""
    if not call.file.startswith((b"RIFF", b"fLaC")):
        return web.Response(status=400, text="Invalid request")
    if call.get_value("response_format") != "verbose_json":
        return web.json_response({"text": " And Mr. Dash\nwood.\n"})
    tokens = [(" And", 0.2, 0.5), (" Mr", 0.5, 0.7), (".", 0.7, 0.8), (" Dash", 0.9, 1.2), ("wood", 1.2, 1.5), (".", 1.5, 30.0)]
    words = [{"word": w, "start": s, "end": e, "t_dtw": -1, "probability": 0.9} for w, s, e in tokens]
    segment = {
        "id": 0,
        "text": " And Mr. Dashwood.",
        "start": 0.0,
        "end": 30.0,
        "tokens": [1, 2],
        "words": words,
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "no_speech_prob": 0.03,
    }
    return web.json_response(
        {
            "task": "translate" if call.get_value("translate") else "transcribe",
            "language": "german",
            "duration": 7.6,
            "text": " And Mr. Dashwood.\n",
            "segments": [segment, segment | {"id": 1, "text": " ", "words": []}],
            "detected_language": "german",
            "detected_language_probability": 0.99,
        }
    )


async def fake_openai(call: UpstreamCall, _: web.Request) -> web.Response:
    """A cloud with whisper-1: word times beside the segments."""
    if call.headers.get("authorization") != f"Bearer {KEY}":
        return build_error(401, f"Incorrect API key provided: {call.headers.get('authorization', '')}.")
    answer: dict[str, Any] = {"task": "transcribe", "language": "english", "duration": 7.6, "text": "Hello there. General."}
    if "word" in call.fields.get("timestamp_granularities[]", []):
        answer["words"] = [
            {"word": "Hello", "start": 0.2, "end": 0.6},
            {"word": "there", "start": 0.7, "end": 1.1},
            {"word": "General", "start": 2.1, "end": 2.9},
        ]
    answer["segments"] = [
        {"id": 0, "seek": 0, "start": 0.0, "end": 2.0, "text": " Hello there.", "tokens": [1], "temperature": 0.0,
         "avg_logprob": -0.2, "compression_ratio": 1.1, "no_speech_prob": 0.01},
        {"id": 1, "seek": 0, "start": 2.0, "end": 3.0, "text": " General.", "tokens": [2], "temperature": 0.0,
         "avg_logprob": -0.4, "compression_ratio": 1.2, "no_speech_prob": 0.02},
    ]  # fmt: skip
    return web.json_response(answer)


async def fake_json_only(call: UpstreamCall, _: web.Request) -> web.Response:
    """A cloud's newer models: verbose_json is refused, the language comes as a list."""
    if call.get_value("response_format") != "json":
        message = "response_format 'verbose_json' is not compatible with model 'gpt-transcribe'. Use 'json' instead."
        return build_error(400, message)
    return web.json_response({"text": "Guten Tag.", "languages": [{"code": "de"}], "usage": {"type": "duration", "seconds": 8}})


async def fake_failing_on_verbose_json(call: UpstreamCall, _: web.Request) -> web.Response:
    """A server whose model has no times, and which falls over them: speaches with a Parakeet."""
    if call.get_value("response_format") != "json":
        return web.Response(status=500, text="Internal Server Error")
    return web.json_response({"text": "Guten Tag."})


async def fake_vllm_chat(call: UpstreamCall, _: web.Request) -> web.Response:
    """vLLM serving Qwen3-ASR as a chat model."""
    if call.path != "/v1/chat/completions":
        return web.json_response({"detail": "Not Found"}, status=404)
    message = {"role": "assistant", "content": "language German<asr_text>Guten Tag.", "refusal": None, "tool_calls": []}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return web.json_response({"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": {}})


async def fake_error_with_status_200(_: UpstreamCall, __: web.Request) -> web.Response:
    """vLLM 0.15 on audio it cannot read."""
    error = {"message": "Invalid or unsupported audio file.", "type": "BadRequestError", "param": None, "code": 400}
    return web.json_response({"error": error})


async def fake_fastapi_refusal(_: UpstreamCall, __: web.Request) -> web.Response:
    """A server built on FastAPI whose form lacks a field."""
    return web.json_response({"detail": [{"loc": ["body", "model"], "msg": "Field required", "type": "missing"}]}, status=422)


async def fake_html(_: UpstreamCall, __: web.Request) -> web.Response:
    """The web page of something else, found under the address."""
    return web.Response(text="<!doctype html><html><head><title>My router</title></head></html>", content_type="text/html")


async def fake_html_error(_: UpstreamCall, __: web.Request) -> web.Response:
    """A proxy whose backend is down."""
    page = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
    return web.Response(status=502, text=page, content_type="text/html")


async def fake_dying(_: UpstreamCall, request: web.Request) -> web.StreamResponse:
    """A server that dies in the middle of its answer."""
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "1000"})
    await response.prepare(request)
    await response.write(b'{"text": "And then')
    assert request.transport
    request.transport.close()
    return response


async def fake_hanging(_: UpstreamCall, __: web.Request) -> web.Response:
    """A server that takes the request and never answers."""
    await asyncio.sleep(60)
    return web.json_response({"text": "too late"})


def fake_after(refusals: list[Callable[[], web.Response]], then: Answer) -> Answer:
    """A server that refuses as many requests as there are refusals, in order, and then answers."""
    waiting = list(refusals)

    async def answer(call: UpstreamCall, request: web.Request) -> web.StreamResponse:
        return waiting.pop(0)() if waiting else await then(call, request)

    return answer


def fake_saying(body: Any, status: int = 200) -> Answer:
    """A server that always answers with this JSON."""

    async def answer(_: UpstreamCall, __: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    return answer


def fake_with(verbose: Any, plain: Any) -> Answer:
    """A server that answers with the one where verbose_json is asked for, and with the other in json."""

    async def answer(call: UpstreamCall, _: web.Request) -> web.Response:
        return web.json_response(verbose if call.get_value("response_format") == "verbose_json" else plain)

    return answer
