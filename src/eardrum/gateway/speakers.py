"""Speaker diarization: labels the speakers of recordings, alongside any model.

A separate runner finds the turns of the speakers. It is loaded and unloaded as the models of the catalog are, but no client
names it. Its turns and the finished segments make the labelled transcript. In live sessions it finds the voice of each utterance.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import TypeVar, cast

from msgspec.structs import replace

import eardrum
from eardrum.concurrency import cancel_and_wait
from eardrum.config import Settings
from eardrum.errors import EardrumError, InvalidRequestError
from eardrum.gateway.fallback import FallbackPlan, TranscriptRestart
from eardrum.gateway.models.inventory import Model
from eardrum.gateway.processes.crashes import CrashSuspicion
from eardrum.gateway.processes.supervisor import ModelLease
from eardrum.gateway.speaker_labels import SpeakerLetters, label_segments
from eardrum.gateway.spool import AudioSource
from eardrum.gateway.upstreams.runner import RunnerUpstream
from eardrum.live import FinalTranscript
from eardrum.speakers import SpeakerRequest, SpeakerTurns, VoicePrint
from eardrum.text import choose_separator
from eardrum.transcription import (
    Capabilities,
    KnownSpeaker,
    Segment,
    TextDelta,
    TranscriptionEvent,
    TranscriptionRequest,
    TranscriptionSummary,
)

GRAPH = Path(eardrum.__file__).parent / "runner" / "speakers" / "voices.onnx"
BATCH_SIZE = 8
"""Windows that are worth computing together."""

REFERENCES = "known_speaker_references"
MIN_REFERENCE_S = 1.0
"""Seconds of speech from which a voice can be recognised again."""
SAME_VOICE = 0.8
"""Cosine from which two references are of one voice."""

SAME_SPEAKER = 0.45
"""Cosine from which an utterance is of a known speaker."""
MIN_UTTERANCE_S = 1.0
"""Seconds of speech below which an utterance is not a new speaker's: it is too short to distinguish voices."""
MAX_REMEMBERED_S = 60.0
"""Seconds of speech that a voice stands for at most, so that it follows a speaker who moves or gets hoarse."""

