"""A fake language model: an HTTP program that speaks as llama-server does and says back what it is told.

    python tests/programs/fake_llm.py --port 5800 [habits]

Each flag is a habit, good or bad, that commands really have; `--help` lists them. Tests start it as a `cmd`. It sees pictures,
as far as their colour and size go.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def parse_arguments() -> argparse.Namespace:
    """The habits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--reuse-port", action="store_true", help="listen as cpp-httplib does: SO_REUSEPORT, no SO_REUSEADDR")
    parser.add_argument("--name", default="fake", help="the model's name in answers")
    start = parser.add_argument_group("while it starts")
    start.add_argument("--say", default="", help="print this first")
    start.add_argument("--print-bytes", type=int, default=0, help="then so many bytes in one line, on stdout and on stderr")
    start.add_argument("--exit-code", type=int, help="end with this code instead of serving")
    start.add_argument("--exit-after", type=float, default=0.0, help="seconds until --exit-code; until then it serves")
    start.add_argument("--load-seconds", type=float, default=0.0, help="listen only after so many seconds")
    start.add_argument("--unhealthy-seconds", type=float, default=0.0, help="answer /health with 503 for so long")
    start.add_argument("--daemonise", action="store_true", help="serve from a child, and end")
    start.add_argument("--grandchild", help="start a program that sleeps, and write its pid into this file")
    start.add_argument("--detached", action="store_true", help="the grandchild gets a session of its own")
    serve = parser.add_argument_group("while it serves")
    serve.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
    serve.add_argument("--word-delay", type=float, default=0.0, help="seconds between the words of a stream")
    serve.add_argument("--die-after", type=int, default=-1, help="die in the middle of the answer after so many")
    stop = parser.add_argument_group("when it is told to stop")
    stop.add_argument("--ignore-sigterm", action="store_true")
    stop.add_argument("--stop-seconds", type=float, default=0.0, help="take so long")
    return parser.parse_args()


class FakeLlm:
    """The model."""

    def __init__(self, habits: argparse.Namespace):
        self.habits = habits
        self.answered = 0
        self.began = time.monotonic()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes([
            web.get("/health", self.health),
            web.get("/env", self.env),
            web.get("/v1/models", self.models),
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completions),
            web.post("/v1/embeddings", self.embeddings),
            web.get("/ws", self.echo),
        ])  # fmt: skip
        return app

    async def health(self, _: web.Request) -> web.Response:
        if time.monotonic() - self.began < self.habits.unhealthy_seconds:
            return web.json_response({"error": {"message": "Loading model", "code": 503}}, status=503)
        return web.json_response({"status": "ok"})

    async def env(self, _: web.Request) -> web.Response:
        """What it was started with."""
        return web.json_response({"pid": os.getpid(), "env": dict(os.environ), "argv": sys.argv, "stdin": _read_stdin()})

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.habits.name, "object": "model"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        content = [message["content"] for message in body["messages"] if message["role"] == "user"][-1]
        said = content if isinstance(content, str) else " ".join(map(_read_part, content))
        return await self._answer(request, body, f"You said: {said}", chat=True)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, f"{body['prompt']} and so on", chat=False)

    async def embeddings(self, request: web.Request) -> web.Response:
        body = await request.json()
        inputs = [body["input"]] if isinstance(body["input"], str) else body["input"]
        data = [{"object": "embedding", "index": i, "embedding": [float(len(text)), 0.5]} for i, text in enumerate(inputs)]
        return web.json_response({"object": "list", "model": body["model"], "data": data, "usage": USAGE})

    async def echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        return socket

    async def _answer(self, request: web.Request, body: dict[str, Any], text: str, *, chat: bool) -> web.StreamResponse:
        await asyncio.sleep(self.habits.delay)
        dying = self.answered == self.habits.die_after
        self.answered += 1
        if not body.get("stream"):
            if dying:
                _end_abruptly()
            message = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            choice = {"index": 0, "finish_reason": "stop", **message}
            kind = "chat.completion" if chat else "text_completion"
            return web.json_response({"object": kind, "model": body.get("model"), "choices": [choice], "usage": USAGE})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, word in enumerate(text.split(" ")):
            if dying and number:
                _end_abruptly()
            piece = f" {word}" if number else word
            await _write_event(response, {"delta": {"content": piece}} if chat else {"text": piece})
            await asyncio.sleep(self.habits.word_delay)
        await _write_event(response, {"finish_reason": "stop", **({"delta": {}} if chat else {"text": ""})})
        await response.write(b"data: [DONE]\n\n")
        return response


def _read_part(part: dict[str, Any]) -> str:
    """The text of a part, or a few words about its picture."""
    if part.get("type") != "image_url":
        return str(part.get("text", ""))
    import av  # noqa: PLC0415 -- takes a quarter of a second, and few tests show pictures

    data = base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
    with av.open(io.BytesIO(data)) as file:
        frame = next(file.decode(video=0)).to_ndarray(format="rgb24")
    strongest = int(frame.reshape(-1, 3).mean(0).argmax())
    return f"I see a {('red', 'green', 'blue')[strongest]} picture of {frame.shape[1]} by {frame.shape[0]}."


async def _write_event(response: web.StreamResponse, choice: dict[str, Any]) -> None:
    event = {"object": "chat.completion.chunk", "choices": [{"index": 0, "finish_reason": None, **choice}]}
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def _end_abruptly() -> None:
    print("CUDA error: out of memory", file=sys.stderr, flush=True)
    os._exit(139)


def _read_stdin() -> str:
    link = Path("/proc/self/fd/0")
    return str(link.readlink()) if link.is_symlink() else ""


async def serve(habits: argparse.Namespace) -> None:
    """Listen, and stay until a signal or --exit-after."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, (lambda: None) if habits.ignore_sigterm else stop.set)
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), habits.load_seconds or 0.001)
        return
    runner = web.AppRunner(FakeLlm(habits).app(), shutdown_timeout=1)
    await runner.setup()
    shared = habits.reuse_port
    await web.TCPSite(runner, habits.host, habits.port, reuse_address=not shared, reuse_port=shared or None).start()
    print(f"listening on {habits.host}:{habits.port}", flush=True)
    if habits.exit_code is not None:
        loop.call_later(habits.exit_after, stop.set)
    await stop.wait()
    await asyncio.sleep(habits.stop_seconds)
    await runner.cleanup()


def main() -> None:
    habits = parse_arguments()
    if habits.say:
        print(habits.say, file=sys.stderr, flush=True)
    if habits.print_bytes:
        for stream in (sys.stdout, sys.stderr):
            stream.write("x" * habits.print_bytes + "\n")
            stream.flush()
    if habits.daemonise and os.fork():
        return
    if habits.grandchild:
        child = subprocess.Popen(["sleep", "60"], start_new_session=habits.detached)
        Path(habits.grandchild).write_text(str(child.pid), encoding="utf-8")
    if habits.exit_code is not None and not habits.exit_after:
        sys.exit(habits.exit_code)
    asyncio.run(serve(habits))
    sys.exit(habits.exit_code or 0)


if __name__ == "__main__":
    main()
