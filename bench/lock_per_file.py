"""A server as its peers are: `python -m bench.lock_per_file PORT MODEL`.

The upload goes into a file of its own, and faster-whisper transcribes it under one lock; who comes meanwhile waits. What
would make it worse than it need be is left out: requests wait without blocking the event loop.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import psutil
import uvicorn
from faster_whisper import WhisperModel  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bench.children import run_child
from bench.runners import LoadOrder
from bench.server import find_free_port, wait_until_healthy
from bench.stock import PLAIN


def create_app(model: WhisperModel) -> Starlette:
    """The server around a loaded model."""
    lock = Lock()

    def transcribe_under_lock(fields: FormData, task: str) -> dict[str, Any]:
        upload = fields["file"]
        assert isinstance(upload, UploadFile)
        words = fields.get("timestamp_granularities[]") == "word"
        with tempfile.NamedTemporaryFile() as file:
            shutil.copyfileobj(upload.file, file)
            file.flush()
            with lock:
                language = fields.get("language")
                segments, _ = model.transcribe(file.name, language=language, task=task, word_timestamps=words, **PLAIN)
                found = list(segments)
        said = [word.word.strip() for segment in found for word in segment.words or ()]
        return {"text": " ".join(segment.text.strip() for segment in found), "words": said}

    async def answer(request: HttpRequest, task: str) -> Response:
        async with request.form() as fields:
            return JSONResponse(await run_in_threadpool(transcribe_under_lock, fields, task))

    async def transcribe(request: HttpRequest) -> Response:
        return await answer(request, "transcribe")

    async def translate(request: HttpRequest) -> Response:
        return await answer(request, "translate")

    async def health(_: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/audio/transcriptions", transcribe, methods=["POST"]),
            Route("/v1/audio/translations", translate, methods=["POST"]),
            Route("/health", health),
        ]
    )


@contextmanager
def run_lock_per_file(model: LoadOrder) -> Iterator[tuple[int, psutil.Process]]:
    """Such a server: its port and its process."""
    port = find_free_port()
    command = ["-m", "bench.lock_per_file", str(port), str(model.source), str(model.options["compute_type"])]
    with run_child(command) as process:
        wait_until_healthy(port, process)
        yield port, psutil.Process(process.pid)


if __name__ == "__main__":
    whisper = WhisperModel(sys.argv[2], device="cpu", compute_type=sys.argv[3])
    uvicorn.run(create_app(whisper), port=int(sys.argv[1]), log_level="warning")
