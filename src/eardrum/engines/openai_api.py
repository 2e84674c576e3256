"""Any server or cloud that speaks OpenAI's HTTP API: Groq, vLLM, whisper-server, another Eardrum, OpenAI itself.

Audio is decoded and cut here, as for every engine; each window goes to the upstream as a small file. So every answer format,
streaming and recordings of any length work, whatever the upstream can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any, Literal, Self, TypeVar, cast

from pydantic import Field, SecretStr, field_validator
from yarl import URL

from eardrum.engines.base import Device, Engine, EngineOptions, EngineResult, Window
from eardrum.engines.shared.openai_endpoints import ChatCompletionsEndpoint, TranscriptionsEndpoint
from eardrum.engines.shared.openai_http import EncodedClip, Format, OpenAIClient, ServerAddress, encode_clip
from eardrum.errors import ConfigError, InvalidRequestError
from eardrum.languages import parse_language
from eardrum.transcription import Capabilities
from eardrum.units import Seconds

LOOK_S = 0.1
"""How often a request in flight is asked whether anybody still wants its answer."""

T = TypeVar("T")


class OpenAIApi(Engine):
    """A model behind an address.

    Windows go out one by one, as many at a time as `concurrency` says: a slow or refused window holds up no other, and with
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
        """Where the upstream is, what it can, how it is asked. `device` and `compute_type` are its own business."""

        url: str = Field(description="Base address of the upstream, such as https://api.groq.com/openai/v1.")
        model: str = Field("", description="Name by which the upstream knows the model; empty sends none.")
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
            "auto", description="`auto` asks for verbose_json where times are wanted and an upstream has it, else for json."
        )
        audio_format: Literal["auto", "flac", "wav"] = Field(
            "auto", description="How windows are sent; `auto` is FLAC (half the bytes), and WAV in chats."
        )
        fields: dict[str, Any] = Field(
            {}, description="Further form fields, or keys of the chat's body; what a client asks for goes over them."
        )
        instruction: str = Field("", description="In chats: text sent after the audio; empty suits pure speech models.")
        hotwords_field: str = Field(
            "", description="Form field for hotwords (`hotwords`, `keywords[]`); empty adds them to the prompt."
        )
        languages: tuple[str, ...] = Field((), description="ISO 639 codes the model knows; empty: any.")
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
        """The upstream's hearing, or an empty one as soon as nobody wants it: the connection is closed then."""
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
            raise ConfigError(f"The option {name} cannot be had with via: {options.via}. Leave it out.")
    if options.words and options.response_format == "json":
        raise ConfigError("The option words cannot be had with response_format: json, which has no times. Leave one of them out.")


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
