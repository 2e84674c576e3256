"""One request inside a runner: bytes in, events out, in order and as they are ready."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from dataclasses import replace
from threading import Semaphore, Thread
from typing import Any

import numpy as np

from eardrum.engines.base import Audio, Context, Window
from eardrum.errors import AudioError, EardrumError
from eardrum.runner.batcher import Batcher, Heard
from eardrum.runner.decode import Decoder
from eardrum.runner.gain import Gain, raised
from eardrum.runner.hallucination import judged
from eardrum.runner.inlet import CancelledInletError, Inlet
from eardrum.runner.placing import placed
from eardrum.runner.queue import CLIP_S
from eardrum.runner.speech_bounds import clamp_to_speech
from eardrum.runner.vad import FRAME, Vad
from eardrum.runner.windows import Cut, Cutter, Cutting, Packer
from eardrum.types import SAMPLE_RATE, Dropped, Event, Opened, Request, Segment, Summary

BLOCK = FRAME * 156
"""Samples per step through the VAD: 5 s. Larger gains nothing, smaller costs up to twice the CPU."""

SILENT = 3
"""Blocks of digital silence after which more of it is not looked at: a gap in a recording's clock may last for hours."""

AHEAD = 8
"""Windows a request may have waiting: enough to fill a batch, few enough to bound its memory."""

OWN_LANGUAGE_PAUSE_S = 1.0
"""Between speakers of different languages there is a pause; windows that have their own language end there."""

DROPPED_REPORTED = 100
"""Hallucinations listed in a summary; more are only counted by their absence."""


