"""Everything that changes, as one stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from eardrum.api.activity import Activity
from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.endless import Write, endless
from eardrum.api.llama_swap import logs, models
from eardrum.api.llama_swap.requests import InProgress
from eardrum.gateway.events import Follower, Topic
from eardrum.gateway.service import Service

PAUSE_S = 0.25
"""Between two looks at the requests in progress: with every byte of an answer they change."""


class Events:
    """The stream, as an ASGI application."""

    def __init__(self, service: Service, activity: Activity):
        self._service = service
        self._activity = activity

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one follower: first how everything is, then what changes."""
        await endless(self._service, scope, receive, send, "text/event-stream", self._tell)

    async def _tell(self, write: Write) -> None:
        kept, events = self._service.logs, self._service.events
        requests = InProgress(self._activity)
        async with aclosing(kept.server.follow()) as server, aclosing(kept.models.follow()) as upstream:
            with events.follow(Topic.MODELS, Topic.PROFILE) as changes, events.follow(Topic.REQUESTS) as traffic:
                if kept.server.lines():
                    await write(_lines(logs.SERVER, await anext(server)))
                if kept.models.lines():
                    await write(_lines(logs.MODELS, await anext(upstream)))
                await write(self._models() + self._profile() + _message("inflight", requests.snapshot()))
                async with asyncio.TaskGroup() as group:
                    group.create_task(_tell_lines(write, logs.SERVER, server))
                    group.create_task(_tell_lines(write, logs.MODELS, upstream))
                    group.create_task(self._tell_changes(write, changes))
                    group.create_task(_tell_requests(write, traffic, requests))

    async def _tell_changes(self, write: Write, changes: Follower) -> None:
        async for topics in changes:
            if Topic.PROFILE in topics:
                await write(self._profile())
            if Topic.MODELS in topics:
                await write(self._models())

    def _models(self) -> bytes:
        return _message("modelStatus", list(models.statuses(self._service)))

    def _profile(self) -> bytes:
        return _message("profileChanged", {"active": self._service.selection.active or None})


async def _tell_lines(write: Write, source: str, following: AsyncGenerator[list[str], None]) -> None:
    async for lines in following:
        await write(_lines(source, lines))


async def _tell_requests(write: Write, traffic: Follower, requests: InProgress) -> None:
    async for _ in traffic:
        news = [_message("inflight", update) for update in requests.news()]
        news += [_message("activity", {"id": number}) for number in requests.finished()]
        if news:
            await write(b"".join(news))
        await asyncio.sleep(PAUSE_S)


def _lines(source: str, lines: list[str]) -> bytes:
    return _message("logData", {"source": source, "data": logs.text(lines)})


def _message(kind: str, data: Any) -> bytes:
    """One event. Its data are JSON in a string in JSON, as llama-swap's clients expect."""
    return f"event:message\ndata:{json.dumps({'type': kind, 'data': json.dumps(data)})}\n\n".encode()
