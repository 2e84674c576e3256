"""WebSockets: in order, within bounds, and over when the client or the server is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from eardrum.api import websocket
from eardrum.api.asgi import ClientGoneError, Message
from eardrum.api.request_log import RequestRecord, RequestTracker
from eardrum.api.websocket import CloseCode, ServerWebSocket, get_close_code
from eardrum.concurrency import run_alongside, run_until_first
from eardrum.errors import (
    BusyError,
    EardrumError,
    InvalidRequestError,
    ModelNotFoundError,
    RunnerCrashedError,
    ShuttingDownError,
    TooLargeError,
)
from tests.conftest import run_ready_tasks


class AsgiClient:
    """The other side of an ASGI WebSocket."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.takes = True
        self.aborted = False
        self.over = asyncio.Event()
        self.largest = 0
        self.incoming.put_nowait({"type": "websocket.connect"})

    def send_message(self, *messages: str | bytes) -> None:
        for message in messages:
            kind = "text" if isinstance(message, str) else "bytes"
            self.incoming.put_nowait({"type": "websocket.receive", kind: message})

    def disconnect(self) -> None:
        self.incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})

    def abort(self) -> None:
        self.aborted = True

    def _set_limit(self, largest: int) -> None:
        self.largest = largest

    async def _send(self, message: Message) -> None:
        if not self.takes:
            await asyncio.Event().wait()
        self.sent.append(message)

    def create_socket(self, *, stall_s: float = 5.0, subprotocols: Sequence[str] = ()) -> ServerWebSocket:
        scope: dict[str, Any] = {"type": "websocket", "path": "/", "subprotocols": subprotocols}
        scope["extensions"] = {"eardrum.connection": {"transport": self}, "eardrum.largest": {"call": self._set_limit}}
        scope["eardrum.record"] = RequestRecord("req_1", scope, RequestTracker())
        return ServerWebSocket(scope, self.incoming.get, self._send, shutdown=self.over, stall_s=stall_s, max_message_bytes=1000)


async def test_messages_come_in_order_and_as_what_they_are() -> None:
    client = AsgiClient()
    client.send_message(b"1", "two", b"3")
    async with client.create_socket() as socket:
        heard = socket.__aiter__()
        assert [await anext(heard) for _ in range(3)] == [b"1", "two", b"3"]
        await socket.send_json({"type": "x", "text": "ä"})
        await socket.close(CloseCode.REFUSED, "ü" * 100)
    assert client.sent[0] == {"type": "websocket.accept", "subprotocol": None}
    assert json.loads(client.sent[1]["text"]) == {"type": "x", "text": "ä"}
    assert client.sent[2] == {"type": "websocket.close", "code": 1008, "reason": "ü" * 61}


async def test_messages_of_more_than_twice_the_limit_never_get_here() -> None:
    client = AsgiClient()
    async with client.create_socket():
        pass
    assert client.largest == 2000


async def test_a_client_that_leaves_ends_the_work_at_once() -> None:
    client = AsgiClient()

    async def work() -> None:
        async with client.create_socket():
            client.send_message(b"nobody reads this")
            client.disconnect()
            await asyncio.sleep(30)

    with pytest.raises(ClientGoneError):
        await work()


async def test_a_client_that_leaves_ends_what_runs_beside() -> None:
    client, ended = AsgiClient(), []

    async def way() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append(1)

    async def work() -> None:
        async with client.create_socket():
            asyncio.get_running_loop().call_later(0.01, client.disconnect)
            await run_alongside(way(), way())

    with pytest.raises(ClientGoneError):
        await work()
    assert ended == [1, 1]


async def test_being_cancelled_from_outside_is_not_the_clients_leaving() -> None:
    client = AsgiClient()

    async def work() -> None:
        async with client.create_socket():
            await asyncio.sleep(30)

    task = asyncio.create_task(work())
    await run_ready_tasks()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_more_than_the_bound_is_not_read_until_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_QUEUED_BYTES", 1000)
    client = AsgiClient()
    client.send_message(*[bytes([n]) * 400 for n in range(10)])
    async with client.create_socket() as socket:
        await run_ready_tasks()
        assert client.incoming.qsize() == 7  # 3 x 500 bytes are above the bound
        heard = socket.__aiter__()
        assert [(await anext(heard))[0] for _ in range(10)] == list(range(10))


