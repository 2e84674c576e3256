"""Counts transcriptions, speech, jobs and model loads for `/metrics`, in plain numbers.

Recording a value costs about a microsecond, and prometheus_client is not needed for it: `eardrum.api.metrics` builds the
exposition from these numbers and from the server's state when it is requested.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from eardrum.errors import CancelledRequestError, EardrumError
from eardrum.speech import SpeechSummary
from eardrum.transcription import TranscriptionSummary

REJECTED_STATUSES = (429, 503, 507)
"""Statuses of errors that a later attempt may not get: the server or the model was too busy."""

SUCCESS, ERROR, REJECTED, CANCELLED = "success", "error", "rejected", "cancelled"
"""Outcomes of a transcription or a synthesis."""

DURATION_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
AUDIO_BOUNDS = (1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0)
WAIT_BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
LAG_BOUNDS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets, in seconds."""


class ValueHistogram:
    """Counts values by bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values in each bucket, and above the last bound. Not cumulative."""
        self.total = 0.0
        """The sum of all values."""

    def add_value(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class HistogramByModel(defaultdict[str, ValueHistogram]):
    """A histogram per model."""

    def __init__(self, bounds: tuple[float, ...]):
        super().__init__(lambda: ValueHistogram(bounds))


@dataclass(slots=True)
class GatewayMetrics:
    """The numbers since the server started. Models are known by their labels: a client's words never become a key."""

    transcriptions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By model and outcome."""
    durations: HistogramByModel = field(default_factory=lambda: HistogramByModel(DURATION_BOUNDS))
    """Seconds from the first byte of a request to its transcript."""
    audio: HistogramByModel = field(default_factory=lambda: HistogramByModel(AUDIO_BOUNDS))
    """Seconds of audio of a transcribed recording."""
    first_texts: HistogramByModel = field(default_factory=lambda: HistogramByModel(DURATION_BOUNDS))
    """Seconds from the first byte to the first text."""
    queue_waits: HistogramByModel = field(default_factory=lambda: HistogramByModel(WAIT_BOUNDS))
    """The longest wait of one of a request's windows for its turn, in seconds."""
    decode_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds that engines spent decoding, by model."""
    windows: Counter[str] = field(default_factory=Counter)
    """Decoded windows, by model."""
    batches: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Decoded batches, by model. A window of a batch of four counts as a quarter."""
    live_audio: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of audio of live sessions that have ended."""
    live_sessions: Counter[str] = field(default_factory=Counter)
    """Live sessions that have begun, by model."""
    live_lags: HistogramByModel = field(default_factory=lambda: HistogramByModel(LAG_BOUNDS))
    """Seconds of audio that arrived between the end of an utterance and its final text."""
    speeches: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Texts to speak, by model and outcome."""
    first_audios: HistogramByModel = field(default_factory=lambda: HistogramByModel(DURATION_BOUNDS))
    """Seconds from a text to the first audio of it."""
    speech_audio: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of synthesized audio, by model."""
    speech_characters: Counter[str] = field(default_factory=Counter)
    """Characters that were spoken, by model."""
    synthesis_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds that engines spent on synthesis, by model."""
    job_recordings: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Recordings of jobs whose last attempt ended here, by model and state."""
    job_audio: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Finished seconds of audio of jobs, by model."""
    job_webhooks: Counter[str] = field(default_factory=Counter)
    """Attempts to deliver webhooks, by result."""
    loads: Counter[str] = field(default_factory=Counter)
    """Successful loads, by model."""
    load_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds of a model's last load."""
    model_waits: HistogramByModel = field(default_factory=lambda: HistogramByModel(WAIT_BOUNDS))
    """Seconds from a request for a model to its lease: other models' turns, unloads and the load. 0 if the model was ready."""

    def measure_transcription(self, model: str) -> TranscriptionTimer:
        """Measure one transcription, as a context."""
        return TranscriptionTimer(self, model)

    def measure_speech(self, model: str) -> SpeechTimer:
        """Measure the synthesis of one text, as a context."""
        return SpeechTimer(self, model)

    def record_load(self, model: str, seconds: float) -> None:
        """Record that a model was loaded, and how long that took."""
        self.loads[model] += 1
        self.load_seconds[model] = seconds

    def record_model_wait(self, model: str, seconds: float) -> None:
        """Record that the current request waited for a model, and got it."""
        self.model_waits[model].add_value(seconds)
        if wait := CURRENT_MODEL_WAIT.get():
            wait.seconds = (wait.seconds or 0.0) + seconds


@dataclass(slots=True)
class ModelWait:
    """The time for which one request waited for models, and the replica that it got, for its line in the log."""

    seconds: float | None = None
    """The sum of all attempts; None until the request has got a model."""
    replica: str = ""
    """The address of the replica that served the request last; empty if its model has none."""

    def to_facts(self) -> dict[str, object]:
        """Return the fields of the log line; none for a request that got no model."""
        facts: dict[str, object] = {} if self.seconds is None else {"model_wait_s": round(self.seconds, 3)}
        return facts | {"replica": self.replica} if self.replica else facts


CURRENT_MODEL_WAIT: ContextVar[ModelWait | None] = ContextVar("CURRENT_MODEL_WAIT", default=None)
"""That of the current request: it holds for the request's task and the tasks that this one starts."""


class TranscriptionTimer:
    """Measures one transcription from the beginning of the context to its end, and records the outcome."""

    __slots__ = ("_has_text", "_metrics", "_started_at", "_summary", "model")

    def __init__(self, metrics: GatewayMetrics, model: str):
        self.model = model
        """The model that serves the request: a fallback, after the first one failed."""
        self._metrics = metrics
        self._started_at = time.monotonic()
        self._has_text = False
        self._summary: TranscriptionSummary | None = None

    def __enter__(self) -> Self:
        return self

    def record_text(self) -> None:
        """Record that text has come. Only the first call counts."""
        if not self._has_text:
            self._has_text = True
            self._metrics.first_texts[self.model].add_value(time.monotonic() - self._started_at)

    def record_summary(self, summary: TranscriptionSummary) -> None:
        """Record the totals of the transcript, which is complete."""
        self._summary = summary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        metrics, model, summary = self._metrics, self.model, self._summary
        metrics.transcriptions[model, SUCCESS if summary else _classify_outcome(error)] += 1
        if not summary:
            return
        metrics.durations[model].add_value(time.monotonic() - self._started_at)
        metrics.audio[model].add_value(summary.duration)
        metrics.queue_waits[model].add_value(summary.queue_s)
        metrics.decode_seconds[model] += summary.decode_s
        metrics.windows[model] += summary.windows
        metrics.batches[model] += summary.batches


class SpeechTimer:
    """Measures one synthesis from the beginning of the context to its end, and records the outcome."""

    __slots__ = ("_has_audio", "_metrics", "_started_at", "_summary", "model")

    def __init__(self, metrics: GatewayMetrics, model: str):
        self.model = model
        """The model that serves the request: a fallback, after the first one failed."""
        self._metrics = metrics
        self._started_at = time.monotonic()
        self._has_audio = False
        self._summary: SpeechSummary | None = None

    def __enter__(self) -> Self:
        return self

    def record_audio(self) -> None:
        """Record that audio has come. Only the first call counts."""
        if not self._has_audio:
            self._has_audio = True
            self._metrics.first_audios[self.model].add_value(time.monotonic() - self._started_at)

    def record_summary(self, summary: SpeechSummary) -> None:
        """Record the totals of the speech, which is complete."""
        self._summary = summary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        metrics, model, summary = self._metrics, self.model, self._summary
        metrics.speeches[model, SUCCESS if summary else _classify_outcome(error)] += 1
        if summary:
            metrics.speech_audio[model] += summary.duration
            metrics.speech_characters[model] += summary.characters
            metrics.synthesis_seconds[model] += summary.synthesis_s


def _classify_outcome(error: BaseException | None) -> str:
    if isinstance(error, GeneratorExit | asyncio.CancelledError | CancelledRequestError):
        return CANCELLED
    return REJECTED if isinstance(error, EardrumError) and error.status in REJECTED_STATUSES else ERROR
