"""The session: audio, commands and what the engine heard go in; events and what is to be decoded come out.

A pure state machine, without clock, thread or I/O. Its time is the audio's. Utterances end at pauses (`Endpointing`) or by
`Commit`. In both cases a long one is cut into windows at shorter pauses, so that its end leaves little to decode: no engine's
window ends what somebody says.
"""

from __future__ import annotations

from collections import deque
from itertools import count

from eardrum.engines.base import Audio, Hearing, Window
from eardrum.errors import EardrumError, EmptyCommitError
from eardrum.live import (
    Clear,
    Cleared,
    Command,
    Commit,
    Committed,
    Configure,
    Ended,
    Failed,
    Finish,
    Idle,
    Refused,
    Settings,
    SpeechStarted,
    SpeechStopped,
)
from eardrum.runner.live import endpointing as ends
from eardrum.runner.live.actions import Adopt, Decode, Drop, Output
from eardrum.runner.live.attempts import Attempt, Attempts, tail_of, window_of
from eardrum.runner.live.utterance import Part, Utterance, heard_in, kept
from eardrum.runner.vad import FRAME, Probabilities
from eardrum.runner.windows import Cut
from eardrum.types import SAMPLE_RATE, Capabilities

LEAST_S = 0.095
"""A commit of less audio is refused: of 0.1 s, but for what a change of the sample rate holds back."""

FRAME_S = FRAME / SAMPLE_RATE

EMPTY = "There is no audio to commit: send at least 0.1 s before it, or leave it to the voice activity detection."


