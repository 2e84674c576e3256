"""Runs a live session: converts bytes to samples and probabilities, submits windows to the engine and returns their results.

The bytes come in portions of any size. `RawSamples` converts raw audio; `ContainerSamples` decodes audio in a container, in a
thread, while it arrives.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from threading import Thread
from typing import cast

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from msgspec.structs import replace

from eardrum.engines.base import Audio, RequestContext
from eardrum.errors import AudioError, EardrumError, InvalidRequestError
from eardrum.live import (
    AudioEncoding,
    AudioFormat,
    CommandRefused,
    ConfigureCommand,
    FinishCommand,
    LiveCommand,
    LiveEvent,
    SessionEnded,
    SessionSettings,
    check_format,
)
from eardrum.runner.batcher import DecodedWindow, WindowBatcher
from eardrum.runner.byte_pipe import BytePipe, PipeCancelledError
from eardrum.runner.decoder import AudioDecoder
from eardrum.runner.fair_queue import ServiceClass
from eardrum.runner.live.session import AdoptPartial, DecodeWindow, DropWindow, LiveSession, SessionOutput
from eardrum.runner.tracks import NO_LAYOUT, MonoDownmix
from eardrum.runner.vad import FRAME_SAMPLES, MAX_LIVE_START_DB, AutoGain, VadModel, amplify_quiet
from eardrum.transcription import SAMPLE_RATE, Capabilities

log = logging.getLogger(__name__)

SLICE_SAMPLES = FRAME_SAMPLES * 16
"""Samples processed at once: half a second costs the event loop about a millisecond."""

MAX_WINDOWS_AHEAD = 4
"""Finished windows that may wait for the engine, and events for the client, before no more audio is taken."""

MAX_QUEUED_EVENTS = 256

LATE_FORMAT_MESSAGE = "The format cannot change once there was audio: set it before, or begin another session."


class LiveSessionDriver:
    """One live session in the runner. `take` belongs to one task, `events` to another; `close` ends it.

    Raises:
        UnsupportedFeatureError: the engine lacks a feature of the request.
        InvalidRequestError: the format of the audio cannot be read.
    """

    def __init__(
        self, settings: SessionSettings, *, batcher: WindowBatcher, vad: VadModel, capabilities: Capabilities, max_seconds: float
    ):
        if refusal := _find_refusal(settings, batcher):
            raise refusal
        self._settings = settings
        self._batcher = batcher
        self._vad = vad.open_stream()
        self._gain = AutoGain(MAX_LIVE_START_DB)
        self._session = LiveSession(settings, capabilities)
        self._max_seconds = max_seconds
        self._source: RawSamples | ContainerSamples | None = None
        self._failure: EardrumError | None = None
        """Why the container's audio cannot be decoded any further."""
        self._rest: Audio = np.empty(0, np.float32)
        self._finals_id, self._partials_id = batcher.allocate_request_id(), batcher.allocate_request_id()
        self._context = self._partial_context = RequestContext()
        self._waiting_finals: deque[DecodeWindow] = (
            deque()
        )  # finals that wait for the one before, if the engine decodes them one by one
        self._with_engine: dict[int, DecodeWindow] = {}
        self._events: asyncio.Queue[LiveEvent | EardrumError] = asyncio.Queue()
        self._lock = asyncio.Lock()  # samples may come from a container's thread while a command comes
        self._changed = asyncio.Event()
        batcher.live_sessions += 1

    async def take_message(self, message: bytes | LiveCommand) -> None:
        """Take the next audio or command; waits while the engine or the client is far behind."""
        if isinstance(message, bytes):
            await self._feed_audio(message)
            return
        await self._flush(finished=isinstance(message, FinishCommand))
        async with self._lock:
            await self._wait_for_room()
            if isinstance(message, ConfigureCommand):
                self._configure(message.settings)
            else:
                self._perform(self._session.handle_command(message, self._rest))

    async def stream_events(self) -> AsyncGenerator[LiveEvent, None]:
        """The events of the session, up to `SessionEnded`.

        Raises:
            AudioError: the audio cannot be decoded.
        """
        while True:
            event = await self._events.get()
            self._changed.set()
            if isinstance(event, EardrumError):
                raise event
            yield event
            if isinstance(event, SessionEnded):
                return

    async def close(self) -> None:
        """Cancel waiting windows and end the threads and tasks."""
        if isinstance(self._source, ContainerSamples):
            await self._source.close()
        self._batcher.live_sessions -= 1
        self._waiting_finals.clear()
        for number in (self._finals_id, self._partials_id):
            self._batcher.cancel(number)

    # Audio

    async def _feed_audio(self, data: bytes) -> None:
        if self._source is None:
            form = self._settings.format
            if form.encoding is AudioEncoding.CONTAINER:
                self._source = ContainerSamples(
                    self._process_samples,
                    self._end_after_failure,
                    max_seconds=self._max_seconds,
                    audio_track=form.audio_track,
                )
            else:
                self._source = RawSamples(form)
        if isinstance(self._source, ContainerSamples):
            await self._source.feed(data)
        else:
            await self._process_samples(self._source.feed(data))

    def _end_after_failure(self, error: EardrumError) -> None:
        """End the session with an error, once all that was heard before has its text."""
        self._failure = error
        self._perform(self._session.handle_command(FinishCommand(), self._rest))

    async def _flush(self, *, finished: bool) -> None:
        """Process the samples that the source still holds."""
        if isinstance(self._source, RawSamples):
            await self._process_samples(self._source.flush())
        elif self._source and finished:
            await self._source.finish()

    async def _process_samples(self, samples: Audio) -> None:
        async with self._lock:
            samples = np.concatenate([self._rest, samples])
            whole = len(samples) - len(samples) % FRAME_SAMPLES
            for at in range(0, whole, SLICE_SAMPLES):
                await self._wait_for_room()
                block = samples[at : min(at + SLICE_SAMPLES, whole)]
                self._perform(self._session.process_audio(block, self._vad(self._gain(block))))
                await asyncio.sleep(0)
            self._rest = samples[whole:]

    async def _wait_for_room(self) -> None:
        while self._session.pending_windows >= MAX_WINDOWS_AHEAD or self._events.qsize() >= MAX_QUEUED_EVENTS:
            self._changed.clear()
            await self._changed.wait()

    # Decoding

    def _perform(self, outputs: list[SessionOutput]) -> None:
        for output in outputs:
            match output:
                case DecodeWindow():
                    self._start_decoding(output)
                case DropWindow(number):
                    self._drop_window(number)
                case AdoptPartial(number):
                    self._batcher.reassign(self._partials_id, self._finals_id)
                    self._context = self._partial_context
                    if decode := self._with_engine.get(number):
                        self._with_engine[number] = replace(decode, final=True)
                case SessionEnded():
                    warnings = self._source.warnings if isinstance(self._source, ContainerSamples) else ()
                    self._events.put_nowait(self._failure or replace(output, warnings=warnings))
                case _:
                    self._events.put_nowait(output)

    def _start_decoding(self, decode: DecodeWindow) -> None:
        if not decode.final:
            # The context that a partial yields is kept only if it becomes a final.
            self._partial_context = replace(self._context, votes=dict(self._context.votes))
            decode.window.context = self._partial_context
            self._submit(decode, self._partials_id, ServiceClass.PARTIAL)
            return
        decode.window.context = self._context
        if self._batcher.is_sequential and any(other.final for other in self._with_engine.values()):
            self._waiting_finals.append(decode)
        else:
            self._submit(decode, self._finals_id, ServiceClass.LIVE)

    def _submit(self, decode: DecodeWindow, request: int, rank: ServiceClass) -> None:
        self._with_engine[decode.id] = decode
        decode.window.audio = amplify_quiet(decode.window.audio)
        future = asyncio.wrap_future(self._batcher.submit(request, decode.window, rank))
        future.add_done_callback(lambda done: self._finish_decoding(decode.id, done))

    def _finish_decoding(self, number: int, done: asyncio.Future[DecodedWindow]) -> None:
        decode = self._with_engine.pop(number)
        if self._waiting_finals and decode.final:
            self._submit(self._waiting_finals.popleft(), self._finals_id, ServiceClass.LIVE)
        if done.cancelled():
            return
        self._changed.set()
        error = done.exception()
        if error is None:
            decoded = done.result()
            try:
                self._perform(self._session.handle_result(number, decoded.result, decoded.decode_s, decoded.queue_s))
            except Exception as unusable:  # behind this callback nobody would notice, and the utterance would never end
                log.exception("The model's result for a window cannot be used.")
                error = unusable
        if error:
            known = error if isinstance(error, EardrumError) else EardrumError(f"The model failed on this audio: {error}")
            self._perform(self._session.handle_failure(number, known))

    def _drop_window(self, number: int) -> None:
        decode = self._with_engine.get(number)
        if decode and not decode.final:
            self._batcher.cancel(self._partials_id)
        elif decode:
            decode.window.cancelled = True
        else:
            self._waiting_finals = deque(waiting for waiting in self._waiting_finals if waiting.id != number)

    # Settings

    def _configure(self, settings: SessionSettings) -> None:
        refusal = _find_refusal(settings, self._batcher)
        if self._source is not None and settings.format != self._settings.format:
            refusal = InvalidRequestError(LATE_FORMAT_MESSAGE, param="format")
        if refusal:
            self._events.put_nowait(CommandRefused(refusal))
            return
        self._settings = settings
        self._perform(self._session.handle_command(ConfigureCommand(settings)))


