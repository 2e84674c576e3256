"""Windows over `/audio/transcriptions` and `/audio/translations`: a form with a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import aiohttp

from eardrum.engines.base import Hearing, Window
from eardrum.engines.openai.audio import Clip
from eardrum.engines.openai.client import Client
from eardrum.errors import UnsupportedFeatureError, UpstreamError
from eardrum.openai_responses.error import UpstreamReply
from eardrum.openai_responses.transcript import UpstreamTranscript
from eardrum.transcription import SpeechTask, TranscriptionRequest

VERBOSE, PLAIN = "verbose_json", "json"

GUESSES = 3
"""So often in a row verbose_json must have been refused without a reason, and json been served, until json is asked for at once:
an upstream that is in trouble for a moment keeps its times."""

Form = dict[str, str | list[str]]


@dataclass(slots=True)
class Transcriptions:
    """An upstream with OpenAI's audio routes, or one route that is like them."""

    client: Client
    path: str
    translations_path: str
    """Empty: translations go to `path` too, with the field `translate`."""
    model: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    hotwords_field: str = ""
    response_format: str = "auto"
    _has_verbose_text: bool = False
    """Whether a text has ever come in verbose_json: an empty one then means silence."""
    _guesses: int = 0

    async def hear(self, window: Window, clip: Clip) -> Hearing:
        """Send the clip and read the answer.

        With the format `auto`, an upstream is asked for json where nobody wants times. Where somebody does, one that refuses
        verbose_json, fails on it, or has no text in it, is asked for json as well, and at once as soon as that is known.

        Raises:
            UpstreamError: it fails, refuses, or answers with something else.
            UnsupportedFeatureError: word times were asked of an upstream that has none.
        """
        request = window.request
        if self.response_format != "auto":  # as of now: other windows may find out meanwhile
            answer = self._read(await self._post(request, clip, self.response_format))
        elif not (request.times or request.words):
            answer = self._read(await self._post(request, clip, PLAIN))
        else:
            answer = await self._in_either(request, clip)
        hearing = Hearing(
            answer.to_segments(window.speech_span, window.seconds), answer.detected_language or request.language or ""
        )
        if request.words and hearing.segments and not any(segment.words for segment in hearing.segments):
            raise self._no_words("gives no word times")
        return hearing

    async def _in_either(self, request: TranscriptionRequest, clip: Clip) -> UpstreamTranscript:
        """The answer in verbose_json, or in json if there is none."""
        if request.words:  # which json does not have
            return self._read(await self._post(request, clip, VERBOSE))
        reply = await self._post(request, clip, VERBOSE, last_resort=False)
        refused = reply.is_error
        if refused and not (reply.is_about_format or reply.is_ambiguous):
            raise self.client.refused(reply)
        try:
            answer = None if refused else self._read(reply)
        except UpstreamError:
            answer = None
        if answer and (self._has_verbose_text or not answer.is_empty):
            self._has_verbose_text, self._guesses = True, 0
            return answer
        plain = await self._post(request, clip, PLAIN)
        if plain.is_error:
            if answer:
                return answer
            raise self.client.refused(plain if reply.is_about_format else reply)
        other = self._read(plain)
        if other.is_empty and answer:
            return answer
        if not other.is_empty:
            self._guesses += 1
            if (reply.is_about_format and refused) or self._guesses >= GUESSES:
                self.response_format = PLAIN
        return other

    async def _post(
        self, request: TranscriptionRequest, clip: Clip, response_format: str, *, last_resort: bool = True
    ) -> UpstreamReply:
        translating = request.task is SpeechTask.TRANSLATE
        if request.words and response_format != VERBOSE:
            raise self._no_words("answers in json only, without word times")
        form = self.form(request, response_format)
        path = (self.translations_path if translating else "") or self.path

        def body() -> dict[str, Any]:
            data = aiohttp.FormData(quote_fields=False)
            for name, value in form.items():
                for each in value if isinstance(value, list) else [value]:
                    data.add_field(name, each)
            data.add_field("file", clip.data, filename=clip.name, content_type=clip.media_type)
            return {"data": data}

        reply = await self.client.post(path, body, last_resort=last_resort)
        if request.words and reply.is_error and reply.is_about_format:
            raise self._no_words(f"refuses word times ({self.client.quote(reply).rstrip('.')})")
        return reply

    def form(self, request: TranscriptionRequest, response_format: str) -> Form:
        """The fields beside the file: those of the options, and over them what is asked."""
        elsewhere = request.task is SpeechTask.TRANSLATE and self.translations_path
        prompt = request.prompt if self.hotwords_field else _joined(request)
        asked: Form = {
            "model": self.model,
            "language": "" if elsewhere else request.language or "",  # translations of OpenAI's kind find it themselves
            "prompt": prompt,
            "response_format": response_format,
            "temperature": f"{request.temperature:g}" if request.temperature else "",
        }
        if request.task is SpeechTask.TRANSLATE and not elsewhere:
            asked["translate"] = "true"
        if request.words:
            asked["timestamp_granularities[]"] = ["word", "segment"]
        if self.hotwords_field and request.hotwords:
            repeated = self.hotwords_field.endswith("[]")
            asked[self.hotwords_field] = list(request.hotwords) if repeated else ", ".join(request.hotwords)
        return {**self.fields, **{name: value for name, value in asked.items() if value}}

    def _read(self, reply: UpstreamReply) -> UpstreamTranscript:
        if reply.is_error:
            raise self.client.refused(reply)
        kind = reply.headers.get("content-type", "")
        try:
            return UpstreamTranscript.parse(reply.body, kind)
        except ValueError as error:
            what = f"answered with {kind or 'no content type'} that is no transcript in JSON"
            raise self.client.error(f"{what}: {self.client.quote(reply)}", " Check the options url and path.") from error

    def _no_words(self, why: str) -> UnsupportedFeatureError:
        message = self.client.error(why, " Say so with `words: false` in the model's options.").message
        return UnsupportedFeatureError(message, param="timestamp_granularities")


def _joined(request: TranscriptionRequest) -> str:
    """Prompt and hotwords as one text: models lean towards words they have seen."""
    return " ".join(filter(None, (request.prompt, ", ".join(request.hotwords))))
