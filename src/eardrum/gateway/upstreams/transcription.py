"""Transcribes with an external server: whisper-server, vLLM, llama-server, another Eardrum, anything like OpenAI's API.

The audio is sent in a form while it arrives. The response becomes the same events that runners send, so every response format
works with every server.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from eardrum import bounded_json
from eardrum.errors import BusyError, EardrumError, InvalidRequestError, UnsupportedFeatureError, UpstreamDiedError, UpstreamError
from eardrum.gateway.spool import AudioSource
from eardrum.gateway.upstreams import transcription_request
from eardrum.gateway.upstreams.transcription_request import (
    FormRecording,
    RequestPlan,
    RequestStrategy,
    TranscriptionForm,
    open_recording,
)
from eardrum.openai_replies import SseDecoder, UpstreamReply
from eardrum.openai_transcripts import QWEN_PREFIX, UpstreamTranscript, clean_text, find_language_code
from eardrum.text import choose_separator, join_texts
from eardrum.transcription import TextDelta, TranscriptionEvent, TranscriptionRequest, TranscriptionSummary

MAX_ANSWER_BYTES = 128 << 20
"""Largest response: a day with all its words takes about half of it."""
LARGE_BYTES = 1 << 20
"""Larger responses are parsed in a thread, because they would block the event loop."""
MAX_QUOTED_LENGTH = 300
"""Longest message of a server that is passed on."""
CLIENT_ERRORS = (400, 413, 415, 422)
"""Statuses that blame the request."""


class TranscriptionResponse(Struct, frozen=True):
    """A response whose body is still arriving."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


FormSender = Callable[[str, TranscriptionForm], AbstractAsyncContextManager[TranscriptionResponse]]
"""Sends a form to a path. Leaving the context early hangs up."""


@dataclass(slots=True)
class TranscriptionOutcome:
    """The result of the attempts of a request so far."""

    events: list[TranscriptionEvent] | None = None
    failure: EardrumError | None = None

    def get_result(self) -> list[TranscriptionEvent]:
        """Return the events.

        Raises:
            EardrumError: every attempt failed.
        """
        if self.events is None:
            assert self.failure
            raise self.failure
        return self.events