def _find_refusal(settings: SessionSettings, batcher: WindowBatcher) -> EardrumError | None:
    try:
        check_format(settings.format)
    except InvalidRequestError as error:
        return error
    return batcher.find_refusal(settings.request)


BLOCK_S = 0.032
"""Audio that is mixed and resampled at a time. Blocks of one length make the result the same however the bytes were portioned."""


class RawSamples:
    """Turns one stream of raw audio into samples. Bytes of an incomplete sample wait for the rest."""

    def __init__(self, form: AudioFormat):
        self._format = form
        self._buffer = bytearray()
        self._size = form.frame_bytes
        self._block = self._size * round(form.rate * BLOCK_S)
        self._mix = MonoDownmix([NO_LAYOUT] * form.channels, form.rate) if form.channels > 1 else None
        self._resampler = None if form.rate == SAMPLE_RATE else AudioResampler("flt", "mono", SAMPLE_RATE)

    def feed(self, data: bytes) -> Audio:
        """The samples that the next bytes complete, shape [n]."""
        self._buffer += data
        whole = len(self._buffer) - len(self._buffer) % self._block
        return self._convert_bytes(whole)

    def flush(self) -> Audio:
        """Those of the bytes that wait for a block to be full. More audio may follow."""
        return self._convert_bytes(len(self._buffer) - len(self._buffer) % self._size)

    def _convert_bytes(self, size: int) -> Audio:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        samples = _decode_samples(data, self._format.encoding)
        if not size or (self._resampler is None and self._mix is None):
            return samples
        step = self._block // self._size * self._format.channels
        blocks = (samples[at : at + step] for at in range(0, len(samples), step))
        return np.concatenate([piece for block in blocks for piece in self._convert_block(block)] or [samples[:0]])

    def _convert_block(self, samples: Audio) -> Iterator[Audio]:
        """One block in mono at `SAMPLE_RATE`."""
        if self._mix:
            samples = self._mix.mix_channels(np.ascontiguousarray(samples.reshape(-1, self._format.channels).T))
        if self._resampler is None:
            yield samples
            return
        frame = AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = self._format.rate
        for resampled in self._resampler.resample(frame):
            yield cast(Audio, resampled.to_ndarray()[0])


