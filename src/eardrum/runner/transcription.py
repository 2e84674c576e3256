"""Transcribes one request: bytes in, events out, in order and as soon as they are ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from threading import Semaphore, Thread
from typing import Any

import numpy as np
from msgspec.structs import replace

from eardrum.engines.base import Audio, RequestContext, Window
from eardrum.errors import AudioError, EardrumError
from eardrum.runner.batcher import DecodedWindow, WindowBatcher
from eardrum.runner.byte_pipe import BytePipe, PipeCancelledError
from eardrum.runner.decoder import AudioDecoder
from eardrum.runner.fair_queue import MAX_CLIP_S
from eardrum.runner.postprocessing import place_segment, remove_hallucinations
from eardrum.runner.segmenter import ChunkPacker, SegmenterConfig, SpeechChunk, SpeechSegmenter, clamp_to_speech
from eardrum.runner.vad import FRAME_SAMPLES, AutoGain, VadModel, amplify_quiet
from eardrum.tracing import TraceSpan, to_unix_time
from eardrum.transcription import (
    SAMPLE_RATE,
    AudioOpened,
    DroppedText,
    Segment,
    TranscriptionEvent,
    TranscriptionRequest,
    TranscriptionSummary,
    WindowCheckpoint,
)

BLOCK_SAMPLES = FRAME_SAMPLES * 156
"""Samples per step through the VAD: 5 s. Larger gains nothing, smaller costs up to twice the CPU."""

MAX_SILENT_BLOCKS = 3
"""Blocks of digital silence after which more of it is not looked at: a gap in a recording's clock may last for hours."""

MULTILINGUAL_PAUSE_S = 1.0
"""Between speakers of different languages there is a pause; windows that have their own language end there."""

DETECTION_SPEECH_S = 30.0
"""Speech after which a request for the language alone ends: what a Whisper sees of a recording at once."""

MAX_REPORTED_DROPS = 100
"""Hallucinations listed in a summary; more are only counted by their absence."""


