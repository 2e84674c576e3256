"""A fake whisper-server: behaves as whisper.cpp's was seen to, and hears with a model of Eardrum's.

    python tests/programs/fake_whisper_server.py --port 5800 [--inference-path /v1/audio/transcriptions]

Seen: whisper.cpp 1.9.3. One request at a time; wav, mp3 and flac by content; words are tokens; all 400s are "Invalid request".
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import embedded_model
from aiohttp import web

from eardrum.api import transcript_formats
from eardrum.errors import EardrumError
from eardrum.languages import get_language_name
from eardrum.transcription import Segment, SpeechTask, TranscriptionRequest, Word

READS = (b"RIFF", b"fLaC", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")


def parse_arguments() -> argparse.Namespace:
    """Those of whisper-server that matter to a gateway."""
    parser = argparse.ArgumentParser(description=__doc__)
    embedded_model.add_arguments(parser)
    parser.add_argument("--request-path", default="")
    parser.add_argument("--inference-path", default="/inference")
    parser.add_argument("--convert", action="store_true")
    parser.add_argument("-l", dest="language", default="en")
    parser.add_argument("-nt", dest="no_timestamps", action="store_true")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds a request takes besides")
    return parser.parse_args()


class FakeWhisperServer:
    """The server."""

    def __init__(self, habits: argparse.Namespace):
        self._habits = habits
        self._one_at_a_time = asyncio.Lock()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30, middlewares=[_overwrite_errors])
        root, path = self._habits.request_path, self._habits.inference_path
        app.router.add_get(f"{root}/", self.page)
        app.router.add_get(f"{root}/health", self.health)
        app.router.add_post(root + path, self.inference)
        app.cleanup_ctx.append(self._run_model)
        return app

    async def _run_model(self, _: web.Application) -> AsyncIterator[None]:
        async with embedded_model.open_model(self._habits) as self._model:
            yield

    async def page(self, _: web.Request) -> web.Response:
        return web.Response(text="<html><head><title>Whisper.cpp Server</title></head></html>", content_type="text/html")

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def inference(self, request: web.Request) -> web.Response:
        fields, file = await embedded_model.read_form(request)
        form = {name: values[-1] for name, values in fields.items()}
        try:
            temperature = float(form.get("temperature", "0"))
        except ValueError:
            return web.Response(status=500, text="stof")
        if not file or (not file.startswith(READS) and not self._habits.convert):
            raise web.HTTPBadRequest
        translate = form.get("translate") == "true"
        language = form.get("language", self._habits.language)
        asked = TranscriptionRequest(
            task=SpeechTask.TRANSLATE if translate and self._model.translates else SpeechTask.TRANSCRIBE,
            language=None if language == "auto" else language,
            prompt=form.get("prompt", ""),
            temperature=temperature,
        )
        async with self._one_at_a_time:
            await asyncio.sleep(self._habits.slow)
            try:
                segments, summary = await self._model.transcribe(file, asked)
            except EardrumError:
                if self._habits.convert:
                    return web.json_response({"error": "FFmpeg conversion failed."}, status=500)
                raise web.HTTPBadRequest from None
        answer = _build_answer(form.get("response_format", "json"), segments, summary.language, summary.duration, translate)
        return _remove_times(answer) if self._habits.no_timestamps else answer


def _build_answer(form: str, segments: list[Segment], language: str, duration: float, translate: bool) -> web.Response:
    text = "".join(f" {segment.text}\n" for segment in segments)
    match form:
        case "text":
            return web.Response(text=text, content_type="text/html")
        case "srt":
            return web.Response(text=transcript_formats.format_srt(segments), content_type="application/x-subrip")
        case "vtt":
            return web.Response(text=transcript_formats.format_vtt(segments), content_type="text/vtt")
        case "verbose_json":
            return web.json_response({
                "task": "translate" if translate else "transcribe",
                "language": get_language_name(language),
                "duration": duration,
                "text": text,
                "segments": [_build_segment(number, segment) for number, segment in enumerate(segments)],
                "detected_language": get_language_name(language),
                "detected_language_probability": 0.98,
                "language_probabilities": {language: 0.98},
            })  # fmt: skip
    return web.json_response({"text": text})


def _remove_times(answer: web.Response) -> web.Response:
    """With -nt segments and tokens are told without `start`, `end` and `t_dtw`."""
    if answer.content_type != "application/json":
        return answer
    said = json.loads(answer.text or "")
    for segment in said.get("segments", ()):
        for timed in (segment, *segment["words"]):
            for name in ("start", "end", "t_dtw"):
                timed.pop(name, None)
    return web.json_response(said)


def _build_segment(number: int, segment: Segment) -> dict[str, Any]:
    words = [
        {"word": text, "start": word.start, "end": word.end, "t_dtw": -1, "probability": word.probability}
        for word in segment.words
        for text in _split_tokens(word)
    ]
    return {
        "id": number,
        "text": f" {segment.text}",
        "start": segment.start,
        "end": segment.end,
        "tokens": segment.tokens,
        "words": words,
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "no_speech_prob": segment.no_speech_prob,
    }


def _split_tokens(word: Word) -> list[str]:
    """A word as a model has it: parts, of which the first begins with a space."""
    text = f" {word.word.strip()}"
    half = max(2, len(text) // 2)
    return [part for part in (text[:half], text[half:]) if part]


@web.middleware
async def _overwrite_errors(request: web.Request, handler: Any) -> web.StreamResponse:
    """It overwrites what went before: every 400 says the same, everything else but 500 is a 404."""
    try:
        return await handler(request)
    except web.HTTPBadRequest:
        return web.Response(status=400, text="Invalid request")
    except web.HTTPException:
        return web.Response(status=404, text=f"File Not Found ({request.path})")


if __name__ == "__main__":
    chosen = parse_arguments()
    web.run_app(FakeWhisperServer(chosen).app(), host=chosen.host, port=chosen.port, print=None, handler_cancellation=True)
