"""The two endpoints that transcribe at OpenAI-compatible servers: audio transcriptions and chat completions with audio."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp
from pydantic import BaseModel, Field, ValidationError

from eardrum.engines.base import EngineResult, Window
from eardrum.engines.shared.openai_http import EncodedClip, OpenAIClient
from eardrum.errors import UnsupportedFeatureError, UpstreamError
from eardrum.languages import get_language_name
from eardrum.openai_replies import UpstreamReply
from eardrum.openai_transcripts import UpstreamTranscript, clean_text, find_language_code
from eardrum.transcription import Segment, SpeechTask, TranscriptionRequest

Part = Literal["audio_url", "input_audio"]


class ChatTextPart(BaseModel):
    """A part of a message that is given in parts."""

    text: str = ""


class ChatMessage(BaseModel):
    """The model's text."""

    content: str | list[ChatTextPart] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""


class ChatChoice(BaseModel):
    """One of the answers; there is one."""

    message: ChatMessage


class ChatCompletion(BaseModel):
    """The answer of a chat."""

    choices: list[ChatChoice] = Field(min_length=1)


@dataclass(slots=True)
class ChatCompletionsEndpoint:
    """An upstream that takes audio as a part of a chat message."""

    client: OpenAIClient
    path: str
    part: Part
    model: str = ""
    fields: dict[str, Any] = field(default_factory=dict)
    instruction: str = ""

    async def transcribe(self, window: Window, clip: EncodedClip) -> EngineResult:
        """Send the clip and read the answer: one segment, for a chat knows no times.

        Raises:
            UpstreamError: the upstream fails, refuses, or answers with something else.
        """
        body = self.build_body(window.request, clip)
        reply = await self.client.post(self.path, lambda: {"json": body})
        if reply.is_error:
            raise self.client.build_refusal_error(reply)
        try:
            answer = ChatCompletion.model_validate_json(reply.body)
        except ValidationError as error:
            what = f"answered with {reply.headers.get('content-type', 'no content type')} that is no chat completion"
            raise self.client.build_error(
                f"{what}: {self.client.quote(reply)}", " Check the options url, path and via."
            ) from error
        text, language = clean_text(answer.choices[0].message.text)
        segments = [Segment(*window.speech_span, text=text)] if text else []
        return EngineResult(segments, find_language_code(language) or window.request.language or "")

    def build_body(self, request: TranscriptionRequest, clip: EncodedClip) -> dict[str, Any]:
        """The request: what is known beforehand as the system's message, the audio and the instruction as the user's."""
        messages: list[dict[str, Any]] = []
        if known := _describe_context(request):
            messages.append({"role": "system", "content": known})
        instruction = [{"type": "text", "text": self.instruction}] if self.instruction else []
        messages.append({"role": "user", "content": [self._build_audio_part(clip), *instruction]})
        # Servers have a temperature of their own for chats, made for invention.
        asked = {"temperature": request.temperature, "messages": messages}
        return {**self.fields, **({"model": self.model} if self.model else {}), **asked}

    def _build_audio_part(self, clip: EncodedClip) -> dict[str, Any]:
        data = b64encode(clip.data).decode()
        if self.part == "input_audio":
            return {"type": "input_audio", "input_audio": {"data": data, "format": clip.format}}
        return {"type": "audio_url", "audio_url": {"url": f"data:{clip.media_type};base64,{data}"}}


def _describe_context(request: TranscriptionRequest) -> str:
    """The client's hints about the speech, one line each."""
    language = f"The language is {get_language_name(request.language).title()}." if request.language else ""
    return "\n".join(filter(None, (language, request.prompt, ", ".join(request.hotwords))))


VERBOSE, PLAIN = "verbose_json", "json"

GUESSES = 3
"""So often in a row verbose_json must have been refused without a reason, and json been served, until json is asked for at once:
an upstream that is in trouble for a moment keeps its times."""

Form = dict[str, str | list[str]]


