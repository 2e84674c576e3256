"""The runner's ASGI application for a voice: `POST /speak` takes text and answers with audio.

The request is JSON in the header `x-eardrum-speech`; the body is the text in UTF-8, which may still be arriving when the first
audio is sent. The answer is a sequence of messages, each a line of JSON: `{"begun": {"size"}}`, any number of `{"audio": N}`
followed by N bytes, and last `{"summary": {...}}` or `{"error": {...}}`. Hanging up cancels the request.
"""

from __future__ import annotations

import asyncio
import json
import logging
from codecs import getincrementaldecoder
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse

from eardrum.concurrency import Channel, run_alongside, run_until_first
from eardrum.errors import EardrumError, EmptyTextError, InvalidRequestError
from eardrum.request_ids import RAW_REQUEST_ID_HEADER, set_request_id
from eardrum.runner.app import Receive, Scope, Send, get_header, trace_request
from eardrum.runner.fair_queue import ServiceClass
from eardrum.runner.idle import IdleWork
from eardrum.runner.speech_encoder import SpeechEncoder
from eardrum.runner.synthesizer import SpeechSynthesizer, SynthesizedSentence
from eardrum.speech import SpeechBegun, SpeechRequest, SpeechSummary, check_script
from eardrum.spoken_text import SentenceCutter

log = logging.getLogger(__name__)

SENTENCES_AHEAD = 4
"""Sentences of a request that may wait, be in synthesis, or wait to be sent: a client that reads slowly fills no memory."""

PIECE_BYTES = 1 << 18
"""Bytes of audio in one message."""


