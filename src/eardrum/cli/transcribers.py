"""Transcribes recordings for the command line: in this process, or through a running server."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path
from typing import Protocol

from msgspec import Struct
from msgspec.structs import replace
from starlette.responses import JSONResponse, Response

from eardrum.api.openai import params, responses
from eardrum.bounded_json import parse_upstream_json
from eardrum.client import EardrumClient
from eardrum.concurrency import run_in_background
from eardrum.config import Settings
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import AudioSource, Spool, StoredFile
from eardrum.openai_transcripts import UpstreamTranscript
from eardrum.subtitles import NO_RULES, SubtitleRules
from eardrum.transcription import (
    AudioOpened,
    Segment,
    SpeakerOptions,
    SpeechTask,
    Transcript,
    TranscriptionRequest,
    TranscriptionSummary,
)

ANY_LENGTH = float("inf")

AudioInput = Path | AsyncIterable[bytes]
"""A file, or bytes that are still arriving."""

TranscriptionProgress = Callable[[float, float | None], None]
"""Takes the seconds of audio done, and the recording's length if it is known."""


class TranscriptionOrder(Struct, frozen=True):
    """The options that apply to every recording of a command."""

    form: Mapping[str, Sequence[str]]
    """The options as OpenAI's form fields, except the format."""
    formats: tuple[str, ...]
    """One or more values of `response_format`."""
    translate: bool = False

    def build_params(self, format: str, shape: SubtitleRules = NO_RULES) -> params.TranscriptionParams:
        """Parse the options as the server does, for one of the formats. `shape` holds the default rules of subtitles.

        Raises:
            InvalidRequestError: a value is invalid.
        """
        form = {name: list(values) for name, values in self.form.items() if any(values)} | {"response_format": [format]}
        return params.parse_params(form, SpeechTask.TRANSLATE if self.translate else SpeechTask.TRANSCRIBE, shape=shape)


class TranscriptTexts(Struct, frozen=True):
    """A recording's text in every requested format."""

    texts: Mapping[str, str]
    seconds: float | None = None
    """The recording's length, if it is known."""
    ignored: tuple[str, ...] = ()
    """Fields of the order without effect."""
    warnings: tuple[str, ...] = ()
    """Descriptions of parts that could not be decoded."""


class Transcriber(Protocol):
    """Transcribes recordings with the options of one order."""

    async def transcribe(self, audio: AudioInput, name: str, advance: TranscriptionProgress) -> TranscriptTexts:
        """Transcribe one recording. `name` is its file name for a server.

        Raises:
            EardrumError: it failed; the message gives the reason.
            OSError: the recording cannot be read.
        """
        ...


@asynccontextmanager
async def transcribe_locally(order: TranscriptionOrder, settings: Settings) -> AsyncIterator[Transcriber]:
    """Transcribe in this process, with the gateway's service but without its port.

    Raises:
        EardrumError: no recording can be transcribed with these options.
    """
    service = Service(settings)
    try:
        try:
            transcriber = _LocalTranscriber(service, order, settings.subtitles.shape)
        except ModelNotFoundError:
            name = "".join(order.form.get("model", ()))
            if not service.catalog.inventory.find_at_path(name):
                raise
            service = Service(settings.model_copy(update={"default_model": name}))
            # Named by its id, so that the service does not choose another model for an option that this one lacks.
            transcriber = _LocalTranscriber(
                service, replace(order, form={**order.form, "model": [service.catalog.default.id]}), settings.subtitles.shape
            )
        yield transcriber
    finally:
        await service.shutdown()


