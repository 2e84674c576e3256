"""A fake vLLM with a speech model: its routes, shapes and refusals, heard with a model of Eardrum's.

    python tests/programs/fake_vllm.py --port 8000 --name asr [--no-verbose]

Durations are strings, streams are chunks, errors may come with status 200, and not every model knows verbose_json.
"""

from __future__ import annotations

import argparse
import base64
import json
import math
import re
from collections.abc import AsyncIterator
from typing import Any

import embedded_model
from aiohttp import web

from eardrum.api import transcript_formats
from eardrum.errors import EardrumError
from eardrum.transcription import Segment, SpeechTask, TranscriptionRequest, TranscriptionSummary


def parse_arguments() -> argparse.Namespace:
    """Those of this program."""
    parser = argparse.ArgumentParser(description=__doc__)
    embedded_model.add_arguments(parser)
    parser.add_argument("--name", default="asr", help="the name it serves the model by")
    parser.add_argument("--no-verbose", action="store_true", help="as models without times")
    return parser.parse_args()


class FakeVllm:
    """The server."""

    def __init__(self, habits: argparse.Namespace):
        self._habits = habits

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/health", self.health)
        app.router.add_post("/v1/audio/transcriptions", self.transcriptions)
        app.router.add_post("/v1/audio/translations", self.translations)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.cleanup_ctx.append(self._run_model)
        return app

    async def _run_model(self, _: web.Application) -> AsyncIterator[None]:
        async with embedded_model.open_model(self._habits) as self._model:
            yield

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def transcriptions(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, SpeechTask.TRANSCRIBE)

    async def translations(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, SpeechTask.TRANSLATE)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A chat whose last message holds a recording: its transcript is the answer."""
        body = await request.json()
        parts = [part for part in body["messages"][-1]["content"] if part["type"] == "audio_url"]
        if not parts:
            return _build_refusal(400, "At most 1 audio may be provided in one prompt; found none.")
        audio = base64.b64decode(parts[-1]["audio_url"]["url"].partition("base64,")[2])
        segments, _ = await self._model.transcribe(audio, TranscriptionRequest())
        text = transcript_formats.format_text(segments)
        if body.get("stream"):
            return await _stream_text(request, self._habits.name, text)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        return web.json_response({"object": "chat.completion", "model": self._habits.name, "choices": [choice]})

    async def _serve(self, request: web.Request, task: SpeechTask) -> web.StreamResponse:
        fields, file = await embedded_model.read_form(request)
        form = {name: values[-1] for name, values in fields.items()}
        if refusal := self._find_refusal(form):
            return refusal
        can = task if self._model.translates else SpeechTask.TRANSCRIBE
        asked = TranscriptionRequest(task=can, language=form.get("language") or None, prompt=form.get("prompt", ""))
        try:
            segments, summary = await self._model.transcribe(file, asked)
        except EardrumError:
            return _build_refusal(400, "Invalid or unsupported audio file.", status=200)
        if form.get("stream") == "true":
            return await _stream_text(request, self._habits.name, transcript_formats.format_text(segments))
        return _build_answer(form.get("response_format", "json"), segments, summary)

    def _find_refusal(self, form: dict[str, str]) -> web.Response | None:
        if (name := form.get("model", self._habits.name)) != self._habits.name:
            return _build_refusal(404, f"The model `{name}` does not exist.", "NotFoundError", "model")
        verbose = form.get("response_format") == "verbose_json"
        if verbose and self._habits.no_verbose:
            return _build_refusal(400, f"Currently do not support verbose_json for {name}")
        if verbose and form.get("stream") == "true":
            return _build_refusal(400, "verbose_json format doesn't support streaming case")
        return None


def _build_refusal(
    code: int, message: str, kind: str = "BadRequestError", param: str | None = None, status: int = 0
) -> web.Response:
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return web.json_response(body, status=status or code)


def _build_answer(form: str, segments: list[Segment], summary: TranscriptionSummary) -> web.Response:
    text = transcript_formats.format_text(segments)
    if form == "text":
        return web.Response(text=text)
    if form == "verbose_json":
        return web.json_response({
            "duration": str(summary.duration),
            "language": summary.language,
            "text": text,
            "segments": [_build_segment(number, segment) for number, segment in enumerate(segments)],
            "words": None,
        })  # fmt: skip
    return web.json_response({"text": text, "usage": {"type": "duration", "seconds": math.ceil(summary.duration)}})


def _build_segment(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": 0,
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
        "tokens": segment.tokens,
        "temperature": 0.0,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": None,
    }


async def _stream_text(request: web.Request, name: str, text: str) -> web.StreamResponse:
    """Tokens as chunks, at last one that says why it ends."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    said = [({"content": token}, None) for token in re.findall(r"\s*\S+", text)]
    for delta, reason in [*said, ({"content": ""}, "stop")]:
        choice = {"delta": delta, "finish_reason": reason, "stop_reason": None}
        chunk = {"id": "trsc-1", "object": "transcription.chunk", "created": 0, "model": name, "choices": [choice]}
        await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


if __name__ == "__main__":
    chosen = parse_arguments()
    web.run_app(FakeVllm(chosen).app(), host=chosen.host, port=chosen.port, print=None, handler_cancellation=True)
