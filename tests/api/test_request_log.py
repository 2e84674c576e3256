"""What happens to every request."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from eardrum.api.asgi import ClientGoneError, Receive, Scope, Send
from eardrum.api.request_log import RequestLogMiddleware, RequestTracker
from eardrum.gateway.metrics import GatewayMetrics
from eardrum.request_ids import create_request_id
from eardrum.server.app import build_path_error
from eardrum.transcription import DroppedText, TranscriptionSummary


class WatchedScope(dict[str, Any]):
    """A scope that can be watched."""


def create_scope() -> WatchedScope:
    return WatchedScope(type="http", method="GET", path="/x", raw_path=b"/x", query_string=b"", headers=[])


@pytest.fixture
def paused_collector() -> Iterator[None]:
    """Nothing goes but what nobody holds on to."""
    gc.disable()
    yield
    gc.enable()


async def receive_nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def serve_scope(access: RequestLogMiddleware, scope: Scope) -> list[Any]:
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    await asyncio.create_task(access(scope, receive_nothing, send))
    return said


async def send_answer(scope: Scope, receive: Receive, send: Send) -> None:
    scope["eardrum.record"].model = "m"
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


@pytest.mark.usefixtures("paused_collector")
async def test_a_request_leaves_nothing_for_the_garbage_collector() -> None:
    access, scope = RequestLogMiddleware(send_answer, RequestTracker(), build_path_error), create_scope()
    watched = weakref.ref(scope)
    await serve_scope(access, scope)
    del scope
    await asyncio.sleep(0)
    assert watched() is None


async def test_every_request_has_an_id_of_its_own() -> None:
    access = RequestLogMiddleware(send_answer, RequestTracker(), build_path_error)
    another = RequestLogMiddleware(send_answer, RequestTracker(), build_path_error)
    ids = {dict((await serve_scope(one, create_scope()))[0]["headers"])[b"x-request-id"] for one in (access, access, another)}
    assert len(ids) == 3
    assert all(id.startswith(b"req_") and len(id) == 28 for id in ids)


def create_scope_with_id(id: bytes) -> WatchedScope:
    return WatchedScope(create_scope() | {"headers": [(b"x-request-id", id)]})


async def test_a_client_chooses_an_id_that_no_other_request_has() -> None:
    seen: list[str] = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["eardrum.record"].id)
        if len(seen) == 1:
            await serve_scope(access, create_scope_with_id(b"mine"))
            await serve_scope(access, create_scope_with_id(create_request_id().encode()))
        await send_answer(scope, receive, send)

    access = RequestLogMiddleware(answer, RequestTracker(), build_path_error)
    await serve_scope(access, create_scope_with_id(b"mine"))
    await serve_scope(access, create_scope_with_id(b"mine"))
    assert [id if id == "mine" else id[:4] for id in seen] == ["mine", "req_", "req_", "mine"]
    assert len(set(seen)) == 3


async def test_the_wait_for_models_is_in_the_line_of_the_request_that_waited(caplog: pytest.LogCaptureFixture) -> None:
    metrics = GatewayMetrics()
    waits = iter([(1.25, 0.5), ()])

    async def lease(seconds: float) -> None:
        metrics.record_model_wait("m", seconds)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        for seconds in next(waits):
            await asyncio.create_task(lease(seconds))  # as live sessions do, in a task that the request starts
        await send_answer(scope, receive, send)

    access = RequestLogMiddleware(answer, RequestTracker(), build_path_error)
    with caplog.at_level("INFO"):
        await serve_scope(access, create_scope())
        await serve_scope(access, create_scope())
    first, second = (record.getMessage() for record in caplog.records)
    assert " model=m model_wait_s=1.75 total_s=" in first
    assert "model_wait_s" not in second
    assert metrics.model_waits["m"].total == 1.75


async def test_dropped_text_is_logged_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["eardrum.record"].summary = TranscriptionSummary(
            "en", 1.0, dropped=[DroppedText(0.0, 1.0, "thank you", "only noise"), DroppedText(2.0, 3.0, "bye", "only noise")]
        )
        await send_answer(scope, receive, send)

    access = RequestLogMiddleware(answer, RequestTracker(), build_path_error)
    with caplog.at_level("DEBUG"):
        await serve_scope(access, create_scope())
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.INFO]
    assert 'dropped="2 x only noise"' in told[0]
    assert "thank you" not in told[0]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG] == [
        "Dropped text: 'thank you' (only noise); 'bye' (only noise)"
    ]


@pytest.mark.parametrize(("is_complete", "is_noted"), [(True, False), (False, True)])
async def test_a_client_that_left_with_the_whole_answer_is_not_noted(
    caplog: pytest.LogCaptureFixture, is_complete: bool, is_noted: bool
) -> None:
    """Programs such as curl close the connection at once, maybe before the request has ended here."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": not is_complete})
        raise ClientGoneError

    with caplog.at_level(logging.INFO):
        await serve_scope(RequestLogMiddleware(answer, RequestTracker(), build_path_error), create_scope())
    assert ("client disconnected" in caplog.text) is is_noted
    assert "GET /x 200" in caplog.text