class SpeechApp:
    """The ASGI application around one loaded voice model."""

    def __init__(self, synthesizer: SpeechSynthesizer, idle_work: IdleWork | None = None):
        self._synthesizer = synthesizer
        self._capabilities = synthesizer.engine.capabilities
        self._idle_work = idle_work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            return
        set_request_id(get_header(scope, RAW_REQUEST_ID_HEADER))
        route = (scope["path"], scope["method"])
        if route == ("/speak", "POST"):
            with self._idle_work.hold_off() if self._idle_work else nullcontext(), trace_request(scope, "speak"):
                await self._answer(scope, receive, send)
        elif route == ("/health", "GET"):
            await JSONResponse(self.describe_health())(scope, receive, send)
        else:
            await PlainTextResponse("Not found", 404)(scope, receive, send)

    def describe_health(self) -> dict[str, Any]:
        """Describe the model, for `GET /health`."""
        return {"status": "ok", "capabilities": self._capabilities.to_json()}

    def shut_down(self) -> None:
        """Requests end by themselves; there are no sessions."""

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send messages. If the work fails, the last one is the error."""
        headers = [(b"content-type", b"application/octet-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            job = SpeechJob(self._synthesizer, _parse_request(scope))
            try:
                await run_until_first(run_alongside(job.write(send), job.submit()), job.read(receive))
            finally:
                job.cancel()
        except EardrumError as error:
            await send(_build_message("error", error.to_json()))
        except Exception as error:
            log.exception("The model failed on a text.")
            failed = EardrumError(f"The model failed on this text: {error}. See its log: `eardrum logs MODEL`.")
            await send(_build_message("error", failed.to_json()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class SpeechJob:
    """One request: `read` takes the text, `submit` queues its sentences for the engine, `write` sends their audio."""

    def __init__(self, synthesizer: SpeechSynthesizer, request: SpeechRequest):
        """Prepare the job.

        Raises:
            InvalidRequestError: the model has no such voice, or the format no such sample rate.
        """
        self._synthesizer = synthesizer
        self._request = request
        self._voice, self._language = self._choose_voice()
        self._encoder = SpeechEncoder(request, synthesizer.engine.sample_rate)
        self._id = synthesizer.allocate_request_id()
        self._texts = Channel[str](0)
        """Sentences that are not queued yet. There is no limit: the gateway limits the text."""
        self._sentences = Channel[Future[SynthesizedSentence]](SENTENCES_AHEAD - 1)
        self._characters = self._count = 0
        self._queue_s = self._synthesis_s = 0.0
        self._has_begun = False

    def _choose_voice(self) -> tuple[str, str]:
        voices = self._synthesizer.engine.capabilities.voices
        wanted = self._request.voice or voices[0][0]
        for voice, language in voices:
            if voice == wanted:
                return voice, language
        listed = ", ".join(voice for voice, _ in voices)
        raise InvalidRequestError(f"This model has no voice {wanted!r:.80}, only {listed}.", param="voice")

    def cancel(self) -> None:
        """Drop what is not synthesized yet."""
        self._sentences.discard()
        self._synthesizer.cancel(self._id)

    async def read(self, receive: Receive) -> None:
        """Read the text to its end, then wait until the client hangs up.

        The text is read at once, however long its synthesis takes: otherwise hanging up would be noticed only after it.
        """
        cutter, decoder = SentenceCutter(), getincrementaldecoder("utf-8")(errors="replace")
        while (message := await receive())["type"] == "http.request":
            body, more = message.get("body", b""), message.get("more_body", False)
            found = cutter.feed(decoder.decode(body, final=not more))
            for sentence in found if more else found + cutter.finish():
                self._texts.send_nowait(sentence)
            if not more:
                self._texts.close()

    async def submit(self) -> None:
        """Queue the sentences for the engine; waits while enough are queued.

        Raises:
            UnspeakableTextError: the voice cannot read a sentence, or there is nothing to speak.
        """
        async for sentence in self._texts:
            check_script(sentence, self._language, self._voice)
            rank = ServiceClass.FILE if self._count else ServiceClass.CLIP
            if self._request.bulk:
                rank = ServiceClass.BULK
            self._count += 1
            self._characters += len(sentence)
            await self._sentences.send(self._synthesizer.submit(self._id, sentence, self._voice, self._request.speed, rank))
        if not self._count:
            raise EmptyTextError("The text holds nothing that can be spoken: send letters or digits in `input`.")
        self._sentences.close()

    async def write(self, send: Send) -> None:
        """Send the audio of each sentence as it comes, and the summary."""
        async for future in self._sentences:
            sentence = await asyncio.wrap_future(future)
            self._queue_s = max(self._queue_s, sentence.queue_s)
            self._synthesis_s += sentence.synthesis_s
            await self._send_audio(await asyncio.to_thread(self._encoder.encode, sentence.audio), send)
        last = await asyncio.to_thread(self._encoder.finish)
        await self._send_audio(last, send, size=len(last) if self._request.is_whole else None)
        summary = SpeechSummary(self._characters, self._count, self._encoder.duration, self._queue_s, self._synthesis_s)
        await send(_build_message("summary", summary.to_json()))

    async def _send_audio(self, audio: bytes, send: Send, size: int | None = None) -> None:
        if not audio:
            return
        if not self._has_begun:
            self._has_begun = True
            await send(_build_message("begun", SpeechBegun(size).to_json()))
        for piece in _split_bytes(audio):
            await send(_build_message("audio", len(piece), piece))


def _split_bytes(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    return (bytes(view[at : at + PIECE_BYTES]) for at in range(0, len(data), PIECE_BYTES))


def _parse_request(scope: Scope) -> SpeechRequest:
    try:
        return SpeechRequest.from_json(json.loads(get_header(scope, b"x-eardrum-speech") or "{}"))
    except ValueError as error:
        raise InvalidRequestError(f"The header x-eardrum-speech is not a request in JSON: {error}") from error


def _build_message(name: str, content: Any, payload: bytes = b"") -> dict[str, Any]:
    line = json.dumps({name: content}).encode() + b"\n"
    return {"type": "http.response.body", "body": line + payload, "more_body": True}
