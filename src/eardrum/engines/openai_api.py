"""Any server or cloud that speaks OpenAI's HTTP API: Groq, vLLM, whisper-server, another Eardrum, OpenAI itself.

Audio is decoded and cut here, as for every engine; each window goes to the upstream as a small file. So every answer format,
streaming and recordings of any length work, independently of the upstream's features.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Self, TypeVar, cast

from msgspec.structs import replace
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from yarl import URL

from eardrum.aiohttp_import import aiohttp
from eardrum.engines.base import Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.openai_http import EncodedClip, Format, OpenAIClient, ServerAddress, encode_clip
from eardrum.errors import ConfigError, InvalidRequestError, UnsupportedFeatureError, UpstreamError
from eardrum.languages import get_language_name, parse_language
from eardrum.openai_replies import UpstreamReply
from eardrum.openai_transcripts import UpstreamTranscript, clean_text, find_language_code
from eardrum.transcription import Capabilities, Segment, SpeechTask, TranscriptionRequest
from eardrum.units import Seconds

Part = Literal["audio_url", "input_audio"]


class ChatTextPart(BaseModel):
    """A part of a message that is given in parts."""

    text: str = ""


class ChatCompletionMessage(BaseModel):
    """The model's text."""

    content: str | list[ChatTextPart] | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        return "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""


class ChatChoice(BaseModel):
    """One of the answers; there is one."""

    message: ChatCompletionMessage


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
        # Servers have their own temperature for chats, made for invention.
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

        With the format `auto`, an upstream is asked for json if the client needs no times. If it does, one that refuses
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
        result = EngineResult(
            answer.to_segments(window.speech_span, window.seconds), answer.detected_language or request.language or ""
        )
        if request.words and result.segments and not any(segment.words for segment in result.segments):
            raise self._build_no_words_error("gives no word times")
        return result

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
        """The fields besides the file: those of the options, and over them what is asked."""
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


LOOK_S = 0.1
"""Interval at which a running request checks whether its window was cancelled."""

T = TypeVar("T")


class OpenAIApi(Engine):
    """A model behind an address.

    Windows are sent one by one, `concurrency` at a time: a slow or refused window holds up no other, and with
    batches of one nothing is timed at load, so no request is made before a client makes one.
    """

    requires = ("aiohttp", "av")
    title = "Any OpenAI-compatible server or cloud: Groq, vLLM, whisper-server, another Eardrum, OpenAI"
    rank = 90
    remote = True
    capabilities = Capabilities(
        detects_language=True, translate=True, words=True, prompt=True, hotwords=True, temperature=True, max_window_s=30.0
    )

    class Options(EngineOptions):
        """Address and features of the upstream, and the form of its requests. `device` and `compute_type` do not apply."""

        url: str = Field(description="Base address of the upstream, such as https://api.groq.com/openai/v1.")
        model: str = Field("", description="The model's name at the upstream; empty sends none.")
        key_env: str = Field("", description="Environment variable that holds the key.")
        key: SecretStr = Field(SecretStr(""), description="The key itself; `key_env` keeps it out of files and process lists.")
        headers: dict[str, str] = Field({}, description="Further headers of every request; shown in no message.")
        via: Literal["transcriptions", "chat_audio_url", "chat_input_audio"] = Field(
            "transcriptions",
            description="Send a form to the audio routes, or a chat with the audio as `audio_url` (vLLM) or `input_audio`.",
        )
        path: str = Field("", description="Path below `url` (whisper-server: /inference); empty is OpenAI's.")
        translations_path: str = Field(
            "/audio/translations", description="Path for translations; empty sends the field `translate` to `path` instead."
        )
        response_format: Literal["auto", "verbose_json", "json"] = Field(
            "auto", description="`auto` requests verbose_json if times are needed and the upstream supports it, else json."
        )
        audio_format: Literal["auto", "flac", "wav"] = Field(
            "auto", description="How windows are sent; `auto` is FLAC (half the bytes), and WAV in chats."
        )
        fields: dict[str, Any] = Field(
            {}, description="Further form fields, or keys of the chat's body; a client's parameters override them."
        )
        instruction: str = Field("", description="In chats: text sent after the audio; empty suits pure speech models.")
        hotwords_field: str = Field(
            "", description="Form field for hotwords (`hotwords`, `keywords[]`); empty adds them to the prompt."
        )
        languages: tuple[str, ...] = Field((), description="ISO 639 codes of the model's languages; empty: any.")
        translate: bool | None = Field(None, description="Whether it translates; unset: yes over audio routes, no in chats.")
        words: bool | None = Field(None, description="Whether it gives word times; unset: yes over audio routes, no in chats.")
        window_seconds: Seconds = Field(30, ge=1, le=1200, description="Longest stretch of audio sent at once.")
        pack: bool = Field(False, description="Fill windows with several stretches of speech: fewer requests, where each costs.")
        concurrency: int = Field(4, ge=1, le=64, description="Requests in flight.")
        timeout_seconds: Seconds = Field(120, gt=0, description="For one attempt, from the connection to the end of the answer.")
        retries: int = Field(2, ge=0, le=10, description="Further attempts after 408, 429, 5xx and broken connections.")

        @field_validator("url")
        @classmethod
        def _is_an_address(cls, spelled: str) -> str:
            try:
                url = URL(spelled)
            except ValueError:
                url = URL()
            if url.scheme not in ("http", "https") or not url.host:
                raise ValueError("it must be an address such as http://localhost:8000/v1")
            if url.user or url.password:
                raise ValueError("it must hold no name and password; send them with the option headers")
            return spelled

        @field_validator("languages")
        @classmethod
        def _are_codes(cls, codes: tuple[str, ...]) -> tuple[str, ...]:
            try:
                return tuple(code for spelled in codes if (code := parse_language(spelled)))
            except InvalidRequestError as error:
                raise ValueError(error.message) from error

    def __init__(self, options: Options, address: ServerAddress):
        self._format = _choose_audio_format(options)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="upstream", daemon=True)
        self._thread.start()
        self._client = self._run(_connected(address))
        self._way = _choose_endpoint(options, self._client)
        self.parallel = options.concurrency
        self.capabilities = _build_capabilities(options)

    @classmethod
    def find_device(cls, options: EngineOptions) -> Device:
        """None of ours: where the model is, is the upstream's business."""
        return Device("auto")

    @classmethod
    def load(cls, source: Path, options: EngineOptions) -> Self:
        """Check the options. There are no files, so `source` is not looked at; the upstream need not be up yet.

        Raises:
            ConfigError: options that contradict each other, or a key that is not there.
        """
        options = cast(OpenAIApi.Options, options)
        _check_options(options)
        return cls(options, _build_address(options))

    def transcribe(self, windows: Sequence[Window]) -> list[EngineResult]:
        """Have the upstream decode the windows, all at once.

        Raises:
            UpstreamError: the upstream cannot be reached, refuses or fails.
        """
        clips = [encode_clip(window.audio, self._format) for window in windows]
        return self._run(self._hear_all(windows, clips))

    def close(self) -> None:
        """Close all connections and end the thread they live on."""
        self._run(self._client.close())
        self._run(self._loop.shutdown_default_executor())  # it looked up names
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _hear_all(self, windows: Sequence[Window], clips: Sequence[EncodedClip]) -> list[EngineResult]:
        outcomes = await asyncio.gather(*map(self._hear, windows, clips), return_exceptions=True)
        return [_unwrap_result(outcome) for outcome in outcomes]

    async def _hear(self, window: Window, clip: EncodedClip) -> EngineResult:
        """Return the upstream's result, or an empty one as soon as the window is cancelled, which closes the connection."""
        if window.cancelled:
            return EngineResult()
        asking = asyncio.ensure_future(self._way.transcribe(window, clip))
        while not asking.done() and not window.cancelled:
            await asyncio.wait([asking], timeout=LOOK_S)
        if window.cancelled:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            return EngineResult()
        return asking.result()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _unwrap_result(outcome: EngineResult | BaseException) -> EngineResult:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