class TranscriptionJob:
    """Decodes one request's audio in its own thread and hands its windows to the batcher.

    Raises:
        UnsupportedFeatureError: the engine lacks a feature of the request.
    """

    def __init__(
        self,
        request: TranscriptionRequest,
        *,
        batcher: WindowBatcher,
        vad: VadModel,
        cutting: SegmenterConfig,
        max_seconds: float,
    ):
        if refusal := batcher.find_refusal(request):
            raise refusal
        request = _add_word_times(request, batcher)
        self.pipe = BytePipe()
        self._request = request
        self._batcher = batcher
        self._vad = vad
        self._segmenter_config = adjust_config(cutting, request)
        self._decoder = AudioDecoder(self.pipe, raw_pcm=request.raw_pcm, max_seconds=max_seconds, audio_track=request.audio_track)
        self._id = batcher.allocate_request_id()
        self._loop = asyncio.get_running_loop()
        self._output: asyncio.Queue[DecodingOutput] = asyncio.Queue()
        self._free_slots = Semaphore(batcher.windows_ahead)
        self._resume = request.resume or WindowCheckpoint(0, 0.0)
        self._context = RequestContext(dict(self._resume.votes), self._resume.unheard, self._resume.text)
        self._snapshots: dict[int, RequestContext] = {}
        """The context as each window left it, by the window's number, if checkpoints are wanted."""
        self._submitted = self._resume.windows
        self._cancelled = False
        self._first_decoded: DecodedWindow | None = None
        self._decoded_at = 0.0
        # The thread gets the context of the task, with the request's id.
        self._thread = Thread(target=copy_context().run, args=(self._decode_audio,), name=f"audio-{self._id}", daemon=True)

    async def stream_events(self) -> AsyncGenerator[TranscriptionEvent, None]:
        """The segments in order, then the summary. Closing the iterator early cancels the request.

        Raises:
            EardrumError: the audio cannot be decoded, or the engine failed.
        """
        self._thread.start()
        summary = TranscriptionSummary(language=self._request.language or "", duration=0.0, windows=self._resume.windows)
        spoken: dict[str, float] = dict(self._resume.spoken)
        if spoken:
            self._set_language(summary, spoken)
        try:
            while not isinstance(item := await self._output.get(), DecodingEnd):
                if isinstance(item, AudioOpened):
                    yield item
                    continue
                window, future = item
                decoded = await asyncio.wrap_future(future)
                self._first_decoded, self._decoded_at = self._first_decoded or decoded, time.monotonic()
                summary.windows += 1
                summary.queue_s = max(summary.queue_s, decoded.queue_s)
                summary.decode_s += decoded.decode_s
                summary.batches += decoded.batch_share
                if language := decoded.result.language:
                    begin, end = window.speech_span
                    spoken[language] = spoken.get(language, 0.0) + max(end - begin, 0.0)
                    self._set_language(summary, spoken)
                drops = len(summary.dropped)
                for segment in _finish_segments(window, decoded, summary):
                    yield segment
                if self._request.checkpoints:
                    yield self._build_checkpoint(window, spoken, summary.windows, summary.dropped[drops:])
            if item.error:
                raise item.error
            summary.duration = self._decoder.samples / SAMPLE_RATE
            summary.audio_track, summary.audio_tracks = self._decoder.audio_track, self._decoder.audio_tracks
            summary.warnings = list(self._decoder.warnings)
            yield summary
        finally:
            await self._cancel()

    def trace_decoding(self, span: TraceSpan, summary: TranscriptionSummary) -> None:
        """Add what came of the job to its span. A span for each window would be too many: one is for all of them."""
        decoded = {"eardrum.windows": summary.windows, "eardrum.batches": summary.batches}
        decoded["eardrum.decode.duration"] = summary.decode_s
        span.set_attributes({"eardrum.audio.duration": summary.duration})
        if first := self._first_decoded:
            began = to_unix_time(first.started_at)
            span.add_child("queue", began - first.queue_s, began, {"eardrum.queue.longest": summary.queue_s})
            span.add_child("decode", began, to_unix_time(self._decoded_at), decoded)

    def _build_checkpoint(
        self, window: Window, spoken: dict[str, float], windows: int, dropped: list[DroppedText]
    ) -> WindowCheckpoint:
        context = self._snapshots.pop(windows, self._context)
        return WindowCheckpoint(
            windows=windows,
            until=window.clock(window.seconds, ending=True),
            votes=tuple(context.votes.items()),
            unheard=context.unheard,
            text=context.text,
            spoken=tuple(spoken.items()),
            dropped=tuple(dropped),
        )

    def _set_language(self, summary: TranscriptionSummary, spoken: dict[str, float]) -> None:
        summary.language = self._request.language or self._find_main_language(spoken)
        summary.language_probability = self._find_probability(summary.language, spoken)

    def _find_main_language(self, spoken: dict[str, float]) -> str:
        """The language of most of the speech. What the engine found out counts for more than what it decoded each window in."""
        votes = self._get_votes(spoken)
        return max(votes, key=votes.__getitem__)

    def _find_probability(self, language: str, spoken: dict[str, float]) -> float:
        """The share of a detected language in all votes."""
        votes = {} if self._request.language else self._get_votes(spoken)
        total = sum(votes.values())
        return votes[language] / total if total > 0 else 0.0

    def _get_votes(self, spoken: dict[str, float]) -> dict[str, float]:
        return spoken if self._request.multilingual else self._context.votes or spoken

    async def _cancel(self) -> None:
        self._cancelled = True
        self.pipe.cancel()
        self._batcher.cancel(self._id)
        self._free_slots.release(self._batcher.windows_ahead)
        await asyncio.to_thread(self._thread.join)
        self._batcher.cancel(self._id)  # what the thread submitted in between

    def _decode_audio(self) -> None:
        """Decode the audio into windows, in a thread. Emits `DecodingEnd` last, with the error if there was one."""
        error: Exception | None = None
        held: list[Window] = []
        try:
            try:
                for number, window in enumerate(self._cut_windows()):
                    if number < self._resume.windows:
                        continue
                    held.append(window)
                    if not (self.pipe.is_complete and window.start < MAX_CLIP_S):
                        self._submit_windows(held)
                    if self._cancelled:
                        break
            finally:
                self._submit_windows(held)
        except PipeCancelledError:
            pass
        except EardrumError as known:
            error = known
        except BaseException as unknown:  # an engine's, too, which looks at a window when it is queued
            error = AudioError(f"Decoding the audio failed: {unknown}")
            error.__cause__ = unknown
        self._emit(DecodingEnd(error))

    def _submit_windows(self, held: list[Window]) -> None:
        """Queue the windows held back. A short clip that is all here is cut whole first: beside an engine that keeps every core
        busy, decoding and cutting cost both more CPU than one after the other, for some hundredths of a second gained."""
        while held and not self._cancelled:
            self._free_slots.acquire()
            window = held.pop(0)
            future = self._batcher.submit(self._id, window)
            if self._request.checkpoints:
                self._submitted += 1
                future.add_done_callback(partial(self._take_snapshot, self._submitted))
            future.add_done_callback(lambda _: self._free_slots.release())
            self._emit((window, future))

    def _take_snapshot(self, number: int, _: Future[DecodedWindow]) -> None:
        """Keep the context behind a window. Called in the engine's thread, before it continues to the next batch."""
        self._snapshots[number] = replace(self._context, votes=dict(self._context.votes))

    def _cut_windows(self) -> Iterator[Window]:
        vad, gain = self._vad.open_stream(), AutoGain()
        cutter = ChunkPacker(self._segmenter_config) if self._segmenter_config.pack else SpeechSegmenter(self._segmenter_config)
        opened, silent, heard = False, 0, 0.0
        for block in split_blocks(self._decoder):
            silent = 0 if block.any() else silent + 1
            if not opened:
                opened = True
                self._emit(AudioOpened(self._decoder.duration, self._decoder.audio_track, self._decoder.audio_tracks))
            probs = vad(gain(block)) if silent <= MAX_SILENT_BLOCKS else np.zeros(len(block) // FRAME_SAMPLES, np.float32)
            for cut in cutter.feed(block, probs):
                yield self._build_window(cut)
                heard += (cut.speech_end - cut.speech_start) / SAMPLE_RATE
                if self._request.language_only and heard >= DETECTION_SPEECH_S:
                    return
        for cut in cutter.finish():
            yield self._build_window(cut)

    def _build_window(self, cut: SpeechChunk) -> Window:
        filled_up = max(0, cut.end - self._decoder.samples)  # with silence, to make the last frame whole
        return Window(
            audio=amplify_quiet(cut.audio),
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

    def _emit(self, item: DecodingOutput) -> None:
        self._loop.call_soon_threadsafe(self._output.put_nowait, item)


class DecodingEnd:
    """The last message of the decoding thread."""

    def __init__(self, error: Exception | None):
        self.error = error


DecodingOutput = tuple[Window, Future[DecodedWindow]] | AudioOpened | DecodingEnd


def _add_word_times(request: TranscriptionRequest, batcher: WindowBatcher) -> TranscriptionRequest:
    """Add word times to a request that wants them where available, if the model gives them."""
    wanted = replace(request, words=True)
    return wanted if request.words_if_any and batcher.is_word_support_certain and not batcher.find_refusal(wanted) else request


def adjust_config(cutting: SegmenterConfig, request: TranscriptionRequest) -> SegmenterConfig:
    """The segmenter's settings with those that the request sets itself."""
    changes: dict[str, Any] = {
        "threshold": request.vad_threshold,
        "silence_s": request.vad_silence_s,
        "padding_s": request.vad_padding_s,
    }
    if request.multilingual and not request.language:
        cutting = replace(cutting, pack=False, silence_s=min(cutting.silence_s, MULTILINGUAL_PAUSE_S))
    return replace(cutting, **{name: value for name, value in changes.items() if value is not None})


def split_blocks(decoder: AudioDecoder) -> Iterator[Audio]:
    """The samples in blocks of `BLOCK_SAMPLES`, the last one shorter and filled up with silence to a whole VAD frame.

    The blocks do not depend on the pieces in which the bytes arrive. Else another process, which gets all of them at once, might
    cut the recording into other windows, and would leave out the wrong ones behind a checkpoint.
    """
    pieces: list[Audio] = []
    size = 0
    for piece in decoder:
        pieces.append(piece)
        size += len(piece)
        if size >= BLOCK_SAMPLES:
            joined = np.concatenate(pieces)
            whole = size - size % BLOCK_SAMPLES
            yield from (joined[at : at + BLOCK_SAMPLES] for at in range(0, whole, BLOCK_SAMPLES))
            pieces, size = [joined[whole:]], size - whole
    if size:
        yield np.pad(np.concatenate(pieces), (0, -size % FRAME_SAMPLES))


def _finish_segments(window: Window, decoded: DecodedWindow, summary: TranscriptionSummary) -> Iterator[Segment]:
    """Yield the window's segments with times of the request. Those without speech are left out."""
    placed_segments = (
        segment for relative in decoded.result.segments for segment in place_segment(clamp_to_speech(relative, window), window)
    )
    for segment in placed_segments:
        segment.no_speech_prob = segment.no_speech_prob or 1 - window.speech
        verdict = remove_hallucinations(segment, window.speech)
        if verdict.reason and len(summary.dropped) < MAX_REPORTED_DROPS:
            summary.dropped.append(DroppedText(segment.start, segment.end, verdict.dropped, verdict.reason))
        if verdict.segment:
            yield verdict.segment