class _LocalTranscriber:
    def __init__(self, service: Service, order: TranscriptionOrder, shape: SubtitleRules):
        self._service = service
        self._params = {format: order.build_params(format, shape) for format in order.formats}
        every = list(self._params.values())
        first = every[0]
        self._model = service.find_model(first.model)
        # One decoding serves all formats, so it requests the details that any of them shows.
        self._request = replace(
            first.request,
            times=any(each.request.times for each in every),
            words=any(each.request.words for each in every),
            words_if_any=any(each.request.words_if_any for each in every),
            speakers=any(each.request.speakers for each in every),
            speaker_options=next((each.request.speaker_options for each in every if each.request.speakers), SpeakerOptions()),
        )
        service.prepare_request(self._model, self._request)
        model = self._model
        ignored = [each.list_ignored(model.capabilities, is_external=model.is_external) for each in every]
        self._ignored = tuple(name for name in ignored[0] if all(name in names for names in ignored))

    async def transcribe(self, audio: AudioInput, name: str, advance: TranscriptionProgress) -> TranscriptTexts:
        transcript = Transcript()
        async with self._open_audio(audio) as source:
            await _transcribe(self._service, self._model, self._request, source, transcript, advance)
        texts = {format: _read_text(responses.build_response(transcript, each)) for format, each in self._params.items()}
        return TranscriptTexts(texts, transcript.summary.duration, self._ignored, tuple(transcript.summary.warnings))

    def _open_audio(self, audio: AudioInput) -> AbstractAsyncContextManager[AudioSource]:
        return _open_file(audio) if isinstance(audio, Path) else _spool_audio(audio, self._service.create_spool())


async def _transcribe(
    service: Service,
    model: Model,
    request: TranscriptionRequest,
    source: AudioSource,
    transcript: Transcript,
    advance: TranscriptionProgress,
) -> None:
    length = None
    async with aclosing(service.stream_events(model, request, source)) as events:
        async for event in events:
            transcript.add_event(event)
            if isinstance(event, AudioOpened):
                length = event.duration
            elif isinstance(event, Segment):
                advance(event.end, length)


@asynccontextmanager
async def _open_file(path: Path) -> AsyncIterator[AudioSource]:
    yield StoredFile(path)


@asynccontextmanager
async def _spool_audio(audio: AsyncIterable[bytes], spool: Spool) -> AsyncIterator[AudioSource]:
    """Spool arriving audio, so that it can be sent again when a runner dies."""
    with spool:
        async with run_in_background(_fill_spool(spool, audio)):
            yield spool


async def _fill_spool(spool: Spool, audio: AsyncIterable[bytes]) -> None:
    try:
        async for piece in audio:
            await spool.write(piece)
    finally:
        spool.finish()


@asynccontextmanager
async def transcribe_remotely(
    order: TranscriptionOrder, address: str, key: str = "", certificate: Path | None = None
) -> AsyncIterator[Transcriber]:
    """Transcribe through a running server.

    Raises:
        EardrumError: the certificate or an option is invalid.
    """
    async with EardrumClient(address, key, certificate) as client:
        yield _RemoteTranscriber(client, order)


class _RemoteTranscriber:
    def __init__(self, client: EardrumClient, order: TranscriptionOrder):
        self._client = client
        self._order = order
        self._params = {format: order.build_params(format) for format in order.formats}
        # Several formats are built from the richest one, so the recording is decoded once. It holds the subtitles, too: their
        # rules may be the server's, and word times are in no verbose_json that was not asked for them.
        self._format = order.formats[0] if len(order.formats) == 1 else "verbose_json"
        self._included = [name for name in order.formats if name in params.SUBTITLE_FORMATS and name != self._format]

    async def transcribe(self, audio: AudioInput, name: str, advance: TranscriptionProgress) -> TranscriptTexts:
        form = {field: values for field, values in self._order.form.items() if any(values)} | {"response_format": [self._format]}
        if self._included:
            form["include[]"] = self._included
        response = await self._client.transcribe(audio, form, translate=self._order.translate, name=name)
        if len(self._params) == 1:
            return TranscriptTexts({self._format: response.body}, ignored=response.ignored, warnings=response.warnings)
        try:
            body = dict(parse_upstream_json(response.body))
            answer = UpstreamTranscript.model_validate(body)
        except (ValueError, TypeError):
            raise self._client.build_stranger_error() from None
        subtitles = {name: body.pop(name) for name in self._included if isinstance(body.get(name), str)}
        transcript = Transcript(answer.to_segments((0.0, answer.duration), answer.duration or ANY_LENGTH, speakers=True))
        transcript.summary = TranscriptionSummary(language=answer.detected_language, duration=answer.duration)
        others = {format: each for format, each in self._params.items() if format not in subtitles}
        texts = {format: _read_text(responses.build_response(transcript, each)) for format, each in others.items()}
        texts |= subtitles | {self._format: _read_text(JSONResponse(body))}
        return TranscriptTexts(texts, answer.duration, response.ignored, response.warnings)


def _read_text(response: Response) -> str:
    return bytes(response.body).decode()
