"""Speaker diarization: bytes of a recording in, turns of its speakers out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import numpy as np

from eardrum.engines.base import Window
from eardrum.runner.batcher import WindowBatcher
from eardrum.runner.segmenter import SegmenterConfig
from eardrum.runner.speakers.clustering import (
    SpeakerBounds,
    SpeakerNumbers,
    VoicePrints,
    cluster_voices,
    compute_centers,
)
from eardrum.runner.speakers.voice_encoder import WINDOW_S
from eardrum.runner.transcription import DecodingEnd, TranscriptionJob
from eardrum.runner.vad import VadModel
from eardrum.speakers import SpeakerRequest, SpeakerTurn, SpeakerTurns, VoicePrint
from eardrum.transcription import SAMPLE_RATE, AudioOpened, TranscriptionRequest

HOP_S = WINDOW_S / 2
"""From one window to the next."""

CUTTING = SegmenterConfig(max_s=30.0, padding_s=0.1)
"""Settings for finding speech. Pauses within a chunk are left out afterwards."""

MAX_PAUSE_S = 0.5
"""A shorter pause in the speech of one speaker is part of the turn."""

KNOWN_SPEAKER = 0.6
"""Cosine from which a voice is that of a known speaker. One person's in two languages have 0.8, two people's 0.3 to 0.7."""


TimeSpans = np.ndarray[tuple[int, int], np.dtype[np.float64]]
"""Starts and ends in seconds of a recording, shape [n, 2]."""


class SpeakerJob(TranscriptionJob):
    """Finds the speakers of one recording: it is decoded as for a transcription, in a thread, and cut into short windows."""

    def __init__(self, request: SpeakerRequest, *, batcher: WindowBatcher, vad: VadModel, max_seconds: float):
        super().__init__(
            TranscriptionRequest(raw_pcm=request.raw_pcm, audio_track=request.audio_track, priority=request.priority),
            batcher=batcher,
            vad=vad,
            cutting=CUTTING,
            max_seconds=max_seconds,
        )
        self._wanted = request

    async def find_turns(self) -> SpeakerTurns:
        """Find the turns of all speakers.

        Raises:
            EardrumError: the audio cannot be decoded, or the model failed.
        """
        spans, voices = await self._compute_voices()
        return await asyncio.to_thread(build_turns, spans, voices, self._wanted)

    async def find_voice(self) -> VoicePrint:
        """Find the voice of the recording's only speaker. Without speech it has no values.

        Raises:
            EardrumError: the audio cannot be decoded, or the model failed.
        """
        spans, voices = await self._compute_voices()
        if not len(spans):
            return VoicePrint(())
        center = compute_centers(voices, np.zeros(len(voices), np.intp))[0]
        return VoicePrint(tuple(map(float, center)), float((spans[:, 1] - spans[:, 0]).sum()))

    async def _compute_voices(self) -> tuple[TimeSpans, VoicePrints]:
        """Compute the voice prints of all windows, in the order of the recording, and the time that each stands for."""
        self._thread.start()
        spans: list[tuple[float, float]] = []
        voices = []
        try:
            while not isinstance(item := await self._output.get(), DecodingEnd):
                if isinstance(item, AudioOpened):
                    continue
                window, future = item
                voices.append((await asyncio.wrap_future(future)).result.voice)
                spans.append((window.start + window.speech_span[0], window.start + window.speech_span[1]))
            if item.error:
                raise item.error
        finally:
            await self._cancel()
        return np.array(spans).reshape(-1, 2), np.array(voices, np.float32)

    def _cut_windows(self) -> Iterator[Window]:
        for window in super()._cut_windows():
            for begin, end in window.speech_stretches:
                yield from _split_stretch(window, begin, end)


def _split_stretch(chunk: Window, begin: float, end: float) -> Iterator[Window]:
    """Windows of a stretch of speech, each with the part of it that is nearest to its middle as `speech_span`."""
    length = end - begin
    count = 1 if length <= WINDOW_S else 1 + int(np.ceil((length - WINDOW_S) / HOP_S))
    hop = (length - WINDOW_S) / (count - 1) if count > 1 else 0.0
    for number in range(count):
        start = begin + number * hop
        stop = min(start + WINDOW_S, end)
        middle = (start + stop) / 2
        share = (middle - hop / 2 if number else begin, middle + hop / 2 if number < count - 1 else end)
        yield Window(
            audio=chunk.audio[int(start * SAMPLE_RATE) : int(stop * SAMPLE_RATE)],
            start=chunk.start + start,
            speech=chunk.speech,
            speech_span=(share[0] - start, share[1] - start),
            request=chunk.request,
        )


def build_turns(spans: TimeSpans, voices: VoicePrints, request: SpeakerRequest) -> SpeakerTurns:
    """Cluster the voice prints, and join neighbouring spans of one speaker."""
    if not len(spans):
        return SpeakerTurns()
    bounds = SpeakerBounds(request.min_speakers or 1, request.max_speakers or len(spans))
    labels = _number_by_appearance(cluster_voices(voices, spans[:, 1] - spans[:, 0], bounds))
    turns: list[SpeakerTurn] = []
    for (start, end), label in zip(spans.round(3).tolist(), labels.tolist(), strict=True):
        joins = turns and turns[-1].speaker == label and start - turns[-1].end < MAX_PAUSE_S
        turns.append(SpeakerTurn(turns.pop().start if joins else start, end, label))
    known = match_known_voices(compute_centers(voices, labels), request.known_voices)
    return SpeakerTurns(tuple(turns), known)


def _number_by_appearance(labels: SpeakerNumbers) -> SpeakerNumbers:
    _, first, found = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[found]


def match_known_voices(centers: VoicePrints, known: Sequence[VoicePrint]) -> dict[int, int]:
    """Find the known voice of each speaker, most alike first. Nobody has two names, and no name is given twice."""
    if not known:
        return {}
    alike = centers @ np.array([voice.values for voice in known], np.float32).T
    found: dict[int, int] = {}
    for _ in range(min(alike.shape)):
        speaker, index = np.unravel_index(int(np.argmax(alike)), alike.shape)
        if alike[speaker, index] < KNOWN_SPEAKER:
            break
        found[int(speaker)] = int(index)
        alike[speaker, :] = alike[:, index] = -np.inf
    return found
