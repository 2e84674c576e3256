"""One request on its way through: to the upstream of a model, and the answer back as it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from eardrum.api.access import record
from eardrum.api.asgi import Receive, Scope, Send
from eardrum.api.forward import headers
from eardrum.api.forward.broken import Worded, cut_off, last_words
from eardrum.api.forward.loading import Loading
from eardrum.api.watch import Watch
from eardrum.errors import EardrumError, UpstreamError
from eardrum.gateway.attempts import may_go_better
from eardrum.gateway.forwarding import Asking
from eardrum.gateway.inventory import Model
from eardrum.gateway.service import Service
from eardrum.gateway.upstreams.connection import Answer
from eardrum.gateway.upstreams.foreign import Outgoing

log = logging.getLogger(__name__)

EVENTS = b"text/event-stream"
FIXED = (b"content-length", b"content-encoding")
"""Headers of answers that nothing can be added to."""
QUOTED = 300
"""Characters of a refusal in the log."""
MOST_SAID = 1 << 16
"""Bytes of a refusal that fit into an event of a stream that has begun."""


BUSY = 429
WHO_ANSWERED = b"x-eardrum-model"


@dataclass(frozen=True, slots=True)
class Try:
    """A model that may answer. `prepare` makes what its upstream is sent, and says whether the client is told that it loads."""

    model: Model
    prepare: Callable[[], tuple[Outgoing, bool]]


class Exchange:
    """One client and one upstream, or several of which one answers.

    `received` is set once the whole body has come, if it is not here yet.
    """

    def __init__(
        self,
        service: Service,
        worded: Worded,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        received: asyncio.Event | None = None,
    ):
        self._service = service
        self._worded = worded
        self._scope = scope
        self._receive = receive
        self._send = send
        self._received = received
        self._headers: list[tuple[bytes, bytes]] = []
        """Of the answer, once it has begun."""
        self._begun = False
        self._answering = False
        """Whether an upstream's answer is what was sent, and not signs of loading."""
        self._stands_in = False
        self._last = b""

    async def run(self, model: Model, request: Outgoing) -> None:
        """Pass the request on and the answer back.

        Raises:
            EardrumError: before anything was sent; later errors end the answer visibly.
            ClientGoneError: the client hung up, and the upstream was told.
        """
        await self.run_first([Try(model, lambda: (request, False))])

    async def run_first(self, tries: Sequence[Try]) -> None:
        """As `run`, with the first of these that does not fail. An answer that has begun stays with its model.

        Raises:
            EardrumError, ClientGoneError: as `run`, by the last that was tried.
        """
        for number, chosen in enumerate(tries):
            self._stands_in = number > 0
            if await self._answered(chosen, tries[number + 1].model if number + 1 < len(tries) else None):
                return

    async def _answered(self, chosen: Try, after: Model | None) -> bool:
        """Whether this one has had the last word; if not, nothing of an answer was sent, and the one `after` it may do better."""
        record(self._scope).model = chosen.model.id
        request, tell_loading = chosen.prepare()
        try:
            async with Watch(self._scope, self._receive, after=self._received):
                if tell_loading:
                    await self._talk_and_pass(chosen.model, request, after)
                else:
                    async with Asking(self._service, chosen.model, request) as response:
                        await self._pass_back(response, request, after)
        except EardrumError as error:
            if after and not self._answering and request.repeatable and may_go_better(error):
                log.warning("%s Trying %s.", error.sentence, after.id)
                return False
            if not self._begun:
                raise
            record(self._scope).note = error.message
            await self._break_off(error)
        return True

    async def _talk_and_pass(self, model: Model, request: Outgoing, after: Model | None) -> None:
        async with Loading(self._service, model, self._say) as loading, Asking(self._service, model, request) as response:
            await loading.end()
            await self._pass_back(response, request, after)

    async def _pass_back(self, response: Answer, request: Outgoing, after: Model | None) -> None:
        if after and request.repeatable and (response.status >= 500 or response.status == BUSY):
            said = (await response.read(MOST_SAID)).decode(errors="replace")
            raise UpstreamError(f"{response.origin} answered {response.status}: {said[:QUOTED]}")
        self._answering = True
        if self._begun:  # with the loading state: the status is out
            await self._pass_back_late(response)
            return
        if response.status >= 600:
            raise UpstreamError(f"{response.origin} answered with the status {response.status}, which is none.")
        self._headers = headers.sent_back(response.raw_headers)
        if self._stands_in:
            self._headers.append((WHO_ANSWERED, quote(record(self._scope).model, safe="/ :@+").encode()))
        await self._send({"type": "http.response.start", "status": response.status, "headers": self._headers})
        self._begun = True
        await self._pass_body(response)

    async def _pass_body(self, response: Answer) -> None:
        chunk, more = b"", True
        while more:
            chunk = await response.next_chunk()
            more = not response.ended
            self._last = chunk
            await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    async def _pass_back_late(self, response: Answer) -> None:
        """An answer whose head has been sent already. Anything but events goes into one."""
        if response.status == 200 and headers.content_type(headers.sent_back(response.raw_headers)) == EVENTS:
            await self._pass_body(response)
            return
        said = (await response.read(MOST_SAID)).decode(errors="replace")
        raise UpstreamError(f"{response.origin} answered {response.status}: {said}")

    async def _say(self, event: bytes) -> None:
        """Send an event before there is an answer; the first one begins the stream."""
        if not self._begun:
            self._headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
            self._begun = True
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def _break_off(self, error: EardrumError) -> None:
        fixed = any(name in FIXED for name, _ in self._headers)
        kind = headers.content_type(self._headers)
        if words := b"" if fixed else last_words(kind, self._scope["path"], self._worded(error), self._last):
            await self._send({"type": "http.response.body", "body": words, "more_body": True})
        await cut_off(self._scope, self._receive)
