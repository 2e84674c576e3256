"""`/api/chat` and `/api/generate`: text from language models, transcripts from speech models, loading and unloading."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from eardrum.api.ollama import abilities, asks, durations, speech
from eardrum.api.ollama.answering import Answering, Shape
from eardrum.api.ollama.asks import Ask
from eardrum.api.ollama.chunks import Chunks, Piece
from eardrum.api.ollama.context import Turns
from eardrum.api.ollama.exchange import Reply
from eardrum.api.ollama.fallback import first_answer
from eardrum.api.ollama.fields import named
from eardrum.api.ollama.names import Names
from eardrum.api.ollama.upstream import events, request
from eardrum.errors import UpstreamError
from eardrum.gateway.forwarding import Asking
from eardrum.gateway.inventory import Model
from eardrum.gateway.scheduler import State
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.foreign import Outgoing
from eardrum.types import Summary

log = logging.getLogger(__name__)


class Generation:
    """The two endpoints."""

    def __init__(self, service: Service, names: Names):
        self._service = service
        self._names = names
        self._mentioned: set[tuple[str, str]] = set()

    async def chat(self, wish: dict[str, Any], reply: Reply) -> None:
        """`/api/chat`; without messages the model is only loaded, or unloaded."""
        await self._answer(wish, reply, Piece.as_chat, asks.chat, empty=not wish.get("messages"))

    async def generate(self, wish: dict[str, Any], reply: Reply) -> None:
        """`/api/generate`; without a prompt the model is only loaded, or unloaded."""
        empty = not any(wish.get(field) for field in ("prompt", "images", "suffix"))
        await self._answer(wish, reply, Piece.as_generate, asks.generate, empty=empty)

    async def _answer(
        self, wish: dict[str, Any], reply: Reply, shape: Shape, mapping: Callable[..., Ask], *, empty: bool
    ) -> None:
        answering, (found, asked) = Answering(wish, reply, shape), self._names.resolve(named(wish))
        model = replace(found, ttl=durations.ttl(wish.get("keep_alive"), found.ttl))
        reply.record.model = model.id
        if empty and model.ttl == durations.AT_ONCE_S:
            await self._service.unload(model)
            await answering.nothing("unload")
        elif empty:
            await self._service.load_model(model)
            await answering.nothing("load")
        elif abilities.hears(model):
            await self._transcribe(model, wish, reply, answering)
        else:
            one = partial(self._generate, wish=wish, reply=reply, shape=shape, mapping=mapping)
            await first_answer(self._service, model, asked, reply, one, keep_alive=wish.get("keep_alive"))

    async def _generate(
        self, model: Model, asked: str, *, wish: dict[str, Any], reply: Reply, shape: Shape, mapping: Callable[..., Ask]
    ) -> None:
        ask = mapping(wish, model.id, abilities.server(model))
        self._mention(model, ask)
        reply.ignored = ask.ignored
        sent = request(self._service, model, ask, asked, reply.authorization)
        await self._forward(model, sent, Answering(wish, reply, shape), ask.turns)

    async def _forward(self, model: Model, sent: Outgoing, answering: Answering, turns: Turns | None) -> None:
        began, ready = time.monotonic(), self._service.state(model) is State.READY
        async with Asking(self._service, model, sent) as response:
            chunks = Chunks(began, began if ready else time.monotonic())
            async with aclosing(events(model, response)) as said:
                async for event in said:
                    await answering.add(chunks.take(event, time.monotonic()))
        if not chunks.complete:
            raise UpstreamError(f"The server behind {model.id} ended in the middle of its answer.")
        await answering.add(chunks.tool_calls())
        last = chunks.last(time.monotonic())
        answering.count(last)
        await answering.end(last, turns)

    async def _transcribe(self, model: Model, wish: dict[str, Any], reply: Reply, answering: Answering) -> None:
        began, decoding = time.monotonic(), 0.0
        async with aclosing(speech.transcribe(self._service, model, speech.recordings(wish), whole=not answering.lines)) as heard:
            async for text in heard:
                if isinstance(text, Summary):
                    reply.record.about(model, text)
                    decoding += text.decode_s
                else:
                    await answering.add(Piece(text))
        took = {"total_duration": time.monotonic() - began, "eval_duration": decoding}
        figures = {name: durations.nanoseconds(seconds) for name, seconds in took.items() if seconds}
        await answering.end({"done": True, "done_reason": "stop"} | figures)

    def _mention(self, model: Model, ask: Ask) -> None:
        """Say once of each option that it has no effect."""
        for option in (name[:40] for name in ask.ignored):  # what is remembered is bounded
            if (model.id, option) not in self._mentioned and len(self._mentioned) < 1000:
                self._mentioned.add((model.id, option))
                log.info(
                    "The option %r of Ollama's API has no effect on %s: set it where the model is started.", option, model.id
                )
