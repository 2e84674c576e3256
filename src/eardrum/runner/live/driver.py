"""Runs a session: bytes become samples and probabilities, and what it wants decoded goes to the engine and comes back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np

from eardrum.engines.base import Audio, Context
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.live import Command, Configure, Encoding, Ended, Finish, LiveEvent, Refused, Settings
from eardrum.runner.batcher import Batcher, Heard
from eardrum.runner.gain import LIVE_FIRST_DB, Gain, raised
from eardrum.runner.live import samples as raw
from eardrum.runner.live.actions import Adopt, Decode, Drop, Output
from eardrum.runner.live.container import ContainerSamples
from eardrum.runner.live.session import Session
from eardrum.runner.queue import Class
from eardrum.runner.vad import FRAME, Vad
from eardrum.types import Capabilities

SLICE = FRAME * 16
"""Samples that are heard at once: half a second costs the event loop about a millisecond."""

AHEAD = 4
"""Finished windows that may wait for the engine, and events for the client, before no more audio is taken."""

BACKLOG = 256

LATE = "The format cannot change once there was audio: set it before, or begin another session."


class Driver:
    """One live session in the runner. `take` belongs to one task, `events` to another; `close` ends it.

    Raises:
        UnsupportedFeatureError: the engine cannot do what is asked.
        InvalidRequestError: the format of the audio cannot be read.
    """

    def __init__(self, settings: Settings, *, batcher: Batcher, vad: Vad, capabilities: Capabilities, max_seconds: float):
        if refusal := _refusal(settings, batcher):
            raise refusal
        self._settings = settings
        self._batcher = batcher
        self._vad = vad.stream()
        self._gain = Gain(LIVE_FIRST_DB)
        self._session = Session(settings, capabilities)
        self._max_seconds = max_seconds
        self._source: raw.RawSamples | ContainerSamples | None = None
        self._rest: Audio = np.empty(0, np.float32)
        self._finals, self._partials = batcher.request(), batcher.request()
        self._context = self._guess = Context()
        self._line: deque[Decode] = deque()  # finals that wait for the one before, where the engine wants them one by one
        self._with_engine: dict[int, Decode] = {}
        self._events: asyncio.Queue[LiveEvent | EardrumError] = asyncio.Queue()
        self._turn = asyncio.Lock()  # samples may come from a container's thread while a command comes
        self._changed = asyncio.Event()
        batcher.live += 1

    async def take(self, message: bytes | Command) -> None:
        """Take the next audio or command; waits while the engine or the client is far behind."""
        if isinstance(message, bytes):
            await self._feed(message)
            return
        await self._flush(finished=isinstance(message, Finish))
        async with self._turn:
            await self._room()
            if isinstance(message, Configure):
                self._configure(message.settings)
            else:
                self._do(self._session.command(message, self._rest))

    async def events(self) -> AsyncGenerator[LiveEvent, None]:
        """What happens, up to `Ended`.

        Raises:
            AudioError: the audio cannot be decoded.
        """
        while True:
            event = await self._events.get()
            self._changed.set()
            if isinstance(event, EardrumError):
                raise event
            yield event
            if isinstance(event, Ended):
                return

    async def close(self) -> None:
        """Drop what the engine has not decoded, and end what was begun."""
        if isinstance(self._source, ContainerSamples):
            await self._source.close()
        self._batcher.live -= 1
        self._line.clear()
        for number in (self._finals, self._partials):
            self._batcher.cancel(number)

    # Audio

    async def _feed(self, data: bytes) -> None:
        if self._source is None:
            form = self._settings.format
            if form.encoding is Encoding.CONTAINER:
                self._source = ContainerSamples(
                    self._hear,
                    self._events.put_nowait,
                    max_seconds=self._max_seconds,
                    audio_track=form.audio_track,
                )
            else:
                self._source = raw.RawSamples(form)
        if isinstance(self._source, ContainerSamples):
            await self._source.feed(data)
        else:
            await self._hear(self._source.feed(data))

    async def _flush(self, *, finished: bool) -> None:
        """Hear what was held back."""
        if isinstance(self._source, raw.RawSamples):
            await self._hear(self._source.flush())
        elif self._source and finished:
            await self._source.finish()

    async def _hear(self, samples: Audio) -> None:
        async with self._turn:
            samples = np.concatenate([self._rest, samples])
            whole = len(samples) - len(samples) % FRAME
            for at in range(0, whole, SLICE):
                await self._room()
                block = samples[at : min(at + SLICE, whole)]
                self._do(self._session.hear(block, self._vad(self._gain(block))))
                await asyncio.sleep(0)
            self._rest = samples[whole:]

    async def _room(self) -> None:
        while self._session.waiting >= AHEAD or self._events.qsize() >= BACKLOG:
            self._changed.clear()
            await self._changed.wait()

    # Decoding

    def _do(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Decode():
                    self._decode(output)
                case Drop(number):
                    self._drop(number)
                case Adopt():
                    self._batcher.hand_over(self._partials, self._finals)
                    self._context = self._guess
                case Ended():
                    warnings = self._source.warnings if isinstance(self._source, ContainerSamples) else ()
                    self._events.put_nowait(replace(output, warnings=warnings))
                case _:
                    self._events.put_nowait(output)

    def _decode(self, decode: Decode) -> None:
        if not decode.final:
            # What the engine learns from a partial counts only if it becomes a final.
            self._guess = replace(self._context, votes=dict(self._context.votes))
            decode.window.context = self._guess
            self._submit(decode, self._partials, Class.PARTIAL)
            return
        decode.window.context = self._context
        if self._batcher.sequential and any(other.final for other in self._with_engine.values()):
            self._line.append(decode)
        else:
            self._submit(decode, self._finals, Class.LIVE)

    def _submit(self, decode: Decode, request: int, rank: Class) -> None:
        self._with_engine[decode.id] = decode
        decode.window.audio = raised(decode.window.audio)
        future = asyncio.wrap_future(self._batcher.submit(request, decode.window, rank))
        future.add_done_callback(lambda done: self._decoded(decode, done))

    def _decoded(self, decode: Decode, done: asyncio.Future[Heard]) -> None:
        del self._with_engine[decode.id]
        if self._line and decode.final:
            self._submit(self._line.popleft(), self._finals, Class.LIVE)
        if done.cancelled():
            return
        self._changed.set()
        if error := done.exception():
            known = error if isinstance(error, EardrumError) else EardrumError(f"The model failed on this audio: {error}")
            self._do(self._session.failed(decode.id, known))
        else:
            heard = done.result()
            self._do(self._session.decoded(decode.id, heard.hearing, heard.decode_s, heard.queue_s))

    def _drop(self, number: int) -> None:
        decode = self._with_engine.get(number)
        if decode and not decode.final:
            self._batcher.cancel(self._partials)
        elif decode:
            decode.window.cancelled = True

    # Settings

    def _configure(self, settings: Settings) -> None:
        refusal = _refusal(settings, self._batcher)
        if self._source is not None and settings.format != self._settings.format:
            refusal = InvalidRequestError(LATE, param="format")
        if refusal:
            self._events.put_nowait(Refused(refusal))
            return
        self._settings = settings
        self._do(self._session.command(Configure(settings)))


def _refusal(settings: Settings, batcher: Batcher) -> EardrumError | None:
    try:
        raw.check(settings.format)
    except InvalidRequestError as error:
        return error
    return batcher.refusal(settings.request)
