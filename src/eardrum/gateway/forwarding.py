"""A request on its way to a model that another server serves: the lease, and one more try where that does no harm."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from eardrum.errors import RunnerCrashedError, UpstreamDiedError, UpstreamHungUpError, UpstreamUnreachableError
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.connection import Answer
from eardrum.gateway.upstreams.foreign import ForeignUpstream, Outgoing

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tries:
    """What became of a request so far: how often an upstream had it and broke off, how often none was there, and whether
    a kept connection turned out to be closed."""

    broke: int = 0
    refused: int = 0
    hung_up: bool = False

    @property
    def over(self) -> bool:
        """Whether one more try would only do more harm: it may be this very request that kills the upstream."""
        return self.broke > 1 or self.refused > 1


@asynccontextmanager
async def answered(service: Service, model: Model, request: Outgoing) -> AsyncIterator[Answer]:
    """The answer of a foreign model's upstream, which is kept loaded meanwhile. Leaving before the end hangs up.

    An upstream that dies before it answers is started again and asked once more, if the request can be repeated. Bodies are
    to be read with `foreign.chunks`, whose errors must pass through here to be explained.

    Raises:
        UpstreamDiedError: it died, in words that say how.
        EardrumError: as `Service.lease` and `ForeignUpstream.send`.
    """
    tries, answering = Tries(), False
    while True:
        try:
            async with service.lease(model) as upstream:
                assert isinstance(upstream, ForeignUpstream)
                response = await _sent(upstream, request, tries)
                answering = True
                try:
                    yield response
                finally:
                    response.release()  # closes the connection if the answer was not read to its end
            return
        except RunnerCrashedError as error:
            if answering or tries.over or not request.repeatable:
                raise
            log.warning("%s Trying once more.", error.message)


async def _sent(upstream: ForeignUpstream, request: Outgoing, tries: Tries) -> Answer:
    """The answer, over another connection at once if a kept one was closed by the other side at this very moment.

    An upstream that breaks off a new connection may be dying: whoever holds the lease finds that out before it is asked again.
    """
    try:
        return await upstream.send(request)
    except UpstreamHungUpError:
        if tries.hung_up or not request.repeatable:
            tries.broke += 1
            raise
        tries.hung_up = True
    except UpstreamUnreachableError:
        tries.refused += 1
        raise
    except UpstreamDiedError:
        tries.broke += 1
        raise
    return await _sent(upstream, request, tries)
