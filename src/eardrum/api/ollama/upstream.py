"""Asks an upstream and yields what it says, streamed or not."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp

from eardrum.api.ollama.asks import Ask
from eardrum.api.ollama.chunks import worded
from eardrum.api.ollama.events import Events
from eardrum.errors import EardrumError, InvalidRequestError, RunnerCrashedError, UpstreamError
from eardrum.gateway.foreign import ForeignUpstream
from eardrum.gateway.inventory import ADDRESS, Model

DONE = "[DONE]"
HEADERS = {"accept-encoding": "identity"}
CLIENTS_FAULT = (400, 413, 422)
"""Statuses with which an upstream refuses what the client asked, and not us."""


async def answer(upstream: ForeignUpstream, model: Model, ask: Ask) -> AsyncGenerator[Any, None]:
    """Each event of the answer, or the whole answer; and None when a stream says itself that it is done.

    Raises:
        InvalidRequestError: the upstream refuses what was asked.
        UpstreamError: it fails, or sends what nobody can read.
        RunnerCrashedError: the connection to a command broke.
    """
    try:
        async with upstream.session.post(upstream.address + ask.path, json=ask.body, headers=HEADERS) as response:
            if response.status >= 400:
                raise _refused(model, response.status, await response.read())
            if response.content_type != "text/event-stream":
                yield _parsed(model, await response.read())
                yield None
                return
            events = Events()
            async for piece in response.content.iter_any():
                for data in events.feed(piece):
                    yield None if data == DONE else _parsed(model, data)
                    if data == DONE:
                        return
            for data in events.end():
                yield None if data == DONE else _parsed(model, data)
    except (aiohttp.ClientError, OSError) as error:
        broken = UpstreamError if model.engine == ADDRESS else RunnerCrashedError
        raise broken(f"The connection to the server behind {model.id} broke: {str(error) or type(error).__name__}") from error


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
