"""Which model answers where the one that was asked fails."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from eardrum.api.ollama import abilities, durations
from eardrum.api.ollama.exchange import Reply
from eardrum.api.ollama.refusals import UpstreamRefusedError
from eardrum.errors import EardrumError
from eardrum.gateway.attempts import may_go_better, stand_ins
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service

log = logging.getLogger(__name__)

BUSY = 429

T = TypeVar("T")


async def first_answer(
    service: Service, model: Model, asked: str, reply: Reply, answer: Callable[[Model, str], Awaitable[T]], *, keep_alive: Any
) -> T:
    """What the model answers, asked for as `asked`, or the first of its fallbacks that does not fail.

    An answer that has begun stays with its model.

    Raises:
        EardrumError: that of the last that was tried.
    """
    others = [(name, other) for name, other in stand_ins(service.catalog, model) if other.foreign and not abilities.hears(other)]
    tries = [(asked, model), *((name, replace(other, ttl=durations.ttl(keep_alive, other.ttl))) for name, other in others)]
    for number, (name, one) in enumerate(tries, 1):
        reply.record.model = one.id
        try:
            return await answer(one, name)
        except EardrumError as error:
            if number == len(tries) or reply.begun or not _may_go_better(error):
                raise
            log.warning("%s Trying %s.", error.sentence, tries[number][1].id)
    raise AssertionError("unreachable")


def _may_go_better(error: EardrumError) -> bool:
    """Whether another model has a chance: not at what the upstream refuses because the client asked for it."""
    if isinstance(error, UpstreamRefusedError):
        return error.kept >= 500 or error.kept == BUSY
    return may_go_better(error)
