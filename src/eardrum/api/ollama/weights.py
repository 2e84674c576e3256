"""What a language model says of itself: the head of its weights, and its server while that runs. Reads files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eardrum import gguf, json_text
from eardrum.api.ollama.flags import Flags
from eardrum.errors import EardrumError
from eardrum.gateway.forwarding import Asking
from eardrum.gateway.inventory import Model
from eardrum.gateway.scheduler import State
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.foreign import Outgoing

log = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""A server that is busy and does not answer in this time tells nothing."""
MOST = 4 << 20
"""Bytes of an answer: a template is far smaller."""
THINKING = ("enable_thinking", "<think>", "reasoning_content")
"""What templates of models have in them that think before they answer."""


@dataclass(frozen=True, slots=True)
class Said:
    """All that is known, which may be nothing."""

    head: gguf.Head | None = None
    props: Mapping[str, Any] = field(default_factory=dict)
    """llama-server's `/props`."""
    own_template: bool = True
    """Whether the model is served with the template that its weights hold."""

    @property
    def template(self) -> str:
        """The template of chats, in Jinja; empty if nobody knows it."""
        served = self.props.get("chat_template")
        if isinstance(served, str) and served:
            return served
        return self.head.template if self.head and self.own_template else ""

    @property
    def tools(self) -> bool:
        """Whether the template has a place for tools."""
        able = _object(self.props.get("chat_template_caps")).get("supports_tools")
        return able if isinstance(able, bool) else "tools" in self.template

    @property
    def thinks(self) -> bool:
        """Whether the template knows of thinking."""
        return any(word in self.template for word in THINKING)

    def takes(self, kind: str) -> bool:
        """Whether the server takes `vision` or `audio`."""
        return _object(self.props.get("modalities")).get(kind) is True

    @property
    def context(self) -> int:
        """Tokens of context, of the server if it runs, else of the weights; 0 if nobody says."""
        served = _object(self.props.get("default_generation_settings")).get("n_ctx")
        if isinstance(served, int) and served > 0:
            return served
        return self.head.context if self.head else 0


NOTHING = Said()


def of(model: Model, props: Mapping[str, Any] | None = None) -> Said:
    """What the files of a model say, and its server has said. Reads the head of a file once."""
    if not model.foreign or not model.entry or not model.entry.cmd:
        return Said(props=props or {})
    flags = Flags.of(model.entry.cmd, model.entry.env)
    head = gguf.read(Path(flags.weights)) if flags.weights and flags.llama else None
    return Said(head, props or {}, own_template=not flags.has("--chat-template", "--chat-template-file"))


class Props:
    """What running servers say of themselves, asked once in each of their lives."""

    def __init__(self, service: Service):
        self._service = service
        self._known: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def known(self, model: Model) -> Mapping[str, Any]:
        """What the server of this model has said, if it is still the same."""
        since, props = self._known.get(model.id, (0.0, {}))
        return props if since and since == self._service.since(model) else {}

    async def ask(self, model: Model) -> Mapping[str, Any]:
        """The same, but asked now if need be. A server that does not run is not started for it, and other ones are not asked."""
        since = self._service.since(model)
        if not since or not model.entry or not Flags.of(model.entry.cmd, model.entry.env).llama:
            return {}
        if self._known.get(model.id, (0.0, {}))[0] != since:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    self._known[model.id] = since, await self._asked(model)
            except (EardrumError, TimeoutError) as error:
                log.debug("%s does not tell its properties: %r", model.id, error)
        return self.known(model)

    async def _asked(self, model: Model) -> Mapping[str, Any]:
        if self._service.state(model) is not State.READY:
            return {}
        async with Asking(self._service, model, Outgoing("GET", "/props", [], None)) as answer:
            content = await answer.read(MOST)
        try:
            return _object(json_text.parsed_of_server(content)) if answer.status == 200 else {}
        except ValueError:
            return {}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
