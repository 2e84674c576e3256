"""Serves the server's state in llama-swap's format: models, requests, logs, and a stream of all changes.

A stream ends when the client disconnects or the server shuts down; a client that stops reading is disconnected.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from eardrum.api.asgi import ClientGoneError, Receive, Scope, Send, StreamedResponse, build_stream_headers, get_transport, hang_up
from eardrum.api.disconnect import DisconnectWatcher
from eardrum.api.request_log import FinishedRequest, RequestRecord, RequestTracker, get_record
from eardrum.concurrency import run_alongside
from eardrum.connection_limits import describe_stall
from eardrum.errors import InvalidRequestError, ModelNotFoundError, NotFoundError
from eardrum.gateway.change_feed import ChangeSubscriber, ChangeTopic
from eardrum.gateway.key_usage import is_model_visible
from eardrum.gateway.logs import LogBuffer
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.scheduler import ModelState
from eardrum.gateway.service import Service
from eardrum.redaction import redact_command, redact_headers

LLAMA_SWAP_STATES = {
    ModelState.STOPPED: "stopped",
    ModelState.STARTING: "starting",
    ModelState.READY: "ready",
    ModelState.DRAINING: "stopping",
    ModelState.STOPPING: "stopping",
    ModelState.FAILED: "stopped",
}
"""llama-swap's name of each state."""


def list_running(service: Service) -> list[dict[str, Any]]:
    """List the running models for `/running`."""
    visible = (model for model in service.list_present() if is_model_visible(model.id, model.aliases))
    found = [(model, LLAMA_SWAP_STATES[service.get_state(model)]) for model in visible if not model.is_internal]
    return [
        {
            "model": model.id,
            "state": state,
            "cmd": redact_command(model.entry.cmd) if model.entry else "",
            "proxy": redact_command(model.entry.proxy) if model.entry else "",
            "ttl": int(model.ttl) if model.ttl == int(model.ttl) else model.ttl,
            **_describe_names(model),
        }
        for model, state in sorted(found, key=lambda pair: pair[0].id)
        if state != "stopped"
    ]


def list_statuses(service: Service) -> Iterator[dict[str, Any]]:
    """Yield all models with their states, then those of peers."""
    for model in sorted(service.catalog, key=lambda model: model.id):
        aliases = service.catalog.list_aliases(model)
        gone = service.unload_history.find_last(model.id)
        yield {
            "id": model.id,
            "state": LLAMA_SWAP_STATES[service.get_state(model)],
            "unlisted": bool(model.entry and model.entry.unlisted),
            "peerID": "",
            **_describe_names(model),
            **({"aliases": aliases} if aliases else {}),
            **({"reason": gone.cause.reason, "message": str(gone)} if gone else {}),
        }
    for peer, entry in service.settings.peers.items():
        for name in entry.models:
            yield {"id": name, "name": "", "description": "", "state": "", "unlisted": False, "peerID": peer}


def _describe_names(model: Model) -> dict[str, str]:
    return {"name": model.entry.name if model.entry else "", "description": model.entry.description if model.entry else ""}


DEFAULT_ROWS, MAX_ROWS = 25, 999


class ActivityRoutes:
    """Lists finished requests and cancels requests in progress."""

    def __init__(self, activity: RequestTracker):
        self._activity = activity

    async def list_finished(self, request: Request) -> Response:
        """Serve a page of the finished requests (`model`, `limit`, `page`, `order`), the latest first."""
        query = request.query_params
        limit, page = (
            _parse_number(query.get("limit", DEFAULT_ROWS), "limit", MAX_ROWS),
            _parse_number(query.get("page", 1), "page"),
        )
        order = query.get("order", "desc").lower()
        if order not in ("asc", "desc"):
            raise InvalidRequestError("order must be asc or desc.", param="order")
        rows = [row for row in self._activity.finished if query.get("model", "") in ("", row.model)]
        if order == "desc":
            rows.reverse()
        shown = rows[(page - 1) * limit : page * limit]
        return JSONResponse(
            {
                "data": [_describe_finished(row) for row in shown],
                "page": page,
                "limit": limit,
                "total": len(rows),
                "total_pages": math.ceil(len(rows) / limit),
            }
        )

    async def cancel(self, request: Request) -> Response:
        """Cancel a request in progress by its id, the `x-request-id` of its response."""
        id = request.path_params["id"]
        if not self._activity.cancel(id):
            raise NotFoundError(f"No request {id} is in progress.")
        return JSONResponse({"msg": "ok"})


