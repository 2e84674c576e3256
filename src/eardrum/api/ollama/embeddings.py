"""`/api/embed` and `/api/embeddings`."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from eardrum.api.ollama import abilities, asks, durations
from eardrum.api.ollama.asks import Ask
from eardrum.api.ollama.exchange import Reply
from eardrum.api.ollama.generation import named
from eardrum.api.ollama.messages import text
from eardrum.api.ollama.names import Names
from eardrum.api.ollama.upstream import answer
from eardrum.errors import InvalidRequestError, UpstreamError
from eardrum.gateway.foreign import ForeignUpstream
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service


class Embeddings:
    """The two endpoints."""

    def __init__(self, service: Service, names: Names):
        self._service = service
        self._names = names

    async def many(self, wish: dict[str, Any], reply: Reply) -> None:
        """`/api/embed`: a vector for each input."""
        began = time.monotonic()
        model = self._model(wish, reply)
        ask = asks.embed(wish, model.id)
        loaded, said = await self._ask(model, ask)
        figures = {
            "total_duration": durations.nanoseconds(time.monotonic() - began),
            "load_duration": durations.nanoseconds(loaded - began),
            "prompt_eval_count": _tokens(said),
        }
        vectors = _vectors(model, said, len(ask.body["input"]) if ask else 0)
        await reply.whole(
            {"model": named(wish), "embeddings": vectors} | {name: value for name, value in figures.items() if value}
        )

    async def one(self, wish: dict[str, Any], reply: Reply) -> None:
        """`/api/embeddings`, the older one: the vector of a prompt."""
        model = self._model(wish, reply)
        prompt = text(wish, "prompt")
        _, said = await self._ask(model, asks.embed({"input": prompt}, model.id))
        await reply.whole({"embedding": (_vectors(model, said, 1) if prompt else [[]])[0]})

    def _model(self, wish: dict[str, Any], reply: Reply) -> Model:
        found = self._names.find(named(wish))
        reply.record.model = found.id
        if abilities.hears(found):
            raise InvalidRequestError(f'"{found.id}" does not support embeddings: it turns speech into text.', param="model")
        return replace(found, ttl=durations.ttl(wish.get("keep_alive"), found.ttl))

    async def _ask(self, model: Model, ask: Ask | None) -> tuple[float, Any]:
        """When the model was there, and what it said; with nothing to ask it is only loaded."""
        async with self._service.lease(model) as upstream:
            loaded = time.monotonic()
            if not ask:
                return loaded, {"data": []}
            assert isinstance(upstream, ForeignUpstream)
            async with aclosing(answer(upstream, model, ask)) as events:
                return loaded, await anext(events)


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
    return count if isinstance(count, int) else 0