def _decode_samples(data: bytes, encoding: AudioEncoding) -> Audio:
    match encoding:
        case AudioEncoding.PCM16:
            return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        case AudioEncoding.PCM32F:
            samples = np.nan_to_num(np.frombuffer(data, "<f4"), posinf=1.0, neginf=-1.0).astype(np.float32)
            return cast(Audio, samples.clip(-1, 1))
        case _:
            return cast(Audio, _TABLES[encoding][np.frombuffer(data, np.uint8)])


def _build_mulaw_table() -> Audio:
    """ITU-T G.711, mu-law: the sample of each byte."""
    code = ~np.arange(256, dtype=np.uint8)
    size = (((code & 0x0F).astype(np.int32) << 3) + 0x84 << ((code >> 4) & 7)) - 0x84
    return (np.where(code & 0x80, -size, size) / 32768).astype(np.float32)


def _build_alaw_table() -> Audio:
    """ITU-T G.711, A-law: the sample of each byte."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    part, exponent = ((code & 0x0F).astype(np.int32) << 4) + 8, ((code >> 4) & 7).astype(np.int32)
    size = np.where(exponent > 0, (part + 0x100) << np.maximum(exponent - 1, 0), part)
    return (np.where(code & 0x80, size, -size) / 32768).astype(np.float32)


_TABLES = {AudioEncoding.MULAW: _build_mulaw_table(), AudioEncoding.ALAW: _build_alaw_table()}


class ContainerSamples:
    """Decodes one container in a thread and passes samples to `on_samples` on the event loop, which may make the thread wait.

    `fail` is called once if they cannot be decoded.
    """

    def __init__(
        self,
        on_samples: Callable[[Audio], Awaitable[None]],
        fail: Callable[[EardrumError], None],
        *,
        max_seconds: float,
        audio_track: int | None,
    ) -> None:
        self._on_samples = on_samples
        self._on_error = fail
        self._pipe = BytePipe()
        self._decoder = AudioDecoder(self._pipe, raw_pcm=False, max_seconds=max_seconds, live=True, audio_track=audio_track)
        self._loop = asyncio.get_running_loop()
        self._delivery: Future[None] | None = None
        self._closed = False
        self._finished = asyncio.Event()
        self._thread = Thread(target=self._decode_audio, name="live-container", daemon=True)
        self._thread.start()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Descriptions of the audio that could not be decoded so far."""
        return self._decoder.warnings

    async def feed(self, data: bytes) -> None:
        """Take the next bytes; waits while the thread is far behind."""
        if not self._finished.is_set():
            await self._pipe.feed(data)

    async def finish(self) -> None:
        """End the input and wait until all samples are processed."""
        self._pipe.finish()
        await self._finished.wait()

    async def close(self) -> None:
        """Give up what was not decoded yet, and end the thread."""
        self._closed = True
        self._pipe.cancel()
        if self._delivery:
            self._delivery.cancel()
        await asyncio.to_thread(self._thread.join)

    def _decode_audio(self) -> None:
        error: EardrumError | None = None
        try:
            for samples in self._decoder:
                self._delivery = asyncio.run_coroutine_threadsafe(self._deliver(samples), self._loop)
                self._delivery.result()
        except (PipeCancelledError, CancelledError):
            pass
        except EardrumError as known:
            error = known
        except Exception as unknown:
            error = AudioError(f"Decoding the audio failed: {unknown}")
            error.__cause__ = unknown
        self._loop.call_soon_threadsafe(self._end_decoding, error)

    async def _deliver(self, samples: Audio) -> None:
        if self._closed:
            raise PipeCancelledError
        await self._on_samples(samples)

    def _end_decoding(self, error: EardrumError | None) -> None:
        if error:
            self._on_error(error)
        self._pipe.cancel()  # no reader is left
        self._finished.set()