class RequestChanges:
    """Tracks, for one subscriber, the requests sent to it and the changes since."""

    def __init__(self, activity: RequestTracker):
        self._activity = activity
        self._known: dict[str, tuple[object, ...]] = {}
        self._last = activity.finished[-1].number if activity.finished else 0

    def take_snapshot(self) -> dict[str, Any]:
        """Describe all requests in progress."""
        records = self._activity.in_progress.values()
        self._known = {record.id: _get_version(record) for record in records}
        return {"operation": "snapshot", "requests": [_describe_record(record) for record in records]}

    def list_changes(self) -> Iterator[dict[str, Any]]:
        """Yield the changes since the last call. A request that began and ended in between is left out."""
        current = {record.id: (record, _get_version(record)) for record in self._activity.in_progress.values()}
        before, self._known = self._known, {id: version for id, (_, version) in current.items()}
        yield from (
            {"operation": "upsert", "request": _describe_record(r)}
            for id, (r, version) in current.items()
            if before.get(id) != version
        )
        yield from ({"operation": "remove", "id": id} for id in before if id not in current)

    def list_finished(self) -> list[int]:
        """Return the numbers of the requests finished since the last call."""
        last, numbers = self._last, [row.number for row in reversed(self._activity.finished)]
        self._last = numbers[0] if numbers else 0
        return sorted(itertools.takewhile(lambda number: number > last, numbers))


def _get_version(record: RequestRecord) -> tuple[object, ...]:
    return record.model, record.status, record.sent


def _describe_record(record: RequestRecord) -> dict[str, Any]:
    client = record.scope.get("client")
    return {
        "id": record.id,
        "timestamp": _format_time(record.started_at),
        "model": record.model,
        "req_path": record.scope["path"],
        "method": record.method,
        "req_headers": redact_headers(record.scope["headers"]),
        "remote_ip": client[0] if client else "",
        "resp_headers": redact_headers(record.headers),
        "resp_bytes": record.sent,
        "elapsed_ms": round(record.elapsed_s * 1000),
    }


def _describe_finished(row: FinishedRequest) -> dict[str, Any]:
    return {
        "id": row.number,
        "timestamp": _format_time(row.started_at),
        "model": row.model,
        "req_path": row.path,
        "resp_content_type": redact_headers(row.headers).get("content-type", ""),
        "resp_status_code": row.status,
        "tokens": {
            "cache_tokens": row.tokens.cached,
            "input_tokens": row.tokens.input,
            "output_tokens": row.tokens.output,
            "prompt_per_second": -1,
            "tokens_per_second": -1,
        },
        "duration_ms": round(row.seconds * 1000),
        "has_capture": False,
        **({"error_msg": row.error} if row.error else {}),
    }


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _parse_number(text: str | int, name: str, maximum: int | None = None) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1 or (maximum and number > maximum):
        limit = f"from 1 to {maximum}" if maximum else "of 1 or more"
        raise InvalidRequestError(f"{name} must be a number {limit}.", param=name)
    return number


REQUESTS_INTERVAL_S = 0.25
"""Interval between updates of the requests in progress, which change with every byte of a response."""


class EventStream:
    """The ASGI application that streams the state of the server and its changes."""

    def __init__(self, service: Service, activity: RequestTracker):
        self._service = service
        self._activity = activity
        self._changed_models = -1, b""
        """The last change of the models as an event, with its version: encoding 2,000 models takes 5 ms."""

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
                await write(self._encode_changed_models())

    def _encode_changed_models(self) -> bytes:
        """Encode the models once for all clients."""
        version = self._service.change_feed.versions[ChangeTopic.MODELS]
        if self._changed_models[0] != version:
            self._changed_models = version, self._encode_models()
        return self._changed_models[1]

    def _encode_models(self) -> bytes:
        return _encode_event("modelStatus", list(list_statuses(self._service)))

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
    does not read for `limits.stall_timeout`, or does not read the rest when the server shuts down.
    """
    response = StreamedResponse(send, [*build_stream_headers(media_type), (b"x-content-type-options", b"nosniff")])
    await response.send(b"", last=scope["method"] == "HEAD")
    if scope["method"] == "HEAD":
        return
    get_transport(scope).set_write_buffer_limits(0)  # a write waits for the one before it to be out

    async def write(data: bytes) -> None:
        try:
            async with asyncio.timeout(service.settings.limits.stall_timeout):
                await response.send(data)
        except TimeoutError:
            get_record(scope).note = describe_stall(service.settings.limits.stall_timeout)
            get_transport(scope).abort()

    with suppress(ClientGoneError):  # that is how most of these streams end
        async with DisconnectWatcher(scope, receive):
            try:
                await _produce_until_shutdown(service.change_feed.ended, response, produce(write))
            except TimeoutError:
                await hang_up(scope, receive)


async def _produce_until_shutdown(shutdown: asyncio.Event, response: StreamedResponse, producing: Awaitable[None]) -> None:
    """Run `producing`, which ends when the server shuts down; then end the response.

    Raises:
        TimeoutError: the client did not read the rest in time.
    """

    async def limit_rest() -> None:
        await shutdown.wait()
        limit.reschedule(asyncio.get_running_loop().time() + SHUTDOWN_SEND_TIMEOUT_S)

    async with asyncio.timeout(None) as limit:
        await run_alongside(producing, limit_rest())
        await response.send(b"")  # waits until everything before it has been sent
    await response.send(b"", last=True)
