"""`/api/embed` and `/api/embeddings`."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from eardrum.api.ollama import abilities, asks, durations
from eardrum.api.ollama.asks import Ask
from eardrum.api.ollama.exchange import Reply
from eardrum.api.ollama.fallback import first_answer
from eardrum.api.ollama.fields import named, text
from eardrum.api.ollama.names import Names
from eardrum.api.ollama.upstream import events, request
from eardrum.errors import InvalidRequestError, UpstreamError
from eardrum.gateway.forwarding import Asking
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service

MOST_TOKENS = 1 << 53
"""A larger number is no count, and more than clients can hold."""


class Embeddings:
    """The two endpoints."""

    def __init__(self, service: Service, names: Names):
        self._service = service
        self._names = names

    async def many(self, wish: dict[str, Any], reply: Reply) -> None:
        """`/api/embed`: a vector for each input."""
        began = time.monotonic()
        model, asked = self._model(wish, reply)
        ask = asks.embed(wish, model.id)
        said = await self._ask(model, ask, asked, reply, wish.get("keep_alive"))
        figures = {"total_duration": durations.nanoseconds(time.monotonic() - began), "prompt_eval_count": _tokens(said)}
        vectors = _vectors(model, said, len(ask.body["input"]) if ask else 0)
        await reply.whole(
            {"model": named(wish), "embeddings": vectors} | {name: value for name, value in figures.items() if value}
        )

    async def one(self, wish: dict[str, Any], reply: Reply) -> None:
        """`/api/embeddings`, the older one: the vector of a prompt."""
        model, asked = self._model(wish, reply)
        prompt = text(wish, "prompt")
        said = await self._ask(model, asks.embed({"input": prompt}, model.id), asked, reply, wish.get("keep_alive"))
        await reply.whole({"embedding": (_vectors(model, said, 1) if prompt else [[]])[0]})

    def _model(self, wish: dict[str, Any], reply: Reply) -> tuple[Model, str]:
        """The model, kept as long as the client says, and the name it is asked by."""
        found, asked = self._names.resolve(named(wish))
        reply.record.model = found.id
        if abilities.hears(found):
            raise InvalidRequestError(f'"{found.id}" does not support embeddings: it turns speech into text.', param="model")
        return replace(found, ttl=durations.ttl(wish.get("keep_alive"), found.ttl)), asked

    async def _ask(self, model: Model, ask: Ask | None, asked: str, reply: Reply, keep_alive: Any) -> Any:
        """What the model says; with nothing to ask it is only loaded."""
        if not ask:
            await self._service.load_model(model)
            return {"data": []}

        async def one(model: Model, asked: str) -> Any:
            renamed = replace(ask, body={**ask.body, "model": model.id})
            sent = request(self._service, model, renamed, asked, reply.authorization)
            async with Asking(self._service, model, sent) as response, aclosing(events(model, response)) as said:
                return await anext(said)

        return await first_answer(self._service, model, asked, reply, one, keep_alive=keep_alive)


def _vectors(model: Model, said: Any, count: int) -> list[list[float]]:
    """The vectors in the order of the inputs.

    Raises:
        UpstreamError: they are not all there.
    """
    try:
        vectors = [item["embedding"] for item in sorted(said["data"], key=lambda item: item.get("index", 0))]
    except (KeyError, TypeError, AttributeError):
        vectors = []
    if len(vectors) != count or not all(isinstance(vector, list) for vector in vectors):
        raise UpstreamError(f"The server behind {model.id} answered {len(vectors)} embeddings where {count} were asked for.")
    return vectors


def _tokens(said: Any) -> int:
    usage = said.get("usage") if isinstance(said, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else 0
    return count if isinstance(count, int) and 0 < count < MOST_TOKENS else 0
