"""Transcription by a foreign server: whisper-server, vLLM, llama-server, another Eardrum, whatever is like OpenAI's.

The audio goes there as it comes in, in a form. The answer is turned into what our own runners say, so that every format a client
may ask for can be had of every server.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace

from eardrum.errors import BusyError, EardrumError, InvalidRequestError, UnsupportedFeatureError, UpstreamDiedError, UpstreamError
from eardrum.gateway.spool import Source
from eardrum.gateway.upstreams import habits
from eardrum.gateway.upstreams.form import Form, Recording, recording
from eardrum.gateway.upstreams.habits import Habits, Plan
from eardrum.remote import stream
from eardrum.remote.answers import Answer
from eardrum.remote.refusal import Reply
from eardrum.remote.stream import Streamed
from eardrum.types import Delta, Event, Request, Summary

ANSWER_BYTES = 128 << 20
"""Largest answer that is read: a day with all its words is about half of it."""
LARGE_BYTES = 1 << 20
"""A larger one is read in a thread: it would hold up the event loop."""
QUOTED = 300
"""Characters of a server's message that are passed on."""
CLIENTS = (400, 413, 415, 422)
"""Statuses by which a server says that what it was sent is at fault."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The beginning of an answer."""

    status: int
    headers: Mapping[str, str]
    body: AsyncIterator[bytes]


Post = Callable[[str, Form], AbstractAsyncContextManager[Answered]]
"""Sends a form to a path. Leaving before the answer was read hangs up."""


@dataclass(slots=True)
class Outcome:
    """What has become of a request so far."""

    events: list[Event] | None = None
    failure: EardrumError | None = None

    def result(self) -> list[Event]:
        """What was heard.

        Raises:
            EardrumError: no way of asking has led to an answer.
        """
        if self.events is None:
            assert self.failure
            raise self.failure
        return self.events


