"""What happens to every request."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.openai import responses
from eardrum.api.request_log import RequestLogMiddleware, RequestTracker


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
    access, scope = RequestLogMiddleware(send_answer, RequestTracker(), responses.build_error_response), create_scope()
    watched = weakref.ref(scope)
    await serve_scope(access, scope)
    del scope
    await asyncio.sleep(0)
    assert watched() is None


async def test_every_request_has_an_id_of_its_own() -> None:
    access = RequestLogMiddleware(send_answer, RequestTracker(), responses.build_error_response)
    another = RequestLogMiddleware(send_answer, RequestTracker(), responses.build_error_response)
    ids = {dict((await serve_scope(one, create_scope()))[0]["headers"])[b"x-request-id"] for one in (access, access, another)}
    assert len(ids) == 3
    assert all(id.startswith(b"req_") and len(id) == 28 for id in ids)
