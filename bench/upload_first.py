"""A server as they are usually written: `python -m bench.upload_first PORT`.

Takes the whole upload, decodes all of it, finds the speech in all of it, then begins to transcribe. Sends the
first segment only, because nobody measures the others.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator

import uvicorn
from faster_whisper.audio import decode_audio  # type: ignore[import-untyped]
from faster_whisper.vad import get_speech_timestamps  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bench.runners import WEIGHTS
from eardrum.engines.base import Engine, Window
from eardrum.runner.__main__ import load_engine
from eardrum.transcription import SAMPLE_RATE, TranscriptionRequest


def create_app(engine: Engine) -> Starlette:
    """The server around a loaded engine."""

    async def transcribe(request: HttpRequest) -> Response:
        async with request.form() as fields:
            upload = fields["file"]
            assert isinstance(upload, UploadFile)
            with tempfile.NamedTemporaryFile() as file:
                await run_in_threadpool(shutil.copyfileobj, upload.file, file)
                file.flush()
                segments = await run_in_threadpool(_transcribe_first, engine, file.name)
        return StreamingResponse(segments, media_type="text/event-stream")

    async def health(_: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/v1/audio/transcriptions", transcribe, methods=["POST"]), Route("/health", health)])


def _transcribe_first(engine: Engine, path: str) -> Iterator[str]:
    audio = decode_audio(path)
    spoken = get_speech_timestamps(audio)[0]
    longest = int(engine.capabilities.max_window_s * SAMPLE_RATE)
    cut = audio[spoken["start"] : spoken["end"]][:longest]
    (hearing,) = engine.transcribe([Window(cut, 0.0, 1.0, (0.0, len(cut) / SAMPLE_RATE), TranscriptionRequest())])
    text = hearing.segments[0].text
    return iter([f"data: {json.dumps({'type': 'transcript.text.delta', 'delta': text})}\n\n"])


if __name__ == "__main__":
    uvicorn.run(create_app(load_engine("moonshine", WEIGHTS, {})), port=int(sys.argv[1]), log_level="warning")
