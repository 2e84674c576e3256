"""One stream of audio, and one process after another that hears it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from eardrum.errors import EardrumError, InvalidRequestError, RunnerCrashedError, UnloadedError
from eardrum.gateway.attempts import may_go_better
from eardrum.gateway.inventory import Model
from eardrum.gateway.lease import Lease, Silence
from eardrum.gateway.live.memory import Memory
from eardrum.gateway.live.outlet import Outlet
from eardrum.gateway.live.sending import sending
from eardrum.gateway.service import Service
from eardrum.gateway.sessions import going_down
from eardrum.gateway.trials import Suspicion
from eardrum.gateway.upstreams.upstream import RunnerUpstream
from eardrum.live import (
    Clear,
    Command,
    Commit,
    Configure,
    Ended,
    Final,
    Finish,
    LiveEvent,
    Refused,
    Rested,
    Settings,
)
from eardrum.types import Summary

log = logging.getLogger(__name__)

AHEAD = 2 << 20
"""Bytes that may wait for a model to be loaded, or to keep up; whoever has more to say waits."""

ATTEMPTS = 3
"""Processes that may die in a row without having given a text in between, if one of them served this session alone."""

TRIAL_S = 10.0
"""Longest time for which other requests wait until a session has said again what it said before a process died."""

TORN = "A stream in a container cannot be taken up in the middle: open the session again, or send PCM."


class Session:
    """What `live` gives: to the edges it is a `LiveSession`."""

    def __init__(self, service: Service, models: Sequence[Model], settings: Settings):
        self.model = models[0]
        """The one that answers; a fallback once it has been found that the first cannot be loaded."""
        self._service = service
        self._others = list(models[1:])
        self._memory = Memory(settings)
        self._tape = self._memory.tape
        self._out = Outlet()
        self._more = asyncio.Event()
        self._room = asyncio.Event()
        self._silence: Silence | None = None
        self._resting = False
        self._rested = False  # so does the process, for all that is known: it has said nothing since
        self._loaded = False
        self._suspicion = Suspicion(ATTEMPTS, TRIAL_S)
        self._stopped = False
        self._ended: Ended | None = None

    # What the edge calls.

    async def feed(self, audio: bytes) -> None:
        """The next bytes of audio; waits while too many were not heard. After `finish` nothing is heard any more."""
        if not self._tape.finished and not self._out.over:
            self._tape.feed(audio)
            await self._said()

    async def configure(self, settings: Settings) -> None:
        """Go by other settings; answered by `Refused` where that cannot be."""
        try:
            settings = replace(settings, request=self._service.prepared(self.model, settings.request))
            if self._tape.fed and settings.format != self._tape.settings.format:
                raise InvalidRequestError("The format of the audio can only be changed before the first audio.", param="format")
        except EardrumError as error:
            self._out.put(Refused(error))
            return
        self._tape.say(Configure(settings))
        self._more.set()

    async def commit(self) -> None:
        """End the utterance; answered by `Committed`, then `Final` or `Failed`, or by `Refused`."""
        await self._command(Commit())

    async def clear(self) -> None:
        """Forget the utterance in progress; answered by `Cleared`."""
        await self._command(Clear())

    async def finish(self) -> None:
        """No more audio comes; answered by the last finals and `Ended`, which ends `events`."""
        self._finish()

    def events(self) -> AsyncGenerator[LiveEvent, None]:
        """Events as they come, up to `Ended`.

        Raises:
            ShuttingDownError: the server goes down; the last texts have come, if there was time.
            EardrumError: the session is over, and why.
        """
        return self._out.events()

    @property
    def finished(self) -> bool:
        """Whether more audio would not be heard: somebody has finished, or the server goes down."""
        return self._tape.finished

    @property
    def summary(self) -> Summary:
        """What is known so far, for the log."""
        ended = self._ended or Ended(self._tape.seconds(self._tape.sent))
        return Summary(
            ended.language,
            ended.duration,
            windows=self._memory.telling.finals,
            decode_s=ended.decode_s,
            model=self.model.id,
            warnings=list(ended.warnings),
        )

    # What `live` calls.

    def begin(self) -> asyncio.Task[None]:
        """Have the model loaded, and whatever is said heard."""
        task = asyncio.create_task(self._run())
        task.add_done_callback(self._over)
        return task

    def stop(self) -> None:
        """The server goes down: hear what was said, give the last texts, and end. Who has finished before does not notice."""
        self._stopped = not self._tape.finished
        self._finish()

    def _over(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error and not isinstance(error, EardrumError):
            log.error("A live session of %s failed.", self.model.id, exc_info=error)
        self._out.end(error or going_down())
        self._room.set()

    # What is said.

    @property
    def _connected(self) -> bool:
        return self._silence is not None

    def _stir(self) -> None:
        """Something happens: this is no time to rest. Whoever waits for room may look whether there is some."""
        self._resting = False
        if self._silence:
            self._silence.broken()
        self._room.set()

    def _finish(self) -> None:
        if self._tape.finished or self._out.over:
            return
        self._tape.say(Finish())
        self._stir()
        self._more.set()
        if not self._connected and not self._memory.unheard:
            self._end(Ended(self._tape.seconds(self._tape.fed)))

    async def _command(self, command: Command) -> None:
        if not self._tape.finished and not self._out.over:
            self._tape.say(command)
            await self._said()

    async def _said(self) -> None:
        self._stir()
        self._more.set()
        while self._tape.ahead > AHEAD and not self._out.over:
            self._room.clear()
            await self._room.wait()

    # What becomes of it.

    async def _run(self) -> None:
        while not self._out.over:
            try:
                await self._live()
            except EardrumError as error:
                self._look_at(error)
            while self._resting:  # nobody needs a process until more is said
                self._more.clear()
                await self._more.wait()

    async def _live(self) -> None:
        """One process hears what is said, until the session ends, or it does."""
        self.model = await self._service.fetched(self._service.catalog.find(self.model.id))
        async with self._service.hold(self.model, self._suspicion) as lease:
            if self._out.over:
                return
            upstream = lease.upstream
            assert isinstance(upstream, RunnerUpstream)
            self._loaded, self._rested = True, False
            replay = self._memory.begin()
            process = upstream.live(replay.settings)
            self._silence = Silence(lease, self._service.settings.live.idle_seconds, self._rest)
            try:
                async with (
                    sending(process, replay.items, self._tape, self._more, self._stir),
                    aclosing(process.events()) as events,
                ):
                    async for event in events:
                        await self._heard(event, lease)
            finally:
                self._silence.over()
                self._silence = None

    async def _heard(self, event: LiveEvent, lease: Lease) -> None:
        self._stir()
        self._rested = False
        told = self._memory.hear(event)
        if isinstance(told, Final):
            lease.served()
        if isinstance(told, Ended):
            self._end(told)
        elif told:
            self._out.put(told)
            await self._out.room()

    def _end(self, ended: Ended) -> None:
        self._ended = ended
        if self._stopped:
            self._out.end(going_down())
        else:
            self._out.put(ended)

    def _rest(self) -> None:
        """Nothing was said for a while: the model may be unloaded."""
        self._resting = self._rested = True
        self._memory.rest()
        self._out.put(Rested(self._service.settings.live.idle_seconds))

    def _look_at(self, error: EardrumError) -> None:
        """Go on with another process, or another model, or not."""
        gone = isinstance(error, RunnerCrashedError) or (self._rested and isinstance(error, UnloadedError))
        if gone and not self._suspicion.convicted:
            self._take_up(error)
            self._suspicion.suspected &= self._memory.unheard  # else it is not what was said that did it
            return
        if self._loaded or not self._others or not may_go_better(error):
            raise error
        log.warning("%s Trying %s.", error.sentence, self._others[0].id)
        self.model, self._suspicion = self._others.pop(0), Suspicion(ATTEMPTS, TRIAL_S)

    def _take_up(self, error: EardrumError) -> None:
        """What was said is said again to the next process, as far as it is kept."""
        if not self._rested:
            log.warning("%s A live session goes on with another one.", error.sentence)
        torn = self._memory.torn
        for event in self._memory.lose(error):
            self._out.put(event)
        if torn:
            raise RunnerCrashedError(f"{error.message} {TORN}")
        if self._tape.finished and not self._memory.unheard:
            self._end(Ended(self._tape.seconds(self._tape.fed)))