class Session:
    """One stream. Every method returns what follows from it, in order."""

    def __init__(self, settings: Settings, capabilities: Capabilities):
        self._settings = settings
        self._can = capabilities
        self._tells_times = capabilities.words and not capabilities.fixed_window  # else a shorter window saves nothing
        self._ends = ends.Endpointer(ends.Rule.of(settings.endpointing, capabilities))
        self._attempts = Attempts(fixed_cost=capabilities.fixed_window)
        self._ids = count(1)
        self._numbers = count(1)
        self._current: Utterance | None = None
        self._committed: deque[Utterance] = deque()
        self._parts: dict[int, tuple[Utterance, Part, Window]] = {}  # what the engine has, by the number of the window
        self._spoken_to = (0.0, 0.0)  # the end of the last window, and of the speech in it
        self._floor = 0.0  # where the utterance in progress may begin at the earliest
        self._idle_from: float | None = None
        self._duration: float | None = None  # known once no more audio comes
        self._decode_s = 0.0
        self._language = ""
        self._out: list[Output] = []

    @property
    def waiting(self) -> int:
        """Finished windows that the engine has not decoded yet."""
        return len(self._parts)

    def hear(self, samples: Audio, probs: Probabilities) -> list[Output]:
        """Take the next whole frames of 16 kHz mono with the speech probability of each."""
        for mark in self._ends.feed(samples, probs):
            match mark:
                case ends.Began(at):
                    self._begin(max(at * FRAME_S, self._floor))
                case ends.Paused():
                    if self._is_due(paused=True):
                        self._try(complete=True)
                case ends.Ended(cut):
                    self._close_window(cut)
                case ends.Over():
                    self._commit(*self._spoken_to)
        if self._partial_is_due():
            self._try(complete=False)
        self._tell_idle()
        return self._done()

    def command(self, command: Command, rest: Audio | None = None) -> list[Output]:
        """Carry out a command. `rest` are the samples heard since the last whole frame."""
        match command:
            case Configure(settings):
                self._configure(settings)
            case Commit():
                self._commit_now(rest)
            case Clear():
                self._clear()
            case Finish():
                self._finish(rest)
        return self._done()

    def decoded(self, number: int, hearing: Hearing, decode_s: float, queue_s: float) -> list[Output]:
        """The engine has decoded a window, in so many seconds after it had waited."""
        self._decode_s += decode_s
        attempt = self._attempts.last
        if number in self._parts:
            self._fill(number, hearing)
        elif attempt and attempt.id == number:
            attempt.hearing = hearing
            self._attempts.decoded_in(decode_s, queue_s)
            self._believe(attempt, hearing)
        return self._done()

    def failed(self, number: int, error: EardrumError) -> list[Output]:
        """The engine has failed on a window."""
        if number in self._parts:
            _, part, _ = self._parts.pop(number)
            part.error = error
        elif self._attempts.last and self._attempts.last.id == number:
            self._attempts.failed()
        return self._done()

    # Speech

    def _begin(self, start: float) -> None:
        if self._current:
            return  # the next window of an utterance in progress
        self._idle_from = None
        announced = self._settings.endpointing is not None
        self._current = self._begun(start if announced else self._floor, announced=announced)
        if announced:
            self._out.append(SpeechStarted(self._current.number, start))

    def _begun(self, start: float, *, announced: bool) -> Utterance:
        return Utterance(next(self._numbers), self._settings.request, start, announced)

    def _close_window(self, cut: Cut) -> None:
        """The open window is finished: it is decoded, unless that was begun at the pause."""
        assert self._current
        self._spoken_to = cut.end / SAMPLE_RATE, (cut.start + cut.speech_end) / SAMPLE_RATE
        window = window_of(cut, self._current.request)
        part = self._current.close_window()
        attempt, self._attempts.last = self._attempts.last, None
        if attempt and attempt.covers(window):
            self._parts[attempt.id] = (self._current, part, window)
            self._out.append(Adopt(attempt.id))
            if attempt.hearing:
                self._fill(attempt.id, attempt.hearing)
            return
        if attempt and not attempt.hearing:
            self._attempts.left_out += 1
            self._out.append(Drop(attempt.id))
        number = next(self._ids)
        self._parts[number] = (self._current, part, window)
        self._out.append(Decode(number, window, final=True))

    def _commit(self, end: float, stopped: float) -> None:
        assert self._current
        utterance, self._current = self._current, None
        utterance.committed = Committed(utterance.number, utterance.start, end)
        if utterance.announced:
            self._out.append(SpeechStopped(utterance.number, stopped))
        self._out.append(utterance.committed)
        self._committed.append(utterance)
        self._floor = end
        self._idle_from = stopped

    # Partials

    def _partial_is_due(self) -> bool:
        if not (self._settings.partials and self._current and self._ends.speaking) or self._attempts.waiting:
            return False
        return self._is_due()

    def _is_due(self, *, paused: bool = False) -> bool:
        """Whether decoding the open window as it is is worth it. Finals come first."""
        return not self._parts and self._attempts.due(self._ends.heard * FRAME_S, self._ends.begin * FRAME_S, paused=paused)

    def _try(self, *, complete: bool) -> None:
        """Have the open window decoded as it is."""
        assert self._current
        if self._attempts.waiting:
            assert self._attempts.last
            self._attempts.left_out += 1
            self._out.append(Drop(self._attempts.last.id))
        window = window_of(self._ends.stretch(whole=complete), self._current.request)
        told_to = None
        if self._tells_times and not complete:
            told_to = self._current.told_to
            window = tail_of(window, told_to)
        attempt = Attempt(next(self._ids), window, told_to)
        self._attempts.begin(attempt)
        self._out.append(Decode(attempt.id, window, final=False))

    def _believe(self, attempt: Attempt, hearing: Hearing) -> None:
        """A hypothesis on the open window."""
        utterance = self._current
        if not utterance or not self._settings.partials:
            return
        before = (utterance.open.stable, utterance.open.tentative)
        end = attempt.window.start + attempt.window.seconds
        utterance.hear(heard_in(attempt.window, hearing), end, attempt.told_to)
        if before != (utterance.open.stable, utterance.open.tentative):
            self._tell_partial(utterance, end)

    def _tell_partial(self, utterance: Utterance, end: float) -> None:
        if all(part.done and not part.error for part in utterance.parts):
            self._out.append(utterance.partial(end))

    # Finals

    def _fill(self, number: int, hearing: Hearing) -> None:
        utterance, part, window = self._parts.pop(number)
        part.segments = kept(part.stable, heard_in(window, hearing), window)
        utterance.language = hearing.language or utterance.language
        if utterance is self._current and self._settings.partials and part.segments:
            self._tell_partial(utterance, window.start + window.seconds)

    def _done(self) -> list[Output]:
        """Everything that follows, with the finals whose turn it is, and the end."""
        while self._committed and self._committed[0].complete:
            end = self._committed.popleft().end()
            self._language = self._language if isinstance(end, Failed) else end.language or self._language
            self._out.append(end)
        if self._duration is not None and not self._committed:
            tried = self._attempts
            self._out.append(Ended(self._duration, self._language, self._decode_s, tried.decoded, tried.left_out))
            self._duration = None
        out, self._out = self._out, []
        return out

    # Commands

    def _commit_now(self, rest: Audio | None) -> None:
        now = self._now(rest)
        if not self._current and now - self._floor < LEAST_S:
            self._out.append(Refused(EmptyCommitError(EMPTY)))
            return
        cut = self._ends.stop(rest)
        self._current = self._current or self._begun(self._floor, announced=False)
        if cut:
            self._close_window(cut)
        self._commit(now, (cut.start + cut.speech_end) / SAMPLE_RATE if cut else now)

    def _clear(self) -> None:
        self._ends.stop()
        given_up, self._current = self._current, None
        self._floor = self._ends.now * FRAME_S
        if self._attempts.waiting:
            assert self._attempts.last
            self._out.append(Drop(self._attempts.last.id))
        self._attempts.last = None
        for number, (utterance, _, _) in list(self._parts.items()):
            if utterance is given_up:
                del self._parts[number]
                self._out.append(Drop(number))
        self._out.append(Cleared(given_up.number if given_up else 0))

    def _configure(self, settings: Settings) -> None:
        self._settings = settings
        self._ends.rule = ends.Rule.of(settings.endpointing, self._can)

    def _finish(self, rest: Audio | None) -> None:
        self._duration = self._now(rest)
        if self._current or (self._settings.endpointing is None and self._duration - self._floor >= LEAST_S):
            self._commit_now(rest)

    def _now(self, rest: Audio | None) -> float:
        return self._ends.now * FRAME_S + (len(rest) if rest is not None else 0) / SAMPLE_RATE

    def _tell_idle(self) -> None:
        endpointing, now = self._settings.endpointing, self._ends.now * FRAME_S
        if endpointing and endpointing.idle_s and self._idle_from is not None and now - self._idle_from >= endpointing.idle_s:
            self._idle_from = None
            self._out.append(Idle(now))