async def test_a_client_is_noticed_to_leave_while_nothing_is_wanted_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "MAX_QUEUED_BYTES", 100)
    client = AsgiClient()
    client.send_message(*[b"x" * 400] * 10)
    client.disconnect()

    async def work() -> None:
        async with client.create_socket() as socket:
            await run_ready_tasks()
            socket.ignore_messages()
            await asyncio.sleep(30)

    with pytest.raises(ClientGoneError):
        await work()


async def test_a_client_that_takes_nothing_in_is_hung_up_on() -> None:
    client = AsgiClient()

    async def work() -> None:
        async with client.create_socket(stall_s=0.02) as socket:
            client.takes = False
            await socket.send_json({})

    with pytest.raises(ClientGoneError):
        await work()
    assert client.aborted


async def test_when_the_server_ends_the_messages_do_after_those_that_came() -> None:
    client = AsgiClient()
    client.send_message(b"1", b"2")
    async with client.create_socket() as socket:
        await run_ready_tasks()
        client.over.set()
        await run_ready_tasks()
        client.send_message(b"too late")
        assert [message async for message in socket] == [b"1", b"2"]
        assert socket.is_shutting_down
        await socket.close(CloseCode.GOING_AWAY)
    assert client.sent[-1]["code"] == 1001


async def test_a_fault_of_ours_closes_it_with_a_word() -> None:
    client = AsgiClient()

    async def work() -> None:
        async with client.create_socket():
            raise KeyError("oops")

    with pytest.raises(KeyError):
        await work()
    assert client.sent[-1]["code"] == 1011
    assert "log" in client.sent[-1]["reason"]


async def test_closing_is_not_taken_for_the_clients_leaving() -> None:
    client = AsgiClient()
    async with client.create_socket() as socket:
        await socket.close()
        client.disconnect()
        await run_ready_tasks()


async def raise_error() -> None:
    raise RunnerCrashedError("dead")


async def test_one_that_fails_ends_the_other() -> None:
    with pytest.raises(RunnerCrashedError):
        await run_alongside(asyncio.sleep(30), raise_error())
    with pytest.raises(RunnerCrashedError):
        await run_alongside(raise_error(), asyncio.sleep(30))


async def test_the_leading_one_decides_about_the_end() -> None:
    ended = []

    async def leads() -> None:
        await asyncio.sleep(0.02)
        ended.append("leading")

    await run_alongside(leads(), asyncio.sleep(0))
    assert ended == ["leading"]
    await run_alongside(leads(), asyncio.sleep(30))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ModelNotFoundError("x"), 1008),
        (InvalidRequestError("x"), 1008),
        (TooLargeError("x"), 1009),
        (BusyError("x"), 1013),
        (ShuttingDownError("x"), 1012),
        (RunnerCrashedError("x"), 1011),
        (EardrumError("x"), 1011),
    ],
)
def test_the_code_tells_whose_fault_it_was(error: EardrumError, code: int) -> None:
    assert get_close_code(error) == code


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ([], None),
        (["binary"], "binary"),
        (["openai-insecure-api-key.sk", "mine"], "mine"),
        (["openai-insecure-api-key.sk"], "openai-insecure-api-key.sk"),
    ],
)
async def test_a_subprotocol_is_taken_and_not_the_key_if_there_is_another(offered: list[str], taken: str | None) -> None:
    client = AsgiClient()
    async with client.create_socket(subprotocols=offered):
        assert client.sent == [{"type": "websocket.accept", "subprotocol": taken}]


async def test_the_first_way_that_ends_ends_the_others() -> None:
    await run_until_first(asyncio.sleep(30), asyncio.sleep(0))
    with pytest.raises(RunnerCrashedError):
        await run_until_first(asyncio.sleep(30), raise_error())


async def test_a_server_that_ends_does_not_wait_for_a_client_that_takes_nothing_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "SHUTDOWN_SEND_TIMEOUT_S", 0.02)
    client = AsgiClient()

    async def work() -> None:
        async with client.create_socket(stall_s=60) as socket:
            client.takes = False
            asyncio.get_running_loop().call_later(0.01, client.over.set)
            async with asyncio.timeout(30):
                await socket.send_json({})

    with pytest.raises(ClientGoneError):
        await work()
    assert client.aborted