class UpstreamTranscriber:
    """Gets transcripts from one server. `model` is the server's name for its model."""

    def __init__(self, post: FormSender, address: str, model: str, strategy: RequestStrategy, secrets: tuple[str, ...] = ()):
        self._send_form = post
        self._address = address
        self.model = model
        self._strategy = strategy
        self._secrets = secrets

    async def transcribe(self, request: TranscriptionRequest, audio: AudioSource) -> AsyncGenerator[TranscriptionEvent, None]:
        """Send the audio as it arrives and yield events as they arrive. Closing the iterator hangs up.

        If the server refuses the form of the request, it gets another form, with the audio from the start.

        Raises:
            UpstreamDiedError: the server cannot be reached, or the connection broke.
            InvalidRequestError: the server blames the request.
            UnsupportedFeatureError: the server does not support the request.
            UpstreamError: the server failed, or its response is not a transcript.
        """
        plan, outcome = self._strategy.plan_first(request), TranscriptionOutcome()
        while plan:
            file = await open_recording(audio, raw_pcm=request.raw_pcm)
            form = TranscriptionForm(transcription_request.build_fields(plan, request, self.model), file)
            async with self._send_form(plan.route.path, form) as answered:
                self._check_track(request, answered)
                if answered.status == 200 and _parse_media_type(answered) == "text/event-stream":
                    self._strategy.record_success(plan, request, silent=True)
                    async with aclosing(self._stream_events(answered, request, file)) as events:
                        async for event in events:
                            yield _add_track(event, answered.headers)
                    return
                reply = await self._read_reply(plan, answered)
            plan = await self._handle_reply(plan, reply, request, file, outcome)
        for event in outcome.get_result():
            yield event

    async def _handle_reply(
        self,
        plan: RequestPlan,
        reply: UpstreamReply,
        request: TranscriptionRequest,
        file: FormRecording,
        outcome: TranscriptionOutcome,
    ) -> RequestPlan | None:
        """Handle a complete response. Return the plan of the next attempt, if there is one."""
        if reply.is_error:
            if not (outcome.failure and transcription_request.is_route_missing(reply)):
                outcome.failure = self._make_refusal_error(reply)
            return self._strategy.plan_after_refusal(plan, reply, request)
        try:
            answer = await self._parse_reply(plan, reply, request)
        except UpstreamError as error:
            outcome.failure = outcome.failure or error
            return self._strategy.plan_alternative(plan, request)
        if answer.is_empty and outcome.events is not None:
            return None  # both attempts found no text
        if len(reply.body) > LARGE_BYTES:
            outcome.events = await asyncio.to_thread(self._build_events, answer, request, file)
        else:
            outcome.events = self._build_events(answer, request, file)
        outcome.events = [_add_track(event, reply.headers) for event in outcome.events]
        if answer.is_empty and self._strategy.doubts_silence(plan) and (other := self._strategy.plan_alternative(plan, request)):
            return other
        self._strategy.record_success(plan, request, silent=answer.is_empty)
        return None

    def _check_track(self, request: TranscriptionRequest, answered: TranscriptionResponse) -> None:
        """Check that the server transcribed the requested audio track: most servers silently use another one."""
        if request.audio_track and answered.status == 200 and _parse_track(answered.headers) != request.audio_track:
            raise UnsupportedFeatureError(
                f"The server at {self._address} cannot choose an audio track: send a file with only that track.",
                param="audio_track",
            )

    async def _read_reply(self, plan: RequestPlan, answered: TranscriptionResponse) -> UpstreamReply:
        body = bytearray()
        async for chunk in answered.body:
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise self._make_error(f"sends more than {MAX_ANSWER_BYTES >> 20} MiB as an answer")
        return UpstreamReply(plan.route.path, answered.status, answered.headers, bytes(body))

    async def _parse_reply(self, plan: RequestPlan, reply: UpstreamReply, request: TranscriptionRequest) -> UpstreamTranscript:
        kind = reply.headers.get("content-type", "")
        try:
            if len(reply.body) > LARGE_BYTES:
                answer = await asyncio.to_thread(UpstreamTranscript.parse, reply.body, kind)
            else:
                answer = UpstreamTranscript.parse(reply.body, kind)
        except ValueError as error:
            what = f"answered with {kind or 'no content type'} that is no transcript in JSON"
            raise self._make_error(f"{what}: {self._quote_message(reply)}") from error
        if not plan.route.certain and answer.task != request.task:
            raise UnsupportedFeatureError(
                f"The server at {self._address} has no route for translations, and its answer does not state that it translated. "
                "If it does so by the field `translate`, set `translations: ''` in the model's options.",
                param="model",
            )
        return answer

    def _build_events(
        self, answer: UpstreamTranscript, request: TranscriptionRequest, file: FormRecording
    ) -> list[TranscriptionEvent]:
        """Build the events of a complete response."""
        seconds = answer.estimate_duration(file.file_type.seconds)
        segments = answer.to_segments((0.0, seconds), seconds or math.inf)
        if request.words and segments and not request.partial and not any(segment.words for segment in segments):
            message = f"The server at {self._address} gives times per segment at most, not per word."
            raise UnsupportedFeatureError(message, param="timestamp_granularities")
        for segment in segments:
            segment.text = " ".join(segment.text.split())  # whisper-server breaks lines where segments end
        seconds = seconds or max((segment.end for segment in segments), default=0.0)
        return [*segments, TranscriptionSummary(answer.detected_language or request.language or "", seconds)]

    async def _stream_events(
        self, answered: TranscriptionResponse, request: TranscriptionRequest, file: FormRecording
    ) -> AsyncGenerator[TranscriptionEvent, None]:
        transcript = StreamedTranscript()
        try:
            async for event in _decode_events(answered.body):
                if event.get("error") or event.get("object") == "error":
                    raise self._make_refusal_error(UpstreamReply("", 200, answered.headers, _dump_json(event)))
                if text := transcript.add_event(event):
                    yield TextDelta(text, *_read_span(event))
                if transcript.is_done:
                    break
            if text := transcript.finish():
                yield TextDelta(text)
            final_events = self._build_events(transcript.build_transcript(), request, file)
        except (ValueError, KeyError, TypeError) as error:
            raise self._make_error(f"sends a stream without a valid transcript: {error}") from error
        if not transcript.is_done:
            raise UpstreamDiedError(f"The server at {self._address} ended its stream before the transcript was complete.")
        for final_event in final_events:
            yield final_event

    def _make_refusal_error(self, reply: UpstreamReply) -> EardrumError:
        said = self._quote_message(reply).rstrip(".")
        status = _find_status(reply)
        if status in CLIENT_ERRORS:
            return InvalidRequestError(f"The server at {self._address} refuses this: {said}.{_find_hint(said)}")
        if status in (429, 503):
            message = f"The server at {self._address} is busy ({status}): {said}."
            return BusyError(message, retry_after=reply.retry_after or 1.0)
        if status in (401, 403):
            return self._make_error(f"answered {status}: {said}", " It requires another key than the one that was sent.")
        if status == 404:
            return self._make_error(
                f"answered 404 on {reply.path}: {said}",
                " Check the model's `use_model_name`, and `transcriptions` in its options.",
            )
        return self._make_error(f"answered {status}: {said}")

    def _make_error(self, what: str, hint: str = "") -> UpstreamError:
        return UpstreamError(f"The server at {self._address} {what}.{hint}")

    def _quote_message(self, reply: UpstreamReply) -> str:
        said = reply.message
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said if len(said) <= MAX_QUOTED_LENGTH else f"{said[:MAX_QUOTED_LENGTH]}…"


