"""The endpoints of OpenAI's API. Raw ASGI, because the answer may begin while the upload is still coming in."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from eardrum.api import access, header_values
from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.openai import answers, uploads
from eardrum.api.openai.fields import Wish
from eardrum.api.openai.models import Models
from eardrum.api.openai.uploads import Upload
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.spool import Spool
from eardrum.types import Delta, Opened, Request, Segment, Task, Transcript


def routes(service: Service) -> list[BaseRoute]:
    """All routes of this edge."""
    models = Models(service)
    return [
        Route("/v1/audio/transcriptions", Audio(service, Task.TRANSCRIBE), methods=["POST"]),
        Route("/v1/audio/translations", Audio(service, Task.TRANSLATE), methods=["POST"]),
        Route("/v1/models", models.list),
        Route("/models", models.list),  # as llama-swap has it
        Route("/v1/models/{id:path}", models.one),
    ]


class Audio:
    """The endpoint that takes audio, as an ASGI application."""

    def __init__(self, service: Service, task: Task):
        self._service = service
        self._task = task

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one upload, whichever way it is packed."""
        upload = uploads.open_upload(scope, receive, self._task, self._service.settings)
        with self._service.spool() as spool:
            await upload.begin()
            await Exchange(self._service, upload, spool, scope, send).run()


class Exchange:
    """One request being answered while it is still being received."""

    def __init__(self, service: Service, upload: Upload, spool: Spool, scope: Scope, send: Send):
        self._service = service
        self._upload = upload
        self._spool = spool
        self._scope = scope
        self._send = send
        self._poured = asyncio.Event()
        self._streaming = False

    async def run(self) -> None:
        """Answer. The answer ends with the upload: a client that leaves or breaks the rules stops the work.

        Raises:
            EardrumError: before anything was sent; later errors go into the stream.
            ClientGoneError: the client left.
        """
        receiving = asyncio.ensure_future(self._receive())
        answering = asyncio.ensure_future(self._answer())
        try:
            await asyncio.wait([receiving, answering], return_when=asyncio.FIRST_COMPLETED)
            await (answering if answering.done() else receiving)
        except EardrumError as error:
            await _finished(answering)
            if not self._streaming:
                raise
            access.record(self._scope).note = error.message
            await self._end_stream(answers.failed(error))
        finally:
            await _finished(receiving)
            await _finished(answering)

    async def _receive(self) -> NoReturn:
        """Take in the upload, then watch over the connection. Ends only by raising."""
        await self._upload.pour(self._spool)
        self._poured.set()
        await self._upload.body.until_gone()

    async def _answer(self) -> None:
        """Begin as soon as the model is known; begin again should fields behind the file change what is asked."""
        wish = self._upload.wish()
        if wish.model and wish.stream:
            await self._stream(wish)
            return
        early = asyncio.ensure_future(self._transcribe(wish, settled=False)) if wish.model else None
        try:
            await self._until_poured(early)
            final = self._upload.wish()
            if early and not final.stream and self._same(final, wish):
                await self._reply(await early, final)
                return
            if early:
                await _finished(early)
            if final.stream:
                await self._stream(final)
            else:
                await self._reply(await self._transcribe(final), final)
        finally:
            if early:
                await _finished(early)

    async def _until_poured(self, work: asyncio.Future[Any] | None) -> None:
        """Wait for the end of the upload, or for `work` to fail before that."""
        poured: asyncio.Future[Any] = asyncio.ensure_future(self._poured.wait())
        try:
            if work:
                await asyncio.wait({poured, work}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()
            await poured
        finally:
            poured.cancel()

    async def _transcribe(self, wish: Wish, *, settled: bool = True) -> Transcript:
        """The transcript of what is asked, or, if that is not settled yet, of what may still be asked without any more work."""
        model = self._service.find(wish.model, wish.request)
        access.record(self._scope).model = model.id
        request = _request(wish, model)
        if not settled and not _asks_another_server(model):
            request = replace(request, times=True)
        return await self._service.transcribe(model, request, self._spool)

    def _same(self, one: Wish, other: Wish) -> bool:
        """Whether one decoding answers both."""
        if not one.asks_the_same_as(other):
            return False
        model = self._service.find(one.model, one.request)
        if _asks_another_server(model) and one.request.times and not other.request.times:
            return False
        return one.extra == other.extra or not model.foreign

    async def _reply(self, transcript: Transcript, wish: Wish) -> None:
        model = self._service.catalog.find(transcript.summary.model)  # who served it: not always who was asked
        access.record(self._scope).about(model, transcript.summary)
        response = await answers.answer_beside(transcript, wish)
        response.headers["x-eardrum-model"] = quote(model.id, safe="/ :@+")  # ids of the config may be in any script
        if transcript.summary.warnings:
            response.headers["x-eardrum-warnings"] = header_values.sentence(" ".join(transcript.summary.warnings))
        _name_ignored(self._scope, response, wish, model)
        answers.name_track(response, transcript.summary)
        await response(self._scope, _nothing, self._send)

    async def _stream(self, wish: Wish) -> None:
        model = self._service.find(wish.model, wish.request)
        access.record(self._scope).model = model.id
        transcript, said, in_parts, opened = Transcript(), "", False, Opened(None)
        async with aclosing(self._service.stream(model, _request(wish, model), self._spool)) as events:
            async for event in events:
                if isinstance(event, Opened):
                    opened = event
                elif isinstance(event, Delta):
                    await self._begin_stream(model, wish, opened)
                    await self._chunk(answers.partial(event.text))
                    in_parts = True
                elif isinstance(event, Segment) and not in_parts:
                    await self._begin_stream(model, wish, opened)
                    await self._chunk(answers.delta(event, wish, before=said))
                    said = event.text.strip() or said
                transcript.add(event)
        await self._poured.wait()
        if not self._same(self._upload.wish(), wish):
            raise InvalidRequestError("A field after the file came too late for this stream: send fields before the file.")
        await self._begin_stream(model, wish, opened)
        access.record(self._scope).about(model, transcript.summary)
        await self._end_stream(answers.done(transcript, wish))

    async def _begin_stream(self, model: Model, wish: Wish, opened: Opened) -> None:
        if self._streaming:
            return
        self._streaming = True
        response = Response(media_type="text/event-stream")
        del response.headers["content-length"]
        response.headers.update({"cache-control": "no-cache", "x-accel-buffering": "no"})
        _name_ignored(self._scope, response, wish, model)
        answers.name_track(response, opened)
        await self._send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})

    async def _chunk(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _end_stream(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def _request(wish: Wish, model: Model) -> Request:
    return wish.for_foreign() if model.foreign else wish.request


def _asks_another_server(model: Model) -> bool:
    """Whether times have to be asked for: our own engines have them anyway."""
    return model.foreign or model.card.remote


def _name_ignored(scope: Scope, response: Response, wish: Wish, model: Model) -> None:
    query = [f"?{name}" for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)]
    if ignored := wish.ignored(model.capabilities, foreign=model.foreign) + query:
        response.headers["x-eardrum-ignored"] = header_values.listed(ignored)


async def _finished(task: asyncio.Future[Any]) -> None:
    """Cancel the task if need be and wait until it has cleaned up."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen; asyncio would otherwise complain of an error nobody asked for


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}