class Transcription:
    """One server, asked for transcripts by the name it has for its model."""

    def __init__(self, post: Post, address: str, model: str, known: Habits, secrets: tuple[str, ...] = ()):
        self._post = post
        self._address = address
        self._model = model
        self._habits = known
        self._secrets = secrets

    async def transcribe(self, request: Request, audio: Source) -> AsyncGenerator[Event, None]:
        """Send the audio as it comes and yield events as they come, as a runner does. Closing the iterator hangs up.

        A server that refuses the way it is asked is asked in another way, with the audio from the start.

        Raises:
            UpstreamDiedError: it cannot be reached, or broke off.
            InvalidRequestError: it says that the request is at fault.
            UnsupportedFeatureError: it cannot do what is asked.
            UpstreamError: it fails, or answers with something else.
        """
        plan, outcome = self._habits.first(request), Outcome()
        while plan:
            file = await recording(audio, raw_pcm=request.raw_pcm)
            form = Form(habits.fields(plan, request, self._model), file)
            async with self._post(plan.way.path, form) as answered:
                self._check_track(request, answered)
                if answered.status == 200 and _media_type(answered) == "text/event-stream":
                    self._habits.learn(plan, request, silent=True)
                    async with aclosing(self._streamed(answered, request, file)) as events:
                        async for event in events:
                            yield _with_track(event, answered.headers)
                    return
                reply = await self._read(plan, answered)
            plan = await self._consider(plan, reply, request, file, outcome)
        for heard in outcome.result():
            yield heard

    async def _consider(self, plan: Plan, reply: Reply, request: Request, file: Recording, outcome: Outcome) -> Plan | None:
        """Take in a whole answer and return what to try next, if it is not the last word."""
        if reply.refused:
            if not (outcome.failure and habits.nothing_there(reply)):
                outcome.failure = self._refused(reply)
            return self._habits.after(plan, reply, request)
        try:
            answer = await self._understood(plan, reply, request)
        except UpstreamError as error:
            outcome.failure = outcome.failure or error
            return self._habits.instead(plan, request)
        if answer.empty and outcome.events is not None:
            return None  # it has heard nothing either way
        if len(reply.body) > LARGE_BYTES:
            outcome.events = await asyncio.to_thread(self._worded, answer, request, file)
        else:
            outcome.events = self._worded(answer, request, file)
        outcome.events = [_with_track(event, reply.headers) for event in outcome.events]
        if answer.empty and self._habits.doubts_silence(plan) and (other := self._habits.instead(plan, request)):
            return other
        self._habits.learn(plan, request, silent=answer.empty)
        return None

    def _check_track(self, request: Request, answered: Answered) -> None:
        """See that a server which was told an audio track has heard that one: most would hear another without a word."""
        if request.audio_track and answered.status == 200 and _track(answered.headers) != request.audio_track:
            raise UnsupportedFeatureError(
                f"The server at {self._address} does not choose between audio tracks: send the one that is meant alone.",
                param="audio_track",
            )

    async def _read(self, plan: Plan, answered: Answered) -> Reply:
        body = bytearray()
        async for chunk in answered.body:
            body += chunk
            if len(body) > ANSWER_BYTES:
                raise self._error(f"sends more than {ANSWER_BYTES >> 20} MiB as an answer")
        return Reply(plan.way.path, answered.status, answered.headers, bytes(body))

    async def _understood(self, plan: Plan, reply: Reply, request: Request) -> Answer:
        kind = reply.headers.get("content-type", "")
        try:
            if len(reply.body) > LARGE_BYTES:
                answer = await asyncio.to_thread(Answer.read, reply.body, kind)
            else:
                answer = Answer.read(reply.body, kind)
        except ValueError as error:
            what = f"answered with {kind or 'no content type'} that is no transcript in JSON"
            raise self._error(f"{what}: {self._quoted(reply)}") from error
        if not plan.way.certain and answer.task != request.task:
            raise UnsupportedFeatureError(
                f"The server at {self._address} has no route for translations, and does not say that it translated. "
                "If it does so by the field `translate`, set `translations: ''` in the model's options.",
                param="model",
            )
        return answer

    def _worded(self, answer: Answer, request: Request, file: Recording) -> list[Event]:
        """The events of a whole answer."""
        seconds = answer.seconds(file.kind.seconds)
        segments = answer.heard((0.0, seconds), seconds or math.inf)
        if request.words and segments and not request.partial and not any(segment.words for segment in segments):
            message = f"The server at {self._address} gives times per segment at most, not per word."
            raise UnsupportedFeatureError(message, param="timestamp_granularities")
        for segment in segments:
            segment.text = " ".join(segment.text.split())  # whisper-server breaks lines where segments end
        seconds = seconds or max((segment.end for segment in segments), default=0.0)
        return [*segments, Summary(answer.spoken or request.language or "", seconds)]

    async def _streamed(self, answered: Answered, request: Request, file: Recording) -> AsyncGenerator[Event, None]:
        heard = Streamed()
        try:
            async for event in stream.events(answered.body):
                if event.get("error") or event.get("object") == "error":
                    raise self._refused(Reply("", 200, answered.headers, _dumped(event)))
                if text := heard.take(event):
                    yield Delta(text)
                if heard.done:
                    break
            if text := heard.end():
                yield Delta(text)
            worded = self._worded(heard.answer(), request, file)
        except (ValueError, KeyError, TypeError) as error:
            raise self._error(f"sends a stream that is none of transcripts: {error}") from error
        if not heard.done:
            raise UpstreamDiedError(f"The server at {self._address} ended its stream before its end.")
        for said in worded:
            yield said

    def _refused(self, reply: Reply) -> EardrumError:
        said = self._quoted(reply).rstrip(".")
        status = _status(reply)
        if status in CLIENTS:
            return InvalidRequestError(f"The server at {self._address} refuses this: {said}.{_hint(said)}")
        if status in (429, 503):
            message = f"The server at {self._address} is busy ({status}): {said}."
            return BusyError(message, retry_after=reply.retry_after or 1.0)
        if status in (401, 403):
            return self._error(f"answered {status}: {said}", " It wants another key than it was sent.")
        if status == 404:
            return self._error(
                f"answered 404 on {reply.path}: {said}", " Check the model's `useModelName`, and `transcriptions` in its options."
            )
        return self._error(f"answered {status}: {said}")

    def _error(self, what: str, hint: str = "") -> UpstreamError:
        return UpstreamError(f"The server at {self._address} {what}.{hint}")

    def _quoted(self, reply: Reply) -> str:
        said = reply.message
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said if len(said) <= QUOTED else f"{said[:QUOTED]}…"


def _track(headers: Mapping[str, str], name: str = "x-eardrum-audio-track") -> int:
    """The audio track that another Eardrum says it has heard; 0 if the server does not say."""
    value = headers.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 6 else 0


def _with_track(event: Event, headers: Mapping[str, str]) -> Event:
    if not isinstance(event, Summary):
        return event
    return replace(event, audio_track=_track(headers), audio_tracks=_track(headers, "x-eardrum-audio-tracks"))


def _media_type(answered: Answered) -> str:
    return answered.headers.get("content-type", "").partition(";")[0].strip().lower()


def _dumped(event: object) -> bytes:
    return json.dumps(event).encode()


def _status(reply: Reply) -> int:
    """The status; the one inside the error if it came with 200."""
    if reply.status != 200:
        return reply.status
    answer = reply.json
    for part in (answer.get("error"), answer):
        if isinstance(part, dict) and isinstance(code := part.get("code"), int):
            return code
    return 500


def _hint(said: str) -> str:
    if said == "Invalid request":  # all that whisper-server says, whatever is wrong
        return " If it is whisper-server: without --convert it reads wav, mp3 and flac only."
    return ""
