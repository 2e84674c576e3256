"""A small server around a library, as people write them: `python -m bench.peers.stand_in KIND PORT MODEL THREADS`.

It runs in the peers' environment, so it imports nothing of this project. KIND is `plain` (faster-whisper's `WhisperModel`,
requests beside each other, as its threads allow), `batched` (its `BatchedInferencePipeline`, a new one for each request, as
speaches does), `locked` (the upload in a file, `WhisperModel` under one lock, as whisper-asr-webservice does) or `ggml`
(whisper.cpp under one lock: its context takes one request at a time).

With `script` in place of KIND and a recording in place of PORT there is no server: load, transcribe, print, end.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from threading import Lock
from typing import IO, Any

Transcriber = Callable[[IO[bytes], "str | None"], Iterator[str]]
"""From an upload and its language to the texts of its segments, as they come."""

BEAM, BATCH = 5, 8
"""The beam is everybody's default but whisper.cpp's; 8 rows are speaches' and the pipeline's own default."""


def load_plain(model: str, threads: int) -> Transcriber:
    """faster-whisper with its defaults and its VAD."""
    whisper = _load_model(model, threads)

    def transcribe(upload: Any, language: str | None) -> Iterator[str]:
        for segment in whisper.transcribe(upload, language=language, beam_size=BEAM, vad_filter=True)[0]:
            yield segment.text

    return transcribe


def load_batched(model: str, threads: int) -> Transcriber:
    """Its batched pipeline, with the timestamps that it leaves out by default."""
    from faster_whisper import BatchedInferencePipeline  # type: ignore[import-untyped]  # noqa: PLC0415

    whisper = _load_model(model, threads)

    def transcribe(upload: Any, language: str | None) -> Iterator[str]:
        settings = {"beam_size": BEAM, "batch_size": BATCH, "vad_filter": True, "without_timestamps": False}
        for segment in BatchedInferencePipeline(whisper).transcribe(upload, language=language, **settings)[0]:
            yield segment.text

    return transcribe


def load_locked(model: str, threads: int) -> Transcriber:
    """faster-whisper behind one lock, reading a file of its own."""
    plain, lock = load_plain(model, threads), Lock()

    def transcribe(upload: IO[bytes], language: str | None) -> Iterator[str]:
        with tempfile.NamedTemporaryFile() as file:
            shutil.copyfileobj(upload, file)
            file.flush()
            with lock:
                yield from plain(open(file.name, "rb"), language)  # noqa: PTH123, SIM115 -- ended with the request

    return transcribe


def load_ggml(model: str, threads: int) -> Transcriber:
    """whisper.cpp through pywhispercpp, audio decoded as for the others. It has no weights of a VAD."""
    from faster_whisper.audio import decode_audio  # type: ignore[import-untyped]  # noqa: PLC0415
    from pywhispercpp.model import Model  # type: ignore[import-not-found]  # noqa: PLC0415

    quiet = {"print_progress": False, "print_realtime": False, "print_timestamps": False}
    beam = {"beam_size": BEAM, "patience": -1.0}
    whisper = Model(model, params_sampling_strategy=1, n_threads=threads, beam_search=beam, **quiet)
    lock = Lock()

    def transcribe(upload: IO[bytes], language: str | None) -> Iterator[str]:
        audio = decode_audio(upload)
        with lock:
            yield from [segment.text for segment in whisper.transcribe(audio, language=language or "auto")]

    return transcribe


def _load_model(model: str, threads: int) -> Any:
    from faster_whisper import WhisperModel  # noqa: PLC0415

    return WhisperModel(model, device="cpu", compute_type="int8", cpu_threads=threads)


LOADERS = {"plain": load_plain, "batched": load_batched, "locked": load_locked, "ggml": load_ggml}


def create_app(transcribe: Transcriber) -> Any:
    """A server with OpenAI's route, whole and as a stream of events."""
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.concurrency import run_in_threadpool  # noqa: PLC0415
    from starlette.requests import Request  # noqa: PLC0415
    from starlette.responses import JSONResponse, Response, StreamingResponse  # noqa: PLC0415
    from starlette.routing import Route  # noqa: PLC0415

    async def answer(request: Request) -> Response:
        fields = await request.form()
        texts = transcribe(fields["file"].file, str(fields.get("language") or "") or None)  # type: ignore[union-attr]
        if fields.get("stream") == "true":
            return StreamingResponse(stream_events(texts), media_type="text/event-stream")
        said = await run_in_threadpool(lambda: join_texts(texts))
        return JSONResponse({"text": said})

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/v1/audio/transcriptions", answer, methods=["POST"]), Route("/health", health)])


def stream_events(texts: Iterator[str]) -> Iterator[str]:
    """OpenAI's events for the segments."""
    said = []
    for text in texts:
        said.append(text)
        yield f"data: {json.dumps({'type': 'transcript.text.delta', 'delta': text})}\n\n"
    yield f"data: {json.dumps({'type': 'transcript.text.done', 'text': join_texts(said)})}\n\n"


def join_texts(texts: Any) -> str:
    """Segments as one text."""
    return " ".join(text.strip() for text in texts)


def main() -> None:
    """Serve until the process is ended, or transcribe one file."""
    kind, place, model, threads = sys.argv[1:]
    if kind == "script":
        with open(place, "rb") as file:  # noqa: PTH123 -- as in a script
            print(join_texts(load_plain(model, int(threads))(file, "en")))
        return
    import uvicorn  # noqa: PLC0415

    uvicorn.run(create_app(LOADERS[kind](model, int(threads))), port=int(place), log_level="warning")


if __name__ == "__main__":
    main()