async def _connected(address: ServerAddress) -> OpenAIClient:
    return OpenAIClient(address)  # made on the loop on which it lives


def _build_address(options: OpenAIApi.Options) -> ServerAddress:
    return ServerAddress.of(
        options.url,
        key=options.key.get_secret_value(),
        key_env=options.key_env,
        headers=options.headers,
        timeout_s=options.timeout_seconds,
        retries=options.retries,
    )


def _check_options(options: OpenAIApi.Options) -> None:
    """Raises: ConfigError: an option that `via` cannot follow, or two that contradict each other."""
    chat = options.via != "transcriptions"
    impossible = {
        "instruction": bool(options.instruction) and not chat,
        "words": bool(options.words) and chat,
        "translate": bool(options.translate) and chat,
        "hotwords_field": bool(options.hotwords_field) and chat,
        "response_format": options.response_format != "auto" and chat,
        "audio_format": options.audio_format == "flac" and options.via == "chat_input_audio",
    }
    for name, wanted in impossible.items():
        if wanted:
            raise ConfigError(f"The option {name} cannot be combined with via: {options.via}. Leave it out.")
    if options.words and options.response_format == "json":
        raise ConfigError("The option words cannot be combined with response_format: json, which has no times. Leave one out.")


def _choose_audio_format(options: OpenAIApi.Options) -> Format:
    if options.audio_format != "auto":
        return options.audio_format
    return "flac" if options.via == "transcriptions" else "wav"


def _choose_endpoint(options: OpenAIApi.Options, client: OpenAIClient) -> TranscriptionsEndpoint | ChatCompletionsEndpoint:
    if options.via == "transcriptions":
        return TranscriptionsEndpoint(
            client=client,
            path=options.path or "/audio/transcriptions",
            translations_path=options.translations_path,
            model=options.model,
            fields={name: value if isinstance(value, str) else json.dumps(value) for name, value in options.fields.items()},
            hotwords_field=options.hotwords_field,
            response_format=options.response_format,
        )
    return ChatCompletionsEndpoint(
        client=client,
        path=options.path or "/chat/completions",
        part="audio_url" if options.via == "chat_audio_url" else "input_audio",
        model=options.model,
        fields=options.fields,
        instruction=options.instruction,
    )


def _build_capabilities(options: OpenAIApi.Options) -> Capabilities:
    routes = options.via == "transcriptions"
    return replace(
        OpenAIApi.capabilities,
        languages=options.languages,
        translate=routes if options.translate is None else options.translate,
        words=routes and options.response_format != "json" if options.words is None else options.words,
        max_window_s=options.window_seconds,
        fixed_window=options.pack,
    )