def _parse_track(headers: Mapping[str, str], name: str = "x-eardrum-audio-track") -> int:
    """Return the audio track that another Eardrum reports; 0 if the server reports none."""
    value = headers.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0


def _add_track(event: TranscriptionEvent, headers: Mapping[str, str]) -> TranscriptionEvent:
    if not isinstance(event, TranscriptionSummary):
        return event
    return replace(event, audio_track=_parse_track(headers), audio_tracks=_parse_track(headers, "x-eardrum-audio-tracks"))


def _parse_media_type(answered: TranscriptionResponse) -> str:
    return answered.headers.get("content-type", "").partition(";")[0].strip().lower()


def _dump_json(event: object) -> bytes:
    return json.dumps(event).encode()


def _find_status(reply: UpstreamReply) -> int:
    """Return the status; if it is 200, the one inside the error."""
    if reply.status != 200:
        return reply.status
    answer = reply.json
    for part in (answer.get("error"), answer):
        if isinstance(part, dict) and isinstance(code := part.get("code"), int):
            return code
    return 500


def _find_hint(said: str) -> str:
    if said == "Invalid request":  # whisper-server sends this message for every error
        return " If it is whisper-server: without --convert it reads wav, mp3 and flac only."
    return ""


async def _decode_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of server-sent events; `[DONE]` is an empty one.

    Raises:
        ValueError: an event is not a JSON object.
        UpstreamError: an event is too long.
    """
    decoder = SseDecoder()
    async for chunk in chunks:
        for data in decoder.feed(chunk):
            for event in _parse_events(data):
                yield event
    for data in decoder.flush():
        for event in _parse_events(data):
            yield event


def _parse_events(data: str) -> list[dict[str, Any]]:
    """Parse the data of one event, or of several that a server sent without blank lines between them."""
    try:
        return [_parse_event(data)]
    except ValueError:
        if "\n" not in data:
            raise
        return [_parse_event(line) for line in data.splitlines()]


def _parse_event(data: str) -> dict[str, Any]:
    if data.strip() == "[DONE]":
        return {}
    event = bounded_json.parse_upstream_json(data)
    if not isinstance(event, dict):
        raise ValueError("an event that is no object")
    return event


QWEN_MARK = "language "
"""Start of the prefix that Qwen3-ASR puts before a text."""
MAX_MARK_LENGTH = 60
"""Longest prefix; a longer one is text."""


@dataclass(slots=True)
class StreamedTranscript:
    """The transcript of a stream so far: OpenAI's `transcript.text.delta` events, chunks of vLLM, or an answer per segment."""

    text: str = ""
    is_done: bool = False
    """The end of the stream has arrived."""
    language: str = ""
    """The language in the prefix of the text."""
    _last: UpstreamTranscript | None = None
    """The last event, for the fields besides the text."""
    _parts: list[UpstreamTranscript] = field(default_factory=list)
    """Segments that came one by one, each as a separate answer."""
    _undecided: str | None = ""
    """The start of the text while it may be a prefix; None afterwards."""

    def add_event(self, event: dict[str, Any]) -> str:
        """Add the next event and return the text that it adds.

        Raises:
            ValueError: it cannot be read.
        """
        kind = event.get("type") or event.get("object")
        if not event or kind == "transcript.text.done":
            self.is_done = True
            self._last = UpstreamTranscript.model_validate({"text": "", **event}) if event else self._last
            return ""
        if kind == "transcription.chunk":
            deltas = (choice.get("delta") or {} for choice in event.get("choices") or ())
            return self._add_text("".join(str(delta.get("content") or "") for delta in deltas))
        if kind == "transcript.text.delta" or "delta" in event:
            return self._add_text(str(event.get("delta") or ""))
        if kind == "transcript.text.segment":
            self._parts.append(UpstreamTranscript.model_validate({"segments": [event]}))
        elif not kind and ("text" in event or "segments" in event):  # faster-whisper-server sends an answer per segment
            self._parts.append(UpstreamTranscript.model_validate(event))
            return self._add_part(self._parts[-1])
        return ""

    def finish(self) -> str:
        """The text that the end adds: the text held back, and any that only the last event has.

        A stream of parts has no final event.
        """
        self.is_done = self.is_done or bool(self._parts)
        rest = self._add_text("", last=True)
        final_text = clean_text(self._last.text)[0] if self._last else ""
        if final_text.startswith(self.text) and len(final_text) > len(self.text):
            rest += final_text[len(self.text) :]
            self.text = final_text
        return rest

    def build_transcript(self) -> UpstreamTranscript:
        """Build the whole transcript, as if it had come in one response."""
        last, parts = self._last or UpstreamTranscript.model_validate({"text": ""}), self._parts
        language = last.language or self.language or next((part.language for part in parts if part.language), "")
        whole: dict[str, Any] = {"text": self.text or last.text, "language": language}
        if not last.segments and parts:
            segments = [segment for part in parts for segment in part.segments or ()]
            words = [word for part in parts for word in part.words or ()]
            whole |= {"segments": segments, "words": words, "duration": last.duration or max(part.duration for part in parts)}
        return last.model_copy(update=whole)

    def _add_part(self, part: UpstreamTranscript) -> str:
        text = part.text.strip() or join_texts(segment.text for segment in part.segments or ())
        return self._add_text(choose_separator(self.text, text) + text)

    def _add_text(self, text: str, *, last: bool = False) -> str:
        if self._undecided is not None:
            text = self._undecided + text
            self._undecided = None if last or not _may_be_mark(text) else text
            if self._undecided is not None:
                return ""
            if marked := QWEN_PREFIX.match(text):
                text, self.language = text[marked.end() :], find_language_code(marked["language"].strip())
        if not self.text:
            text = text.lstrip()
        self.text += text
        return text


def _read_span(event: dict[str, Any]) -> tuple[float, float] | tuple[None, None]:
    """Read the times that Eardrum gives with a delta; other servers give none."""
    start, end = event.get("start"), event.get("end")
    if isinstance(start, int | float) and isinstance(end, int | float) and 0 <= start <= end < math.inf:
        return float(start), float(end)
    return None, None


def _may_be_mark(text: str) -> bool:
    text = text.lstrip()
    if QWEN_PREFIX.match(text) or len(text) > MAX_MARK_LENGTH:
        return False
    return QWEN_MARK.startswith(text[: len(QWEN_MARK)])