@dataclass(slots=True)
class TranscriptionsEndpoint:
    """An upstream with OpenAI's audio routes, or one route that is like them."""

    client: OpenAIClient
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

    async def transcribe(self, window: Window, clip: EncodedClip) -> EngineResult:
        """Send the clip and read the answer.

        With the format `auto`, an upstream is asked for json where nobody wants times. Where somebody does, one that refuses
        verbose_json, fails on it, or has no text in it, is asked for json as well, and at once as soon as that is known.

        Raises:
            UpstreamError: it fails, refuses, or answers with something else.
            UnsupportedFeatureError: word times were asked of an upstream that has none.
        """
        request = window.request
        if self.response_format != "auto":  # as of now: other windows may find out meanwhile
            answer = self._parse_reply(await self._post(request, clip, self.response_format))
        elif not (request.times or request.words):
            answer = self._parse_reply(await self._post(request, clip, PLAIN))
        else:
            answer = await self._try_both_formats(request, clip)
        hearing = EngineResult(
            answer.to_segments(window.speech_span, window.seconds), answer.detected_language or request.language or ""
        )
        if request.words and hearing.segments and not any(segment.words for segment in hearing.segments):
            raise self._build_no_words_error("gives no word times")
        return hearing

    async def _try_both_formats(self, request: TranscriptionRequest, clip: EncodedClip) -> UpstreamTranscript:
        """The answer in verbose_json, or in json if there is none."""
        if request.words:  # which json does not have
            return self._parse_reply(await self._post(request, clip, VERBOSE))
        reply = await self._post(request, clip, VERBOSE, last_resort=False)
        refused = reply.is_error
        if refused and not (reply.is_about_format or reply.is_ambiguous):
            raise self.client.build_refusal_error(reply)
        try:
            answer = None if refused else self._parse_reply(reply)
        except UpstreamError:
            answer = None
        if answer and (self._has_verbose_text or not answer.is_empty):
            self._has_verbose_text, self._guesses = True, 0
            return answer
        plain = await self._post(request, clip, PLAIN)
        if plain.is_error:
            if answer:
                return answer
            raise self.client.build_refusal_error(plain if reply.is_about_format else reply)
        other = self._parse_reply(plain)
        if other.is_empty and answer:
            return answer
        if not other.is_empty:
            self._guesses += 1
            if (reply.is_about_format and refused) or self._guesses >= GUESSES:
                self.response_format = PLAIN
        return other

    async def _post(
        self, request: TranscriptionRequest, clip: EncodedClip, response_format: str, *, last_resort: bool = True
    ) -> UpstreamReply:
        translating = request.task is SpeechTask.TRANSLATE
        if request.words and response_format != VERBOSE:
            raise self._build_no_words_error("answers in json only, without word times")
        form = self.build_form(request, response_format)
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
            raise self._build_no_words_error(f"refuses word times ({self.client.quote(reply).rstrip('.')})")
        return reply

    def build_form(self, request: TranscriptionRequest, response_format: str) -> Form:
        """The fields beside the file: those of the options, and over them what is asked."""
        elsewhere = request.task is SpeechTask.TRANSLATE and self.translations_path
        prompt = request.prompt if self.hotwords_field else _join_prompt(request)
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

    def _parse_reply(self, reply: UpstreamReply) -> UpstreamTranscript:
        if reply.is_error:
            raise self.client.build_refusal_error(reply)
        kind = reply.headers.get("content-type", "")
        try:
            return UpstreamTranscript.parse(reply.body, kind)
        except ValueError as error:
            what = f"answered with {kind or 'no content type'} that is no transcript in JSON"
            raise self.client.build_error(f"{what}: {self.client.quote(reply)}", " Check the options url and path.") from error

    def _build_no_words_error(self, why: str) -> UnsupportedFeatureError:
        message = self.client.build_error(why, " Say so with `words: false` in the model's options.").message
        return UnsupportedFeatureError(message, param="timestamp_granularities")


def _join_prompt(request: TranscriptionRequest) -> str:
    """Prompt and hotwords as one text: models lean towards words they have seen."""
    return " ".join(filter(None, (request.prompt, ", ".join(request.hotwords))))
