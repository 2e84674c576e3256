"""Serves endless streams: logs as plain text, and all changes as server-sent events.

A stream ends when the client disconnects or the server shuts down; a client that stops reading is disconnected.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from eardrum.api.asgi import Receive, Scope, Send, build_stream_headers, get_transport, hang_up
from eardrum.api.llama_swap import status
from eardrum.api.llama_swap.status import RequestChanges
from eardrum.api.request_log import RequestTracker, get_record
from eardrum.connection_limits import describe_stall
from eardrum.errors import ModelNotFoundError
from eardrum.gateway.change_feed import ChangeSubscriber, ChangeTopic
from eardrum.gateway.logs import LogBuffer
from eardrum.gateway.service import Service

REQUESTS_INTERVAL_S = 0.25
"""Interval between updates of the requests in progress, which change with every byte of a response."""


class EventStream:
    """The ASGI application that streams the state of the server and its changes."""

    def __init__(self, service: Service, activity: RequestTracker):
        self._service = service
        self._activity = activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the current state, then the changes."""
        await serve_endless_stream(self._service, scope, receive, send, "text/event-stream", self._write_events)

    async def _write_events(self, write: WriteBytes) -> None:
        kept, events = self._service.logs, self._service.change_feed
        requests = RequestChanges(self._activity)
        async with aclosing(kept.server.follow_lines()) as server, aclosing(kept.models.follow_lines()) as upstream:
            with (
                events.subscribe(ChangeTopic.MODELS, ChangeTopic.PROFILE) as changes,
                events.subscribe(ChangeTopic.REQUESTS) as traffic,
            ):
                if kept.server.get_lines():
                    await write(_encode_lines(SERVER_LOG, await anext(server)))
                if kept.models.get_lines():
                    await write(_encode_lines(MODELS_LOG, await anext(upstream)))
                await write(self._encode_models() + self._encode_profile() + _encode_event("inflight", requests.take_snapshot()))
                async with asyncio.TaskGroup() as group:
                    group.create_task(_write_lines(write, SERVER_LOG, server))
                    group.create_task(_write_lines(write, MODELS_LOG, upstream))
                    group.create_task(self._write_changes(write, changes))
                    group.create_task(_write_requests(write, traffic, requests))

    async def _write_changes(self, write: WriteBytes, changes: ChangeSubscriber) -> None:
        async for topics in changes:
            if ChangeTopic.PROFILE in topics:
                await write(self._encode_profile())
            if ChangeTopic.MODELS in topics:
                await write(self._encode_models())

    def _encode_models(self) -> bytes:
        return _encode_event("modelStatus", list(status.list_statuses(self._service)))

    def _encode_profile(self) -> bytes:
        return _encode_event("profileChanged", {"active": self._service.name_resolver.active_profile or None})


async def _write_lines(write: WriteBytes, source: str, following: AsyncGenerator[list[str], None]) -> None:
    async for lines in following:
        await write(_encode_lines(source, lines))


async def _write_requests(write: WriteBytes, traffic: ChangeSubscriber, requests: RequestChanges) -> None:
    async for _ in traffic:
        news = [_encode_event("inflight", update) for update in requests.list_changes()]
        news += [_encode_event("activity", {"id": number}) for number in requests.list_finished()]
        if news:
            await write(b"".join(news))
        await asyncio.sleep(REQUESTS_INTERVAL_S)


def _encode_lines(source: str, lines: list[str]) -> bytes:
    return _encode_event("logData", {"source": source, "data": join_lines(lines)})


def _encode_event(kind: str, data: Any) -> bytes:
    """Encode an event. Its data is JSON in a JSON string, as llama-swap's clients expect."""
    return f"event:message\ndata:{json.dumps({'type': kind, 'data': json.dumps(data)})}\n\n".encode()


SERVER_LOG, MODELS_LOG = "proxy", "upstream"
"""Names of the server's log and of the log of all models. Any other name is a model's."""

PLAIN_TEXT = "text/plain; charset=utf-8"


class LogHistory:
    """Serves the buffered lines of the logs."""

    def __init__(self, service: Service):
        self._service = service

    async def show_server_log(self, _: Request) -> Response:
        """Serve the server's log."""
        return PlainTextResponse(join_lines(self._service.logs.server.get_lines()).encode(errors="replace"))

    async def show_log(self, request: Request) -> Response:
        """Serve the log of a model, of all models or of the server."""
        return PlainTextResponse(
            join_lines(_find_log(self._service, request.path_params["name"]).get_lines()).encode(errors="replace")
        )


class LogStream:
    """The ASGI application that streams the buffered and the new lines of a log."""

    def __init__(self, service: Service):
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream one log."""
        request = Request(scope)
        log = _find_log(self._service, request.path_params.get("name", SERVER_LOG))

        async def produce(write: WriteBytes) -> None:
            async with aclosing(log.follow_lines(history="no-history" not in request.query_params)) as news:
                async for lines in news:
                    await write(join_lines(lines).encode(errors="replace"))

        await serve_endless_stream(self._service, scope, receive, send, PLAIN_TEXT, produce)


def _find_log(service: Service, name: str) -> LogBuffer:
    if name in (SERVER_LOG, MODELS_LOG):
        return service.logs.server if name == SERVER_LOG else service.logs.models
    model = service.find_model(name)
    if model.needs_download:  # a log each would be unbounded: any downloadable model has a name
        raise ModelNotFoundError(service.catalog.explain_download(model))
    return service.logs.get_model_log(model.id)


def join_lines(lines: Sequence[str]) -> str:
    """Join lines, each with a line end."""
    return "".join(f"{line}\n" for line in lines)


WriteBytes = Callable[[bytes], Awaitable[None]]

SHUTDOWN_SEND_TIMEOUT_S = 1.0
"""Time for a client to read the rest of a stream when the server shuts down."""


async def serve_endless_stream(
    service: Service,
    scope: Scope,
    receive: Receive,
    send: Send,
    media_type: str,
    produce: Callable[[WriteBytes], Awaitable[None]],
) -> None:
    """Send the data that `produce` writes until the server shuts down. Nothing is buffered here: a client is disconnected if it
    does not read for `limits.stall_seconds`, or does not read the rest when the server shuts down.
    """
    headers = [*build_stream_headers(media_type), (b"x-content-type-options", b"nosniff")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body"})
        return
    get_transport(scope).set_write_buffer_limits(0)  # a write waits for the one before it to be out

    async def write(data: bytes) -> None:
        try:
            async with asyncio.timeout(service.settings.limits.stall_seconds):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            get_record(scope).note = describe_stall(service.settings.limits.stall_seconds)
            get_transport(scope).abort()

    producing = asyncio.ensure_future(produce(write))
    leaving = asyncio.ensure_future(_wait_for_disconnect(receive))
    over = asyncio.ensure_future(service.change_feed.ended.wait())
    try:
        await asyncio.wait({producing, leaving, over}, return_when=asyncio.FIRST_COMPLETED)
        if not leaving.done():
            await _finish_stream(scope, receive, send, producing)
    finally:
        for task in (producing, leaving, over):
            task.cancel()
        await asyncio.wait({producing, leaving, over})


async def _finish_stream(scope: Scope, receive: Receive, send: Send, producing: asyncio.Future[None]) -> None:
    """Send the rest of the stream, and end the response if the client reads it."""
    try:
        async with asyncio.timeout(SHUTDOWN_SEND_TIMEOUT_S):
            await asyncio.shield(producing)
            await send({"type": "http.response.body", "body": b"", "more_body": True})
    except TimeoutError:
        await hang_up(scope, receive)
    else:
        await send({"type": "http.response.body"})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
