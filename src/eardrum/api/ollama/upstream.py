"""Asks the upstream of a model and reads what it says, streamed or not."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from eardrum.api.ollama.asks import Ask
from eardrum.api.ollama.chunks import worded
from eardrum.api.ollama.events import Events
from eardrum.errors import EardrumError, InvalidRequestError, RunnerCrashedError, UpstreamError
from eardrum.gateway.foreign import ForeignUpstream
from eardrum.gateway.inventory import ADDRESS, Model
from eardrum.gateway.service import Service

DONE = "[DONE]"
HEADERS = {"accept-encoding": "identity"}
CLIENTS_FAULT = (400, 413, 422)
"""Statuses with which an upstream refuses what the client asked, and not us."""


@asynccontextmanager
async def answered(service: Service, model: Model, ask: Ask) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer of the model's upstream, which is kept loaded meanwhile. Leaving before its end hangs up.

    Raises:
        UpstreamError: the upstream cannot be reached, or broke off.
        RunnerCrashedError: so did a command of ours.
        EardrumError: as `Service.lease`.
    """
    async with service.lease(model) as upstream:
        assert isinstance(upstream, ForeignUpstream)
        try:
            async with upstream.session.post(upstream.address + ask.path, json=ask.body, headers=HEADERS) as response:
                yield response
        except (aiohttp.ClientError, OSError) as error:
            broken = UpstreamError if model.engine == ADDRESS else RunnerCrashedError
            raise broken(f"The connection to the server behind {model.id} broke: {str(error) or type(error).__name__}") from error


async def events(model: Model, response: aiohttp.ClientResponse) -> AsyncGenerator[Any, None]:
    """Each event of the answer, or the whole answer; and None when it is whole or a stream says itself that it is done.

    Raises:
        InvalidRequestError: the upstream refuses what was asked.
        UpstreamError: it fails, or sends what nobody can read.
    """
    if response.status >= 400:
        raise _refused(model, response.status, await response.read())
    if response.content_type != "text/event-stream":
        yield _parsed(model, await response.read())
        yield None
        return
    found = Events()
    async for piece in response.content.iter_any():
        for data in found.feed(piece):
            yield None if data == DONE else _parsed(model, data)
            if data == DONE:
                return
    for data in found.end():
        yield None if data == DONE else _parsed(model, data)


def _refused(model: Model, status: int, content: bytes) -> EardrumError:
    """What the upstream said, as the client's fault or the upstream's."""
    text = content.decode(errors="replace")
    try:
        said = json.loads(text)
    except ValueError:
        said = text.strip()[:500]
    message = worded(said.get("error") or said if isinstance(said, dict) else said) or f"It answered {status}."
    if status in CLIENTS_FAULT:
        return InvalidRequestError(message)
    return UpstreamError(f"The server behind {model.id} answered {status}: {message}")


def _parsed(model: Model, data: bytes | str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        start = data[:200].decode(errors="replace") if isinstance(data, bytes) else data[:200]
        raise UpstreamError(f"The server behind {model.id} sent what is not JSON: {start}") from None
