"""The live session: audio, commands and engine results go in; events and decode requests come out.

A pure state machine, without clock, thread or I/O. Its time is the audio's. Utterances end at pauses (`EndpointingSettings`) or
by `CommitCommand`. In both cases a long one is cut into windows at shorter pauses, so that its end leaves little to decode: an
engine's window never ends an utterance, before that is longer than `MAX_UTTERANCE_S`. `PartialDecodePlanner` decides when
decoding unfinished speech is worth its cost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import count

from msgspec import Struct
from msgspec.structs import replace

from eardrum.engines.base import Audio, EngineResult, Window
from eardrum.errors import EardrumError, EmptyCommitError
from eardrum.live import (
    ClearCommand,
    CommandRefused,
    CommitCommand,
    ConfigureCommand,
    FinishCommand,
    LiveCommand,
    LiveEvent,
    SessionEnded,
    SessionSettings,
    SpeechIdle,
    SpeechStarted,
    SpeechStopped,
    UtteranceCleared,
    UtteranceCommitted,
    UtteranceFailed,
)
from eardrum.runner.live import endpointing as ends
from eardrum.runner.live.utterance import Utterance, UtteranceWindow, build_segments, keep_stable_text
from eardrum.runner.segmenter import SpeechChunk
from eardrum.runner.vad import FRAME_SAMPLES, SpeechProbabilities
from eardrum.transcription import SAMPLE_RATE, Capabilities, TranscriptionRequest

MIN_COMMIT_S = 0.095
"""A commit of less audio is refused: of 0.1 s, but for what a change of the sample rate holds back."""

MAX_UTTERANCE_S = 1800.0
"""Seconds of speech after which an utterance ends before its next window. Its text is one message, with times for every word, and
the longest that a gateway reads (`gateway/upstreams/runner.py`) must not be reached."""

FRAME_S = FRAME_SAMPLES / SAMPLE_RATE

EMPTY_COMMIT_MESSAGE = "There is no audio to commit: send at least 0.1 s before it, or leave it to the voice activity detection."


class LiveSession:
    """One stream. Every method returns what follows from it, in order."""

    def __init__(self, settings: SessionSettings, capabilities: Capabilities):
        self._settings = settings
        self._capabilities = capabilities
        self._has_word_times = capabilities.words and not capabilities.fixed_window  # else a shorter window saves nothing
        self._endpointer = ends.Endpointer(ends.EndpointingRule.of(settings.endpointing, capabilities))
        self._partials = PartialDecodePlanner(fixed_cost=capabilities.fixed_window)
        self._ids = count(1)
        self._numbers = count(1)
        self._current: Utterance | None = None
        self._committed: deque[Utterance] = deque()
        self._pending: dict[
            int, tuple[Utterance, UtteranceWindow, Window]
        ] = {}  # what the engine has, by the number of the window
        self._last_end = (0.0, 0.0)  # the end of the last window, and of the speech in it
        self._floor = 0.0  # where the utterance in progress may begin at the earliest
        self._idle_from: float | None = None
        self._duration: float | None = None  # known once no more audio comes
        self._decode_s = 0.0
        self._language = ""
        self._outputs: list[SessionOutput] = []

    @property
    def pending_windows(self) -> int:
        """Finished windows that the engine has not decoded yet."""
        return len(self._pending)

    def process_audio(self, samples: Audio, probs: SpeechProbabilities) -> list[SessionOutput]:
        """Take the next whole frames of 16 kHz mono with the speech probability of each."""
        for mark in self._endpointer.feed(samples, probs):
            match mark:
                case ends.StretchBegan(at):
                    self._begin_utterance(at * FRAME_S)
                case ends.StretchPaused():
                    if self._is_due(paused=True):
                        self._decode_partial(complete=True)
                case ends.StretchEnded(cut):
                    self._close_window(cut)
                case ends.SpeechOver():
                    self._commit_utterance(*self._last_end)
        if self._is_partial_due():
            self._decode_partial(complete=False)
        self._emit_idle()
        return self._collect_outputs()

    def handle_command(self, command: LiveCommand, rest: Audio | None = None) -> list[SessionOutput]:
        """Carry out a command. `rest` are the samples since the last whole frame."""
        match command:
            case ConfigureCommand(settings):
                self._configure(settings)
            case CommitCommand():
                self._commit_now(rest)
            case ClearCommand():
                self._clear_utterance()
            case FinishCommand():
                self._finish(rest)
        return self._collect_outputs()

    def handle_result(self, number: int, result: EngineResult, decode_s: float, queue_s: float) -> list[SessionOutput]:
        """The engine has decoded a window, in so many seconds after it had waited."""
        self._decode_s += decode_s
        attempt = self._partials.last
        if number in self._pending:
            self._complete_window(number, result)
        elif attempt and attempt.id == number:
            attempt.result = result
            self._partials.record_result(decode_s, queue_s)
            self._apply_hypothesis(attempt, result)
        return self._collect_outputs()

    def handle_failure(self, number: int, error: EardrumError) -> list[SessionOutput]:
        """The engine has failed on a window."""
        if number in self._pending:
            _, part, _ = self._pending.pop(number)
            part.error = error
        elif self._partials.last and self._partials.last.id == number:
            self._partials.record_failure()
        return self._collect_outputs()

    # Speech

    def _begin_utterance(self, start: float) -> None:
        if self._current and self._current.window_s < MAX_UTTERANCE_S:
            return  # the next window of an utterance in progress
        if self._current:
            self._commit_utterance(*self._last_end)
        start = max(start, self._floor)
        self._idle_from = None
        announced = self._settings.endpointing is not None
        self._current = self._create_utterance(start if announced else self._floor, announced=announced)
        if announced:
            self._outputs.append(SpeechStarted(self._current.number, start))

    def _create_utterance(self, start: float, *, announced: bool) -> Utterance:
        return Utterance(next(self._numbers), self._settings.request, start, announced)

    def _close_window(self, cut: SpeechChunk) -> None:
        """Decode the finished window, unless decoding started at the pause."""
        assert self._current
        self._last_end = cut.end / SAMPLE_RATE, (cut.start + cut.speech_end) / SAMPLE_RATE
        window = build_window(cut, self._current.request)
        part = self._current.close_window(window.seconds)
        attempt, self._partials.last = self._partials.last, None
        if attempt and attempt.covers(window):
            self._pending[attempt.id] = (self._current, part, window)
            self._outputs.append(AdoptPartial(attempt.id))
            if attempt.result:
                self._complete_window(attempt.id, attempt.result)
            return
        if attempt and not attempt.result:
            self._partials.omitted_count += 1
            self._outputs.append(DropWindow(attempt.id))
        number = next(self._ids)
        self._pending[number] = (self._current, part, window)
        self._outputs.append(DecodeWindow(number, window, final=True))

    def _commit_utterance(self, end: float, stopped: float) -> None:
        assert self._current
        utterance, self._current = self._current, None
        utterance.committed = UtteranceCommitted(utterance.number, utterance.start, end)
        if utterance.announced:
            self._outputs.append(SpeechStopped(utterance.number, stopped))
        self._outputs.append(utterance.committed)
        self._committed.append(utterance)
        self._floor = end
        self._idle_from = stopped

    # Partials

    def _is_partial_due(self) -> bool:
        if not (self._settings.partials and self._current and self._endpointer.is_speaking) or self._partials.is_waiting:
            return False
        return self._is_due()

    def _is_due(self, *, paused: bool = False) -> bool:
        """Whether decoding the open window as it is is worth it. Finals come first."""
        return not self._pending and self._partials.is_due(
            self._endpointer.examined_frames * FRAME_S, self._endpointer.begin * FRAME_S, paused=paused
        )

    def _decode_partial(self, *, complete: bool) -> None:
        """Have the open window decoded as it is."""
        assert self._current
        if self._partials.is_waiting:
            assert self._partials.last
            self._partials.omitted_count += 1
            self._outputs.append(DropWindow(self._partials.last.id))
        window = build_window(self._endpointer.cut_open_stretch(whole=complete), self._current.request)
        told_to = None
        if self._has_word_times and not complete:
            told_to = self._current.stable_until
            window = cut_tail(window, told_to)
        attempt = PartialDecode(next(self._ids), window, told_to)
        self._partials.start(attempt)
        self._outputs.append(DecodeWindow(attempt.id, window, final=False))

    def _apply_hypothesis(self, attempt: PartialDecode, result: EngineResult) -> None:
        """A hypothesis on the open window."""
        utterance = self._current
        if not utterance or not self._settings.partials:
            return
        before = (utterance.open_window.stable, utterance.open_window.tentative)
        end = attempt.window.start + attempt.window.seconds
        utterance.add_hypothesis(build_segments(attempt.window, result), end, attempt.stable_until)
        if before != (utterance.open_window.stable, utterance.open_window.tentative):
            self._emit_partial(utterance, end)

    def _emit_partial(self, utterance: Utterance, end: float) -> None:
        if all(part.is_done and not part.error for part in utterance.windows):
            self._outputs.append(utterance.build_partial(end))

    # Finals

    def _complete_window(self, number: int, result: EngineResult) -> None:
        utterance, part, window = self._pending[number]
        part.segments = keep_stable_text(part.stable, build_segments(window, result), window)
        del self._pending[number]  # at last: if the result cannot be used, the window has failed
        utterance.language = result.language or utterance.language
        if utterance is self._current and self._settings.partials and part.segments:
            self._emit_partial(utterance, window.start + window.seconds)

    def _collect_outputs(self) -> list[SessionOutput]:
        """Everything that follows, with the finals whose turn it is, and the end."""
        while self._committed and self._committed[0].is_complete:
            end = self._committed.popleft().build_result()
            self._language = self._language if isinstance(end, UtteranceFailed) else end.language or self._language
            self._outputs.append(end)
        if self._duration is not None and not self._committed:
            tried = self._partials
            self._outputs.append(
                SessionEnded(self._duration, self._language, self._decode_s, tried.decoded_count, tried.omitted_count)
            )
            self._duration = None
        out, self._outputs = self._outputs, []
        return out

    # Commands

    def _commit_now(self, rest: Audio | None) -> None:
        now = self._get_time(rest)
        if not self._current and now - self._floor < MIN_COMMIT_S:
            self._outputs.append(CommandRefused(EmptyCommitError(EMPTY_COMMIT_MESSAGE)))
            return
        cut = self._endpointer.end_stretch(rest)
        self._current = self._current or self._create_utterance(self._floor, announced=False)
        if cut:
            self._close_window(cut)
        self._commit_utterance(now, (cut.start + cut.speech_end) / SAMPLE_RATE if cut else now)

    def _clear_utterance(self) -> None:
        self._endpointer.end_stretch()
        given_up, self._current = self._current, None
        self._floor = self._endpointer.frame_count * FRAME_S
        if self._partials.is_waiting:
            assert self._partials.last
            self._outputs.append(DropWindow(self._partials.last.id))
        self._partials.last = None
        for number, (utterance, _, _) in list(self._pending.items()):
            if utterance is given_up:
                del self._pending[number]
                self._outputs.append(DropWindow(number))
        self._outputs.append(UtteranceCleared(given_up.number if given_up else 0))

    def _configure(self, settings: SessionSettings) -> None:
        self._settings = settings
        self._endpointer.rule = ends.EndpointingRule.of(settings.endpointing, self._capabilities)

    def _finish(self, rest: Audio | None) -> None:
        self._duration = self._get_time(rest)
        if self._current or (self._settings.endpointing is None and self._duration - self._floor >= MIN_COMMIT_S):
            self._commit_now(rest)

    def _get_time(self, rest: Audio | None) -> float:
        return self._endpointer.frame_count * FRAME_S + (len(rest) if rest is not None else 0) / SAMPLE_RATE

    def _emit_idle(self) -> None:
        endpointing, now = self._settings.endpointing, self._endpointer.frame_count * FRAME_S
        if endpointing and endpointing.idle_s and self._idle_from is not None and now - self._idle_from >= endpointing.idle_s:
            self._idle_from = None
            self._outputs.append(SpeechIdle(now))


class DecodeWindow(Struct, frozen=True, eq=False):
    """Decode a window; its result comes back under its number."""

    id: int
    window: Window
    final: bool
    """Its text is part of a final; others are worth less the later they come."""


class DropWindow(Struct, frozen=True):
    """No request waits for this window any more."""

    id: int


class AdoptPartial(Struct, frozen=True):
    """Turn the request for a partial into one for a final. The window may have been decoded already."""

    id: int


SessionOutput = LiveEvent | DecodeWindow | DropWindow | AdoptPartial


MIN_STEP_S = 0.5
"""Least audio between two attempts, and before the first one."""

PARTIAL_PACE = 4.0
"""Audio between two attempts, in times of what decoding takes: partials of a session have a quarter of the engine at most."""

PAUSED_PACE = 1.0
"""The same where speech pauses: what is decoded then is likely to be the final."""

MIN_RETRY_S, MAX_RETRY_S = 1.0, 30.0
"""Audio after an attempt on which the engine failed."""

CONTEXT_S = 1.0
"""Audio before the first word that is decoded again, so that the word is whole."""

MIN_OMITTED_S = 3.0
"""Less audio is not worth leaving out."""


@dataclass(slots=True, eq=False)
class PartialDecode:
    """A stretch that was given to the engine before its end."""

    id: int
    window: Window
    stable_until: float | None = None
    """The words up to this second were stable; those inside the window are not decoded again."""
    result: EngineResult | None = None

    def covers(self, window: Window) -> bool:
        """Whether this is the same audio."""
        mine, other = self.window, window
        return (mine.start, len(mine.audio), mine.request) == (other.start, len(other.audio), other.request)


class PartialDecodePlanner:
    """The attempts of a session: at most one at a time is with the engine."""

    def __init__(self, *, fixed_cost: bool):
        self._fixed_cost = fixed_cost
        self._cost = 0.0  # seconds of decoding, per second of audio unless all windows cost the same
        self._waited = 0.0
        self._decoded_until = 0.0
        self.last: PartialDecode | None = None
        self.decoded_count = 0
        self.omitted_count = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the engine has one."""
        return self.last is not None and self.last.result is None

    def is_due(self, heard_to: float, begin: float, *, paused: bool = False) -> bool:
        """Whether enough of a stretch from `begin` is new at `heard_to`, in seconds of the session."""
        since = max(begin, self._decoded_until)
        cost = self._cost if self._fixed_cost else self._cost * (heard_to - begin)
        if paused:
            return heard_to - since >= PAUSED_PACE * cost + self._waited
        return heard_to - since >= max(MIN_STEP_S, PARTIAL_PACE * cost + self._waited)

    def start(self, attempt: PartialDecode) -> None:
        """The engine is given one."""
        self.last = attempt
        self._decoded_until = attempt.window.start + attempt.window.seconds

    def record_result(self, seconds: float, waited: float) -> None:
        """The last one took the engine so long, after it had waited for its turn."""
        assert self.last is not None
        self.decoded_count += 1
        self._waited = waited
        self._cost = seconds if self._fixed_cost else seconds / max(self.last.window.seconds, 1.0)

    def record_failure(self) -> None:
        """The engine has failed on the last one: it is left alone for a while, each time longer."""
        self.last = None
        self._waited = min(max(2 * self._waited, MIN_RETRY_S), MAX_RETRY_S)


def build_window(cut: SpeechChunk, request: TranscriptionRequest) -> Window:
    """The audio of a stretch that is passed to the engine."""
    return Window(
        audio=cut.audio,
        start=cut.start / SAMPLE_RATE,
        speech=cut.speech,
        speech_span=(cut.speech_start / SAMPLE_RATE, cut.speech_end / SAMPLE_RATE),
        request=request,
    )


def cut_tail(window: Window, told_to: float | None) -> Window:
    """The part of a window whose words are not known yet, with word times that show where it continues."""
    begin = 0.0 if told_to is None else told_to - CONTEXT_S - window.start
    at = int(begin * SAMPLE_RATE) if begin > MIN_OMITTED_S else 0
    return replace(
        window,
        audio=window.audio[at:],
        start=window.start + at / SAMPLE_RATE,
        speech_span=(0.0 if at else window.speech_span[0], window.speech_span[1] - at / SAMPLE_RATE),
        request=replace(window.request, words=True),
    )