MAX_SEARCH_S = 8.0
"""Longest search for the voice of an utterance. The session holds its model meanwhile: without memory for the speakers' model
beside it, the search would not end. The default `patience`, after which the session's model serves nobody else, is longer."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def build_speaker_model(settings: Settings) -> Model:
    """Build the model for speaker labels."""
    return Model(
        id="eardrum:speakers",
        engine="speakers",
        source=GRAPH,
        capabilities=Capabilities(),
        origin="embedded",
        batch_size=BATCH_SIZE,
        scheduling=settings.resolve_scheduling(),
        is_internal=True,
    )


class SpeakerDetector:
    """Finds the turns of the speakers in recordings, and labels transcripts."""

    def __init__(self, model: Model, lease_model: Callable[[Model, CrashSuspicion], ModelLease]):
        self.model = model
        self._lease_model = lease_model

    async def label_events(
        self,
        events: AsyncGenerator[TranscriptionEvent | TranscriptRestart, None],
        request: TranscriptionRequest,
        audio: AudioSource,
    ) -> AsyncGenerator[TranscriptionEvent | TranscriptRestart, None]:
        """Pass on the events of a transcription of `audio`. Its text comes as deltas, and its segments labelled at the end.

        Nobody waits for the speakers before the transcription has released its model: there may be memory for one model only.

        Raises:
            InvalidRequestError: the reference of a known speaker cannot be used.
            EardrumError: the speakers cannot be found.
        """
        options = request.speaker_options
        segments: list[Segment] = []
        summary: TranscriptionSummary | None = None
        has_deltas, before = False, ""
        async with aclosing(events), self._detect_speakers(request, audio) as detection:
            async for event in events:
                if detection.done():
                    detection.result()  # a failure ends the transcription, too
                if isinstance(event, Segment):
                    segments.append(event)
                    if not has_deltas:
                        text = event.text.strip()
                        yield TextDelta(choose_separator(before, text) + text)
                        before = text or before
                    continue
                if isinstance(event, TranscriptionSummary):
                    summary = event
                    continue
                if isinstance(event, TextDelta):
                    has_deltas = True
                elif isinstance(event, TranscriptRestart):
                    segments, has_deltas, before = [], False, ""
                yield event
            if summary:
                found = await detection
                names = {number: options.known[index].name for number, index in found.known.items()}
                reserved = [speaker.name for speaker in options.known]
                for segment in await asyncio.to_thread(label_segments, segments, found.turns, names, reserved):
                    yield segment
                yield summary

    async def find_turns(
        self, request: TranscriptionRequest, audio: AudioSource, known_voices: tuple[VoicePrint, ...] = ()
    ) -> SpeakerTurns:
        """Find the turns of the speakers in a recording.

        Raises:
            EardrumError: the audio cannot be decoded, or the speakers cannot be found.
        """
        bounds = request.speaker_options
        wanted = SpeakerRequest(
            raw_pcm=request.raw_pcm,
            audio_track=request.audio_track,
            priority=request.priority,
            min_speakers=bounds.min_speakers,
            max_speakers=bounds.max_speakers,
            known_voices=known_voices,
        )
        return await self._run_with_retry(lambda runner: runner.find_turns(wanted, audio))

    @asynccontextmanager
    async def _detect_speakers(
        self, request: TranscriptionRequest, audio: AudioSource
    ) -> AsyncIterator[asyncio.Future[SpeakerTurns]]:
        """Check the references of known speakers, then find the turns in the background, for the duration of the block."""
        voices = await self._find_known_voices(request.speaker_options.known)
        detection = asyncio.ensure_future(self.find_turns(request, audio, voices))
        try:
            yield detection
        finally:
            await cancel_and_wait(detection)

    async def find_voice(self, recording: bytes) -> VoicePrint:
        """Find the voice of the only speaker in a recording. Without speech it has no values.

        Raises:
            EardrumError: the audio cannot be decoded, or the model failed.
        """
        return await self._run_with_retry(lambda runner: runner.find_voice(recording))

    async def _find_known_voices(self, known: Sequence[KnownSpeaker]) -> tuple[VoicePrint, ...]:
        """Find the voices of known speakers.

        Raises:
            InvalidRequestError: a reference cannot be decoded or is too short, or two have the same voice.
        """
        voices = [await self._find_voice(speaker) for speaker in known]
        for (one, voice), (other, second) in combinations(zip(known, voices, strict=True), 2):
            if voice.compare(second) >= SAME_VOICE:
                message = f"The references of {one.name!r} and {other.name!r} sound like one person: send one of each voice."
                raise InvalidRequestError(message, param=REFERENCES)
        return tuple(voices)

    async def _find_voice(self, speaker: KnownSpeaker) -> VoicePrint:
        try:
            voice = await self.find_voice(speaker.recording)
        except EardrumError as error:
            if error.status != 400:
                raise
            raise InvalidRequestError(f"The reference of {speaker.name!r}: {error.message}", param=REFERENCES) from error
        if voice.speech_s < MIN_REFERENCE_S:
            heard = f"only {voice.speech_s:.1f} s of speech" if voice.values else "no speech"
            message = f"The reference of {speaker.name!r} holds {heard}: send 2 to 10 seconds of this voice alone."
            raise InvalidRequestError(message, param=REFERENCES)
        return voice

    async def _run_with_retry(self, work: Callable[[RunnerUpstream], Awaitable[T]]) -> T:
        """Run the work with the runner, once more if its process dies."""
        plan = FallbackPlan([self.model])
        while True:
            try:
                async with self._lease_model(plan.model, plan.suspicion) as lease:
                    return await work(cast(RunnerUpstream, lease.upstream))
            except EardrumError as error:
                plan.handle_failure(error, repeatable=True)


class UtteranceSpeakers:
    """Labels the utterances of one live session: each gets the speaker whose voice it has, or a new one."""

    def __init__(self, detector: SpeakerDetector):
        self._detector = detector
        self._voices = SpeakerVoices()
        self._letters = SpeakerLetters({}, ())
        self._searches: dict[int, asyncio.Task[VoicePrint]] = {}

    def start_search(self, utterance: int, recording: bytes) -> None:
        """Start to find the voice of an utterance, while its text is being decoded."""
        self._searches[utterance] = asyncio.create_task(self._find_voice(recording))

    async def _find_voice(self, recording: bytes) -> VoicePrint:
        async with asyncio.timeout(MAX_SEARCH_S):
            return await self._detector.find_voice(recording)

    async def label(self, final: FinalTranscript, most: int | None) -> FinalTranscript:
        """Return the text with its speaker, one of at most `most`; without one if the voice cannot be found."""
        search = self._searches.pop(final.utterance, None)
        if not search:
            return final
        try:
            number = self._voices.choose_speaker(await search, most)
        except TimeoutError:
            log.warning("An utterance has no speaker: its voice was not found within %g s.", MAX_SEARCH_S)
            return final
        except EardrumError as error:
            log.warning("An utterance has no speaker: %s", error.message)
            return final
        if number is None:
            return final
        name = self._letters.get_name(number)
        return replace(final, speaker=name, segments=tuple(replace(segment, speaker=name) for segment in final.segments))

    def drop(self, utterance: int) -> None:
        """Forget an utterance that gets no text."""
        if search := self._searches.pop(utterance, None):
            search.cancel()

    def close(self) -> None:
        """Stop all searches."""
        for utterance in list(self._searches):
            self.drop(utterance)


class SpeakerVoices:
    """The voices of the speakers so far, each the mean of its utterances. Pure."""

    def __init__(self) -> None:
        self._voices: list[VoicePrint] = []

    def choose_speaker(self, voice: VoicePrint, most: int | None = None) -> int | None:
        """Return the number of the speaker with this voice, from 0; None if there is no voice.

        A voice that is like none before is a new speaker, unless its speech is too short or there are `most` already.
        """
        if not voice.values:
            return None
        alike = [voice.compare(other) for other in self._voices]
        best = max(range(len(alike)), key=alike.__getitem__, default=None)
        if best is None or (
            alike[best] < SAME_SPEAKER and voice.speech_s >= MIN_UTTERANCE_S and (most is None or len(alike) < most)
        ):
            self._voices.append(voice)
            return len(alike)
        if alike[best] >= SAME_SPEAKER:
            self._voices[best] = _average_voices(self._voices[best], voice)
        return best


def _average_voices(one: VoicePrint, other: VoicePrint) -> VoicePrint:
    """Return the mean of two voices by their seconds of speech, with the length 1."""
    values = [a * one.speech_s + b * other.speech_s for a, b in zip(one.values, other.values, strict=True)]
    length = math.hypot(*values) or 1.0
    return VoicePrint(tuple(value / length for value in values), min(one.speech_s + other.speech_s, MAX_REMEMBERED_S))
