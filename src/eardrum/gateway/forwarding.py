"""A request on its way to a model that another server serves: the lease, and one more try where that does no harm."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import TracebackType

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


class Asking:
    """The answer of a foreign model's upstream, which is kept loaded meanwhile, as a context. Leaving before the end hangs up.

    An upstream that dies before it answers is started again and asked once more, if the request can be repeated. Bodies are
    to be read inside, since their errors must pass through here to be explained.

    Raises:
        UpstreamDiedError: it died, in words that say how.
        EardrumError: as `Service.hold` and `ForeignUpstream.send`.
    """

    def __init__(self, service: Service, model: Model, request: Outgoing):
        self._lease = service.hold(model)
        self._request = request
        self._answer: Answer

    async def __aenter__(self) -> Answer:
        tries = Tries()
        while True:
            try:
                self._answer = await self._asked(tries)
            except RunnerCrashedError as error:
                if tries.over or not self._request.repeatable:
                    raise
                log.warning("%s Trying once more.", error.sentence)
            else:
                return self._answer

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._answer.release()  # closes the connection if the answer was not read to its end
        await self._lease.end(error)

    async def _asked(self, tries: Tries) -> Answer:
        await self._lease.begin()
        try:
            assert isinstance(self._lease.upstream, ForeignUpstream)
            return await _sent(self._lease.upstream, self._request, tries)
        except BaseException as error:
            await self._lease.end(error)
            raise


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
