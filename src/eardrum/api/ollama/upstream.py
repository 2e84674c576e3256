"""Asks the upstream of a model and reads what it says, streamed or not."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from eardrum import json_text
from eardrum.api.ollama.asks import Ask
from eardrum.api.ollama.chunks import worded
from eardrum.api.ollama.events import Events
from eardrum.api.ollama.refusals import of_upstream
from eardrum.errors import EardrumError, UpstreamError
from eardrum.gateway.inventory import COMMAND, Model
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams import filters
from eardrum.gateway.upstreams.connection import Answer
from eardrum.gateway.upstreams.foreign import Outgoing, chunks
from eardrum.remote.refusal import Reply

DONE = "[DONE]"
HEADERS = ((b"content-type", b"application/json"), (b"accept-encoding", b"identity"))


def request(service: Service, model: Model, ask: Ask, named: str, authorization: str) -> Outgoing:
    """What the upstream gets, with what the config changes for models asked for as `named`.

    A key to this server is for this machine only: what runs elsewhere does not get it.
    """
    headers = [*HEADERS]
    if authorization and (model.engine == COMMAND or not service.settings.apiKeys):
        headers.append((b"authorization", authorization.encode("latin-1")))
    return Outgoing("POST", ask.path, headers, json.dumps(filters.apply(ask.body, model.entry, named)).encode())


async def events(model: Model, response: Answer) -> AsyncGenerator[Any, None]:
    """Each event of the answer, or the whole answer; and None when it is whole or a stream says itself that it is done.

    Raises:
        UpstreamRefusedError: the upstream refuses what was asked, with a status that tells the client what to do.
        UpstreamError: it fails, or sends what nobody can read.
        UpstreamDiedError: it breaks off.
    """
    if response.status >= 400:
        raise _refused(model, response, b"".join([piece async for piece in chunks(response)]))
    if response.content_type != "text/event-stream":
        yield _parsed(model, b"".join([piece async for piece in chunks(response)]))
        yield None
        return
    found = Events()
    async for piece in chunks(response):
        for data in found.feed(piece):
            yield None if data == DONE else _parsed(model, data)
            if data == DONE:
                return
    for data in found.end():
        yield None if data == DONE else _parsed(model, data)


def _refused(model: Model, response: Answer, content: bytes) -> EardrumError:
    """What the upstream said, and when to come back."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.raw_headers}
    reply = Reply("", response.status, headers, content)
    said = reply.json if reply.json is not None else reply.text[:500]
    message = worded(said.get("error") or said if isinstance(said, dict) else said) or f"It answered {response.status}."
    return of_upstream(model.id, response.status, message, reply.retry_after)


def _parsed(model: Model, data: bytes | str) -> Any:
    try:
        return json_text.parsed_of_server(data)
    except ValueError:
        start = data[:200].decode(errors="replace") if isinstance(data, bytes) else data[:200]
        raise UpstreamError(f"The server behind {model.id} sent what is not JSON: {start}") from None
