"""Recordings to text for the command line: in this process, or through a running server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from starlette.responses import Response

from eardrum.api.openai import answers, fields
from eardrum.client import Client
from eardrum.config import Settings
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Source, Spool, StoredFile
from eardrum.remote.answers import Answer
from eardrum.subtitles import ANY, Shape
from eardrum.types import Opened, Request, Segment, Summary, Task, Transcript

ANY_LENGTH = float("inf")

Audio = Path | AsyncIterable[bytes]
"""A file, or bytes that come in meanwhile."""

Advance = Callable[[float, float | None], None]
"""Told how many seconds of audio are done, and of how many, if that is known."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked of every recording."""

    form: Mapping[str, Sequence[str]]
    """The wishes as OpenAI's form fields, but for the format."""
    formats: tuple[str, ...]
    """One or more values of `response_format`."""
    translate: bool = False

    def wish(self, format: str, shape: Shape = ANY) -> fields.Wish:
        """The wishes as the server understands them, for one of the formats. `shape` is what subtitles have otherwise.

        Raises:
            InvalidRequestError: a value is none.
        """
        form = {name: list(values) for name, values in self.form.items() if any(values)} | {"response_format": [format]}
        return fields.wish(form, Task.TRANSLATE if self.translate else Task.TRANSCRIBE, shape=shape)


@dataclass(frozen=True, slots=True)
class Written:
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

    async def transcribe(self, audio: Audio, name: str, advance: Advance) -> Written:
        """The texts of one recording, which a server is told is called `name`.

        Raises:
            EardrumError: there is none; the message says why.
            OSError: the recording cannot be read.
        """
        ...


@asynccontextmanager
async def here(order: Order, settings: Settings) -> AsyncIterator[Transcriber]:
    """Transcribe without a server: the gateway's own parts, without its port.

    Raises:
        EardrumError: it cannot be done for any recording.
    """
    service = Service(settings)
    try:
        try:
            transcriber = _Here(service, order, settings.subtitles.shape)
        except ModelNotFoundError:
            name = "".join(order.form.get("model", ()))
            if not service.catalog.inventory.at(name):
                raise
            service = Service(settings.model_copy(update={"default_model": name}))
            # By its id, so that no other model is taken for what this one lacks.
            transcriber = _Here(
                service, replace(order, form={**order.form, "model": [service.catalog.default.id]}), settings.subtitles.shape
            )
        yield transcriber
    finally:
        await service.shutdown()


class _Here:
    def __init__(self, service: Service, order: Order, shape: Shape):
        self._service = service
        self._wishes = {format: order.wish(format, shape) for format in order.formats}
        wishes = list(self._wishes.values())
        first = wishes[0]
        self._model = service.find(first.model)
        # One decoding answers all formats, so it is asked for what any of them shows.
        self._request = replace(
            first.request,
            words=any(wish.request.words for wish in wishes),
            words_if_any=any(wish.request.words_if_any for wish in wishes),
        )
        service.prepared(self._model, self._request)
        can, foreign = self._model.capabilities, self._model.foreign
        ignored = [wish.ignored(can, foreign=foreign) for wish in wishes]
        self._ignored = tuple(name for name in ignored[0] if all(name in names for names in ignored))

    async def transcribe(self, audio: Audio, name: str, advance: Advance) -> Written:
        transcript = Transcript()
        async with self._readable(audio) as source:
            await _transcribe(self._service, self._model, self._request, source, transcript, advance)
        texts = {format: _text(answers.answer(transcript, wish)) for format, wish in self._wishes.items()}
        return Written(texts, transcript.summary.duration, self._ignored, tuple(transcript.summary.warnings))

    def _readable(self, audio: Audio) -> AbstractAsyncContextManager[Source]:
        return _file(audio) if isinstance(audio, Path) else _spooled(audio, self._service.spool())


async def _transcribe(
    service: Service, model: Model, request: Request, source: Source, transcript: Transcript, advance: Advance
) -> None:
    length = None
    async with aclosing(service.stream(model, request, source)) as events:
        async for event in events:
            transcript.add(event)
            if isinstance(event, Opened):
                length = event.duration
            elif isinstance(event, Segment):
                advance(event.end, length)


@asynccontextmanager
async def _file(path: Path) -> AsyncIterator[Source]:
    yield StoredFile(path)


@asynccontextmanager
async def _spooled(audio: AsyncIterable[bytes], spool: Spool) -> AsyncIterator[Source]:
    """What comes in, kept to be read again: a runner may die."""
    with spool:
        filling = asyncio.create_task(_fill(spool, audio))
        try:
            yield spool
        finally:
            filling.cancel()
            await asyncio.wait({filling})
        if not filling.cancelled():
            filling.result()


async def _fill(spool: Spool, audio: AsyncIterable[bytes]) -> None:
    try:
        async for piece in audio:
            await spool.write(piece)
    finally:
        spool.finish()


@asynccontextmanager
async def through_server(
    order: Order, address: str, key: str = "", certificate: Path | None = None
) -> AsyncIterator[Transcriber]:
    """Transcribe through a running server.

    Raises:
        EardrumError: the certificate is none, or a wish.
    """
    async with Client(address, key, certificate) as client:
        yield _ThroughServer(client, order)


class _ThroughServer:
    def __init__(self, client: Client, order: Order):
        self._client = client
        self._order = order
        self._wishes = {format: order.wish(format) for format in order.formats}
        # Of several formats the richest is asked for, and the others are made of it: the recording is decoded once.
        self._format = order.formats[0] if len(order.formats) == 1 else "verbose_json"

    async def transcribe(self, audio: Audio, name: str, advance: Advance) -> Written:
        form = {field: values for field, values in self._order.form.items() if any(values)} | {"response_format": [self._format]}
        if len(self._wishes) > 1 and fields.SUBTITLES & self._wishes.keys():
            form = {field: values for field, values in form.items() if field not in fields.SHAPING}  # it is done here
        said = await self._client.transcribe(audio, form, translate=self._order.translate, name=name)
        if len(self._wishes) == 1:
            return Written({self._format: said.body}, ignored=said.ignored, warnings=said.warnings)
        answer = Answer.model_validate_json(said.body)
        transcript = Transcript(answer.heard((0.0, answer.duration), answer.duration or ANY_LENGTH))
        transcript.summary = Summary(language=answer.spoken, duration=answer.duration)
        texts = {format: _text(answers.answer(transcript, wish)) for format, wish in self._wishes.items()}
        return Written(texts | {self._format: said.body}, answer.duration, said.ignored, said.warnings)


def _text(response: Response) -> str:
    return bytes(response.body).decode()
