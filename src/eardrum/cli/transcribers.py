"""Transcribes recordings for the command line: in this process, or through a running server."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from starlette.responses import Response

from eardrum.api.openai import params, responses
from eardrum.client import EardrumClient
from eardrum.concurrency import run_in_background
from eardrum.config import Settings
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import AudioSource, Spool, StoredFile
from eardrum.openai_transcripts import UpstreamTranscript
from eardrum.subtitles import NO_RULES, SubtitleRules
from eardrum.transcription import AudioOpened, Segment, SpeechTask, Transcript, TranscriptionRequest, TranscriptionSummary

ANY_LENGTH = float("inf")

AudioInput = Path | AsyncIterable[bytes]
"""A file, or bytes that come in meanwhile."""

TranscriptionProgress = Callable[[float, float | None], None]
"""Told how many seconds of audio are done, and of how many, if that is known."""


@dataclass(frozen=True, slots=True)
class TranscriptionOrder:
    """What is asked of every recording."""

    form: Mapping[str, Sequence[str]]
    """The wishes as OpenAI's form fields, but for the format."""
    formats: tuple[str, ...]
    """One or more values of `response_format`."""
    translate: bool = False

    def build_params(self, format: str, shape: SubtitleRules = NO_RULES) -> params.TranscriptionParams:
        """The wishes as the server understands them, for one of the formats. `shape` is what subtitles have otherwise.

        Raises:
            InvalidRequestError: a value is none.
        """
        form = {name: list(values) for name, values in self.form.items() if any(values)} | {"response_format": [format]}
        return params.parse_params(form, SpeechTask.TRANSLATE if self.translate else SpeechTask.TRANSCRIBE, shape=shape)


@dataclass(frozen=True, slots=True)
class TranscriptTexts:
    """A recording's text in every format that was asked for."""

    texts: Mapping[str, str]
    seconds: float | None = None
    """How long the recording is, where that is known."""
    ignored: tuple[str, ...] = ()
    """Fields of the order that had no effect."""
    warnings: tuple[str, ...] = ()
    """What of the recording could not be decoded."""


class Transcriber(Protocol):
    """Does what an order says, for one recording after another."""

    async def transcribe(self, audio: AudioInput, name: str, advance: TranscriptionProgress) -> TranscriptTexts:
        """The texts of one recording, which a server is told is called `name`.

        Raises:
            EardrumError: there is none; the message says why.
            OSError: the recording cannot be read.
        """
        ...


@asynccontextmanager
async def transcribe_locally(order: TranscriptionOrder, settings: Settings) -> AsyncIterator[Transcriber]:
    """Transcribe without a server: the gateway's own parts, without its port.

    Raises:
        EardrumError: it cannot be done for any recording.
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
            # By its id, so that no other model is taken for what this one lacks.
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
        wishes = list(self._params.values())
        first = wishes[0]
        self._model = service.find_model(first.model)
        # One decoding answers all formats, so it is asked for what any of them shows.
        self._request = replace(
            first.request,
            words=any(wish.request.words for wish in wishes),
            words_if_any=any(wish.request.words_if_any for wish in wishes),
        )
        service.prepare_request(self._model, self._request)
        can, foreign = self._model.capabilities, self._model.is_external
        ignored = [wish.list_ignored(can, is_external=foreign) for wish in wishes]
        self._ignored = tuple(name for name in ignored[0] if all(name in names for names in ignored))

    async def transcribe(self, audio: AudioInput, name: str, advance: TranscriptionProgress) -> TranscriptTexts:
        transcript = Transcript()
        async with self._open_audio(audio) as source:
            await _transcribe(self._service, self._model, self._request, source, transcript, advance)
        texts = {format: _read_text(responses.build_response(transcript, wish)) for format, wish in self._params.items()}
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
    """What comes in, kept to be read again: a runner may die."""
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
        EardrumError: the certificate is none, or a wish.
    """
    async with EardrumClient(address, key, certificate) as client:
        yield _RemoteTranscriber(client, order)


class _RemoteTranscriber:
    def __init__(self, client: EardrumClient, order: TranscriptionOrder):
        self._client = client
        self._order = order
        self._params = {format: order.build_params(format) for format in order.formats}
        # Of several formats the richest is asked for, and the others are made of it: the recording is decoded once.
        self._format = order.formats[0] if len(order.formats) == 1 else "verbose_json"

    async def transcribe(self, audio: AudioInput, name: str, advance: TranscriptionProgress) -> TranscriptTexts:
        form = {field: values for field, values in self._order.form.items() if any(values)} | {"response_format": [self._format]}
        if len(self._params) > 1 and params.SUBTITLE_FORMATS & self._params.keys():
            form = {field: values for field, values in form.items() if field not in params.SUBTITLE_FIELDS}  # it is done here
        said = await self._client.transcribe(audio, form, translate=self._order.translate, name=name)
        if len(self._params) == 1:
            return TranscriptTexts({self._format: said.body}, ignored=said.ignored, warnings=said.warnings)
        answer = UpstreamTranscript.model_validate_json(said.body)
        transcript = Transcript(answer.to_segments((0.0, answer.duration), answer.duration or ANY_LENGTH))
        transcript.summary = TranscriptionSummary(language=answer.detected_language, duration=answer.duration)
        texts = {format: _read_text(responses.build_response(transcript, wish)) for format, wish in self._params.items()}
        return TranscriptTexts(texts | {self._format: said.body}, answer.duration, said.ignored, said.warnings)


def _read_text(response: Response) -> str:
    return bytes(response.body).decode()