class Listener:
    """Decodes one request's audio in a thread of its own and hands its windows to the batcher.

    Raises:
        UnsupportedFeatureError: the engine cannot do what is asked.
    """

    def __init__(self, request: Request, *, batcher: Batcher, vad: Vad, cutting: Cutting, max_seconds: float):
        if refusal := batcher.refusal(request):
            raise refusal
        request = _with_words(request, batcher)
        self.inlet = Inlet()
        self._request = request
        self._batcher = batcher
        self._vad = vad
        self._cutting = _adjusted(cutting, request)
        self._decoder = Decoder(self.inlet, raw_pcm=request.raw_pcm, max_seconds=max_seconds, audio_track=request.audio_track)
        self._id = batcher.request()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[Decoded] = asyncio.Queue()
        self._ahead = Semaphore(1 if batcher.sequential else AHEAD)
        self._context = Context()
        self._cancelled = False
        self._thread = Thread(target=self._decode, name=f"audio-{self._id}", daemon=True)

    async def events(self) -> AsyncGenerator[Event, None]:
        """The segments in order, then the summary. Closing the iterator early cancels the request.

        Raises:
            EardrumError: the audio cannot be decoded, or the engine failed.
        """
        self._thread.start()
        summary = Summary(language=self._request.language or "", duration=0.0)
        spoken: dict[str, float] = {}
        try:
            while not isinstance(item := await self._ready.get(), End):
                if isinstance(item, Opened):
                    yield item
                    continue
                window, future = item
                heard = await asyncio.wrap_future(future)
                summary.windows += 1
                summary.queue_s = max(summary.queue_s, heard.queue_s)
                summary.decode_s += heard.decode_s
                if language := heard.hearing.language:
                    begin, end = window.speech_span
                    spoken[language] = spoken.get(language, 0.0) + max(end - begin, 0.0)
                    summary.language = self._request.language or self._most_spoken(spoken)
                for segment in _segments(window, heard, summary):
                    yield segment
            if item.error:
                raise item.error
            summary.duration = self._decoder.samples / SAMPLE_RATE
            summary.audio_track, summary.audio_tracks = self._decoder.audio_track, self._decoder.audio_tracks
            summary.warnings = list(self._decoder.warnings)
            yield summary
        finally:
            await self._cancel()

    def _most_spoken(self, spoken: dict[str, float]) -> str:
        """The language of most of the speech. What the engine found out counts for more than what it decoded each window in."""
        votes = spoken if self._request.multilingual else self._context.votes or spoken
        return max(votes, key=votes.__getitem__)

    async def _cancel(self) -> None:
        self._cancelled = True
        self.inlet.cancel()
        self._batcher.cancel(self._id)
        self._ahead.release(AHEAD)
        await asyncio.to_thread(self._thread.join)
        self._batcher.cancel(self._id)  # what the thread submitted in between

    def _decode(self) -> None:
        """The thread: audio to windows. Ends by saying so, with the error if there was one."""
        error: Exception | None = None
        held: list[Window] = []
        try:
            for window in self._windows():
                held.append(window)
                if not (self.inlet.complete and window.start < CLIP_S):
                    self._submit(held)
                if self._cancelled:
                    break
        except CancelledInletError:
            pass
        except EardrumError as known:
            error = known
        except Exception as unknown:
            error = AudioError(f"Decoding the audio failed: {unknown}")
            error.__cause__ = unknown
        self._submit(held)
        self._tell(End(error))

    def _submit(self, held: list[Window]) -> None:
        """Queue the windows held back. A short clip that is all here is cut whole first: beside an engine that keeps every core
        busy, decoding and cutting cost both more CPU than one after the other, for some hundredths of a second gained."""
        while held and not self._cancelled:
            self._ahead.acquire()
            window = held.pop(0)
            future = self._batcher.submit(self._id, window)
            future.add_done_callback(lambda _: self._ahead.release())
            self._tell((window, future))

    def _windows(self) -> Iterator[Window]:
        vad, gain = self._vad.stream(), Gain()
        cutter = Packer(self._cutting) if self._cutting.pack else Cutter(self._cutting)
        opened, silent = False, 0
        for block in _blocks(self._decoder):
            silent = 0 if block.any() else silent + 1
            if not opened:
                opened = True
                self._tell(Opened(self._decoder.duration, self._decoder.audio_track, self._decoder.audio_tracks))
            probs = vad(gain(block)) if silent <= SILENT else np.zeros(len(block) // FRAME, np.float32)
            for cut in cutter.feed(block, probs):
                yield self._window(cut)
        for cut in cutter.finish():
            yield self._window(cut)

    def _window(self, cut: Cut) -> Window:
        filled_up = max(0, cut.end - self._decoder.samples)  # with silence, to make the last frame whole
        return Window(
            audio=raised(cut.audio),
            start=cut.start / SAMPLE_RATE,
            speech=cut.speech,
            speech_span=(
                cut.speech_start / SAMPLE_RATE,
                min(cut.speech_end, len(cut.audio) - filled_up) / SAMPLE_RATE,
            ),
            request=self._request,
            context=self._context,
            pieces=tuple((at / SAMPLE_RATE, sample / SAMPLE_RATE) for at, sample in cut.pieces),
            speech_stretches=tuple((begin / SAMPLE_RATE, end / SAMPLE_RATE) for begin, end in cut.stretches),
        )

    def _tell(self, item: Decoded) -> None:
        self._loop.call_soon_threadsafe(self._ready.put_nowait, item)


class End:
    """The last thing the decoding thread says."""

    def __init__(self, error: Exception | None):
        self.error = error


Decoded = tuple[Window, Future[Heard]] | Opened | End


def _with_words(request: Request, batcher: Batcher) -> Request:
    """The request for word times, if they are wanted where a model has them and this one does."""
    wanted = replace(request, words=True)
    return wanted if request.words_if_any and batcher.knows_words and not batcher.refusal(wanted) else request


def _adjusted(cutting: Cutting, request: Request) -> Cutting:
    wishes: dict[str, Any] = {
        "threshold": request.vad_threshold,
        "silence_s": request.vad_silence_s,
        "padding_s": request.vad_padding_s,
    }
    if request.multilingual and not request.language:
        cutting = replace(cutting, pack=False, silence_s=min(cutting.silence_s, OWN_LANGUAGE_PAUSE_S))
    return replace(cutting, **{name: wish for name, wish in wishes.items() if wish is not None})


def _blocks(decoder: Decoder) -> Iterator[Audio]:
    """The samples in blocks of whole VAD frames, the last one filled up with silence."""
    pieces: list[Audio] = []
    size = 0
    for piece in decoder:
        pieces.append(piece)
        size += len(piece)
        if size >= BLOCK:
            joined = np.concatenate(pieces)
            whole = size - size % FRAME
            yield joined[:whole]
            pieces, size = [joined[whole:]], size - whole
    if size:
        yield np.pad(np.concatenate(pieces), (0, -size % FRAME))


def _segments(window: Window, heard: Heard, summary: Summary) -> Iterator[Segment]:
    """The window's segments on the request's clock, less those that nobody said."""
    placed_segments = (
        segment for relative in heard.hearing.segments for segment in placed(clamp_to_speech(relative, window), window)
    )
    for segment in placed_segments:
        segment.no_speech_prob = segment.no_speech_prob or 1 - window.speech
        verdict = judged(segment, window.speech)
        if verdict.reason and len(summary.dropped) < DROPPED_REPORTED:
            summary.dropped.append(Dropped(segment.start, segment.end, verdict.dropped, verdict.reason))
        if verdict.segment:
            yield verdict.segment
