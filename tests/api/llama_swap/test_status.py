"""Requests for models in llama-swap's words, whatever kind of request it is."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from eardrum import config
from eardrum.api.llama_swap.monitoring import EventStream, RequestChanges
from eardrum.api.request_log import RequestRecord, RequestTracker
from eardrum.gateway.change_feed import ChangeTopic
from eardrum.gateway.service import Service

KEY = "sk-very-secret"


async def create_record(activity: RequestTracker, id: str, **scope: Any) -> RequestRecord:
    record = RequestRecord(id, {"path": "/v1/realtime", "headers": [], "client": ("10.0.0.7", 5), **scope}, activity)
    record.model = "m"
    return record


async def test_a_websocket_is_told_as_the_get_that_it_began_with() -> None:
    activity = RequestTracker()
    follower = RequestChanges(activity)
    await create_record(activity, "socket", type="websocket")
    await create_record(activity, "upload", type="http", method="POST", client=None)
    told = [update["request"] for update in follower.list_changes()]
    assert [(entry["method"], entry["remote_ip"]) for entry in told] == [("GET", "10.0.0.7"), ("POST", "")]
    assert RequestChanges(activity).take_snapshot()["requests"] == told


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("Authorization", f"Bearer {KEY}", "[redacted]"),
        ("api-key", KEY, "[redacted]"),
        ("x-goog-api-key", KEY, "[redacted]"),
        ("x-auth-token", KEY, "[redacted]"),
        ("cookie", KEY, "[redacted]"),
        ("sec-websocket-protocol", f"realtime, openai-insecure-api-key.{KEY}, openai-beta.realtime-v1", None),
        ("sec-websocket-protocol", f"bearer,{KEY}", "[redacted], [redacted]"),
        ("referer", f"https://page.example/talk?key={KEY}&x=1", "https://page.example/talk?[redacted]"),
        ("x-original-uri", f"/v1/realtime?model=m&api_key={KEY}", "/v1/realtime?[redacted]"),
        ("user-agent", "OpenAI/Python 2.1", "OpenAI/Python 2.1"),
        ("x-ratelimit-remaining-tokens", "7", "7"),
    ],
)
async def test_keys_are_not_told(name: str, value: str, shown: str | None) -> None:
    activity = RequestTracker()
    record = await create_record(activity, "a", type="websocket", headers=[(name.encode(), value.encode())])
    record.start_response(101, [(name.encode(), value.encode())])
    (entry,) = RequestChanges(activity).take_snapshot()["requests"]
    shown = shown or "realtime, [redacted], openai-beta.realtime-v1"
    assert entry["req_headers"] == entry["resp_headers"] == {name.lower(): shown}


async def test_a_change_of_the_models_is_encoded_once_for_all_clients() -> None:
    service = Service(config.Settings(models={"a": config.ModelSettings(proxy="http://127.0.0.1:1")}))
    stream = EventStream(service, RequestTracker())
    received: list[asyncio.Queue[bytes]] = [asyncio.Queue(), asyncio.Queue()]
    clients = [asyncio.create_task(stream._write_events(queue.put)) for queue in received]
    assert len({await queue.get() for queue in received}) == 1, "the state at the beginning"
    changes: list[list[bytes]] = []
    for _ in range(2):
        service.change_feed.publish(ChangeTopic.MODELS)
        changes.append([await asyncio.wait_for(queue.get(), 60) for queue in received])
    service.change_feed.close()
    for client in clients:
        client.cancel()
        with suppress(asyncio.CancelledError):
            await client
    (first, also_first), (second, also_second) = changes
    assert first is also_first
    assert second is also_second
    assert second is not first, "another change is encoded anew"
    event = json.loads(second.decode().removeprefix("event:message\ndata:"))
    assert event["type"] == "modelStatus"
    assert {"a", "moonshine-tiny-en"} <= {model["id"] for model in json.loads(event["data"])}
    await service.shutdown()
